"""Whether what is to be allocated fits, said before it is."""

from rlmods.memory import available_memory, size_text


def check_memory(buffer_size: int, items: str, needed: int) -> None:
    """Refuse a replay that is empty or too large.

    Args:
        buffer_size: items that it is to hold.
        items: what they are called.
        needed: bytes that it takes.

    Raises:
        ValueError: `buffer_size` is below 1, or the memory that is available does not suffice.
    """
    if buffer_size < 1:
        raise ValueError(f"buffer_size is {buffer_size}, expected at least 1")
    available = available_memory()
    if available is not None and needed > available:
        fitting = int(0.8 * available / needed * buffer_size)
        raise ValueError(
            f"a replay buffer of {buffer_size:,} {items} takes {size_text(needed)}, {size_text(available)} are "
            f"available: try --data.init_args.buffer_size {fitting}"
        )
