"""Reading a request's tensors, whatever bytes they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


def values(request: Any, name: str) -> list[Any] | None:
    """Return the tensor's elements, flat, BYTES as str; None when the request has no such tensor."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    flat = np.ravel(tensor.as_numpy()).tolist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in flat]


def first(request: Any, name: str, default: Any = None) -> Any:
    """Return the tensor's first element, or `default` when it is absent or empty."""
    found = values(request, name)
    return found[0] if found else default


def text(name: str, strings: list[str]) -> Any:
    """Return a BYTES tensor [n] of UTF-8 strings."""
    return pb_utils.Tensor(name, np.array([string.encode() for string in strings], np.object_))
