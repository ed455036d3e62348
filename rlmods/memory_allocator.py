"""How the C library keeps memory that tensors have given back."""

import ctypes
import sys

# Options of glibc's mallopt(3), in bytes: freed memory beyond the first goes back, the second is taken ahead of need,
# and what exceeds the third is mapped and unmapped each time.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_OPTIONS = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**31 - 1}


def keep_freed_memory() -> None:
    """Let freed memory stay with the process instead of going back to the system.

    A network of some megabytes frees and takes the same pages several times in every update, and each time the system
    fills them with zeros anew: 2 to 6 % of an update of DreamerV3 at 1M. It is a matter of the whole process, so the
    program does it and no library. Only glibc knows it.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in _OPTIONS.items():
            set_option(option, value)
