"""Runs the structure-from-motion worker and turns whatever happens to it into a result or one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scenetx.core import InputError
from scenetx.geometry.sfm_job import Job

Progress = Callable[[str, float], None]
OPTIONAL = ("relaxed", "global", "finer")
"""Steps that only improve an answer: when one brings the worker down, the job is done again without it."""
WHAT = "structure from motion"


def run_job(job: Job, on_progress: Progress | None) -> Mapping[str, Any]:
    """The worker's answer. A crash in an optional step costs that step; any other is an `InputError`."""
    while True:
        answer, step, code = _run_once(job, on_progress)
        if "error" in answer:
            raise InputError(*answer["error"])
        if "done" in answer:
            return dict(answer["done"])
        optional = step.split(", ")[-1]  # "matches, finer" belongs to the attempt with finer features
        if optional not in OPTIONAL or optional in job.skip:
            raise _crash(job, step, code)
        job = replace(job, skip=(*job.skip, optional))


def _run_once(job: Job, on_progress: Progress | None) -> tuple[dict[str, Any], str, int]:
    folder = Path(job.folder)
    job_path = folder / "job.json"
    job_path.write_text(job.to_json())
    command = [sys.executable, "-m", "scenetx.geometry.sfm_worker", str(job_path)]
    # Its own session: Ctrl-C in a terminal reaches only this process, which then ends the worker itself.
    with (
        (folder / "sfm.log").open("ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as worker,
    ):
        answer: dict[str, Any] = {}
        step = "start"
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                message = json.loads(line)
                if "step" in message:
                    step = message["step"]
                    if on_progress is not None:
                        on_progress(step, float(message["share"]))
                else:
                    answer = message
            worker.wait()
        except BaseException:
            worker.kill()
            raise
    return answer, step, worker.returncode


def _crash(job: Job, step: str, code: int) -> InputError:
    log = Path(job.folder) / "sfm.log"
    if code == -signal.SIGKILL:
        do = "most likely memory ran out: use fewer or smaller pictures; finished steps are kept"
    else:
        do = f"run again (finished steps are kept); if it stops there again, see {log}"
    cause = signal.Signals(-code).name if code < 0 and os.name == "posix" else f"exit code {code}"
    return InputError(WHAT, f"the solver died in step '{step}' ({cause})", do)
