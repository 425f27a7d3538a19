"""How the numba kernels of the house are compiled, and on whose threads they run."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from numba import config, njit


def kernel(
    *, parallel: bool = False, fast: bool | frozenset[str] = False, nogil: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Compile to machine code on first call and keep it on disk beside the file (or in NUMBA_CACHE_DIR).

    numba looks at the time of the kernel's own file only: after editing a constant that another file's kernels use,
    delete the ``*.nbi`` files. ``parallel`` runs on the threads of `choose_threads`. ``fast`` allows fused multiply-add
    (or names what else is allowed); NaN and infinity stay what they are. ``nogil`` lets other Python threads run.
    """
    if parallel:
        choose_threads()

    def compile_it(function: Callable[..., Any]) -> Any:
        plain = inspect.unwrap(function)  # a run-time type checker may have wrapped it, which numba cannot read
        flags = ({"contract", "nsz"} if fast is True else set(fast)) if fast else False
        # numpy's error model: a division by zero gives infinity; a check for it would keep loops from vectorising.
        return njit(cache=True, parallel=parallel, fastmath=flags, error_model="numpy", nogil=nogil)(plain)

    return compile_it


def choose_threads() -> None:
    """OpenMP before numba's first kernel runs, unless NUMBA_THREADING_LAYER says otherwise.

    numba prefers TBB where it is installed, whose workers may never end when the interpreter does: the finished program
    hangs. On macOS two OpenMP runtimes in one process (torch brings its own) crash, so there it is numba's own pool.
    """
    # Spinning OpenMP threads fight torch's for the cores; only heeded if OpenMP is not running yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if config.THREADING_LAYER == "default":
        config.THREADING_LAYER_PRIORITY = (
            ["workqueue", "omp", "tbb"] if sys.platform == "darwin" else ["omp", "workqueue", "tbb"]
        )
