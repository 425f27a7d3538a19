"""How the numba kernels of this room are compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(*, parallel: bool = False, fast: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile to machine code on first call and keep it on disk beside the file (or in NUMBA_CACHE_DIR).

    numba looks at the time of the kernel's own file only: after editing a constant that another file's kernels use,
    delete the ``*.nbi`` files. ``fast`` allows fused multiply-add but keeps NaN and infinity what they are.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        plain = inspect.unwrap(function)  # a run-time type checker may have wrapped it, which numba cannot read
        flags = {"contract", "nsz"} if fast else False
        # numpy's error model: a division by zero gives infinity; a check for it would keep loops from vectorising.
        return njit(cache=True, parallel=parallel, fastmath=flags, error_model="numpy")(plain)

    return compile_it
