"""A bar a stage on the terminal, with a time to go; plain lines where the output is not a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

TITLES = {
    "open": "reading pictures",
    "cameras": "finding cameras",
    "undistort": "straightening lenses",
    "splats": "fitting splats",
    "score": "scoring held-out views",
    "preview": "rendering preview",
    "save": "writing scene",
    "render": "rendering",
    "compress": "compressing splats",
}


class Progress:
    """A context manager whose `report` is a `scenetx.pipeline.workspace.Report`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._bars = Bars(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def report(self, stage: str, fraction: float, message: str) -> None:
        title = TITLES.get(stage, stage)
        if not self._console.is_terminal:
            if fraction >= 1 and stage not in self._said:
                self._said.add(stage)
                self._console.print(f"{title}: done{f' ({message})' if message else ''}", markup=False, soft_wrap=True)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(title, total=1.0, message="")
        self._bars.update(self._tasks[stage], completed=min(fraction, 1.0), message=message[:60])
