"""The one error a user causes and can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one line that names the file (or key), the value, and what to do. The command line exits with 2."""

    def __init__(self, what: str, value: object, do: str) -> None:
        line = " ".join(f"{what}: {value}; {do}".split())
        super().__init__(line)
