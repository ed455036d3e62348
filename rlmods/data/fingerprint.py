"""Whether a state is the same as before, told by a hash."""

import hashlib
from typing import Any

import torch


def fingerprint_of(state: Any) -> str:
    """SHA-256 of dicts, lists, tuples, tensors, numbers and text, with their types and in their order.

    Args:
        state: as a `state_dict` gives it.

    Raises:
        TypeError: where there is something else in it.
    """
    digest = hashlib.sha256()
    _update(digest, state)
    return digest.hexdigest()


def _update(digest: Any, state: Any) -> None:
    if isinstance(state, torch.Tensor):
        values = state.detach().cpu()
        digest.update(f"{values.dtype}{list(state.shape)}".encode())
        # As bytes, so that -0.0 and NaN are what they are. Arrays with a stride of 0, as MuJoCo's, torch cannot view.
        digest.update(values.numpy().tobytes())
    elif isinstance(state, dict):
        digest.update(f"dict{len(state)}".encode())
        for name, value in state.items():
            _update(digest, name)
            _update(digest, value)
    elif isinstance(state, list | tuple):
        digest.update(f"{type(state).__name__}{len(state)}".encode())
        for value in state:
            _update(digest, value)
    elif state is None or isinstance(state, bool | int | float | str):
        text = repr(state)
        digest.update(f"{type(state).__name__}{len(text)}:{text}".encode())
    else:
        raise TypeError(f"got {type(state).__name__}, expected a tensor, a number, text, or dicts and lists of these")
