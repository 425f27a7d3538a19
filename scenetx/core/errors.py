"""The one error a user causes and can mend."""

from __future__ import annotations

from collections.abc import Callable


class InputError(ValueError):
    """Bad input: one line that names the file (or key), the value, and what to do. The command line exits with 2."""

    def __init__(self, what: str, value: object, do: str) -> None:
        line = " ".join(f"{what}: {value}; {do}".split())
        super().__init__(line)

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[type[InputError], str]]:
        # The parts are gone; an error of a worker process comes home as its line.
        return BaseException.__new__, (type(self), str(self))
