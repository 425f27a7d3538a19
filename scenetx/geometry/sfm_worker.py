"""The process in which structure from motion runs: ``python -m scenetx.geometry.sfm_worker job.json``.

Native code may abort; here it takes nothing along. Standard output carries JSON lines (progress, then done or error);
all that pycolmap says goes to standard error. Finished steps are recorded in ``state.json`` and skipped next time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pycolmap

from scenetx.geometry import features, mapping, predicted
from scenetx.geometry.sfm_job import Job, SfmFailed, fingerprint

Say = Callable[..., None]
FEATURE_SETTINGS = ("max_image_size", "max_features", "few_features")
MATCH_SETTINGS = ("pairs", "ordered", "guided", "max_exhaustive", "overlap", "neighbors", "seed")
CRASH = "SCENETX_SFM_CRASH"
"""Names a step in which the worker kills itself: how the tests see that a native crash is survived."""


class Worker:
    """One job's steps, each leaving a line in ``state.json``."""

    def __init__(self, job: Job, say: Say) -> None:
        self.job, self.say = job, say
        self.folder = Path(job.folder)
        self.names = [picture.key for picture in job.pictures]
        self.state_path = self.folder / "state.json"
        self.state: dict[str, Any] = json.loads(self.state_path.read_text()) if self.state_path.is_file() else {}
        self.chosen: dict[Path, tuple[str, list[tuple[int, int]]]] = {}
        self.images, self.masks = features.link_pictures(job.pictures, self.folder)
        pycolmap.set_random_seed(job.settings.seed)

    def report(self, step: str) -> Callable[[float], None]:
        self.say(step=step, share=0.0)
        if os.environ.get(CRASH) == step.split(",")[0]:
            os.kill(os.getpid(), signal.SIGSEGV)
        return lambda share: self.say(step=step, share=share)

    def remember(self, **values: Any) -> None:
        self.state.update(values)
        temporary = self.state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.state_path)

    def key(self, fine: bool, settings: tuple[str, ...], pictures: bool = True) -> str:
        stamps = [picture.stamp() for picture in self.job.pictures] if pictures else []
        return fingerprint([fine, [getattr(self.job.settings, name) for name in settings], stamps])

    def look(self, fine: bool) -> Path:
        """Features and matches; the database they are in."""
        suffix = "_fine" if fine else ""
        database = self.folder / f"database{suffix}.db"
        stamps = {picture.key: fingerprint(picture.stamp()) for picture in self.job.pictures}
        looked, known = f"features{suffix}", self.state.get(f"pictures{suffix}", {})
        kind = self.key(fine, FEATURE_SETTINGS, pictures=False)
        rematch = self.key(fine, MATCH_SETTINGS, pictures=False)
        same_features = self.state.get(looked) == kind
        if not (
            same_features and known == stamps and self.state.get(f"match{suffix}") == rematch and database.is_file()
        ):
            fresh = database.with_suffix(".new")
            features.start_database(fresh, self.job.pictures)
            if same_features and database.is_file():
                unchanged = {name for name, stamp in stamps.items() if known.get(name) == stamp}
                same = self.state.get(f"match{suffix}") == rematch
                features.carry_features(database, fresh, unchanged, matches=same)
            for leftover in (f"{database}-wal", f"{database}-shm"):
                Path(leftover).unlink(missing_ok=True)
            fresh.replace(database)
            self.remember(
                **{looked: kind, f"pictures{suffix}": stamps, f"match{suffix}": rematch, f"matched{suffix}": ""}
            )
        step = "features, finer" if fine else "features"
        features.extract(database, self.images, self.masks, self.names, self.job.settings, self.report(step), fine=fine)
        return database

    def match(self, database: Path, fine: bool) -> None:
        suffix = "_fine" if fine else ""
        done = self.key(fine, (*FEATURE_SETTINGS, *MATCH_SETTINGS))
        if self.state.get(f"matched{suffix}") == done:
            return
        report = self.report("matches, finer" if fine else "matches")
        kind, pairs = self.pairing(database)
        features.match(database, self.names, pairs, self.job.settings, report, fine=fine)
        self.remember(**{f"matched{suffix}": done, "pairing": f"{kind}, {len(pairs)} pairs"})

    def few(self, database: Path) -> bool:
        """Is it worth looking twice before mapping? Where all are matched with all: a walk or a large set has
        neighbours that look alike, and is looked at again only when pictures stay out."""
        question = self.key(False, (*FEATURE_SETTINGS, *MATCH_SETTINGS))
        if self.state.get("few", [""])[0] != question:
            counts = list(features.feature_counts(database).values())
            few = bool(counts) and float(np.median(counts)) < self.job.settings.few_features
            self.remember(few=[question, few and self.pairing(database)[0] == "exhaustive"])
        return bool(self.state["few"][1])

    def pairing(self, database: Path) -> tuple[str, list[tuple[int, int]]]:
        """The kind of pairs and the pairs; likeness looks at all descriptors, once."""
        if database not in self.chosen:
            self.chosen[database] = features.choose_pairs(database, len(self.names), self.job.settings)
        return self.chosen[database]

    def reconstruct(self) -> dict[str, Any]:
        """The best model, refined, in ``folder/model``; what there is to say about it."""
        settings = self.job.settings
        database = self.look(fine=False)
        fine = self.few(database)
        if fine:
            database = self.look(fine=True)
        self.check_features(database)
        self.match(database, fine)
        everything = self.key(fine, tuple(type(settings).__dataclass_fields__))
        if self.state.get("mapped") == everything and (self.folder / "model" / "images.bin").is_file():
            return dict(self.state["result"])
        best, notes = self.map(database, fine)
        if best is None:
            raise self.failure(database)
        dropped = mapping.drop_unreliable(best.model)
        refined = mapping.refine(best.model, settings)
        mapping.clean(best.model, self.images)
        result = self.write(best, dropped, database, [*notes, *refined])
        self.remember(mapped=everything, result=result)
        return result

    def map(self, database: Path, fine: bool) -> tuple[mapping.Candidate | None, list[str]]:
        """Attempts from the plain to the patient one, until enough pictures are registered; the best of them."""
        settings, folder = self.job.settings, self.folder / "attempts"
        tried: list[mapping.Candidate] = []

        def attempt(
            how: str,
            run: Callable[[Callable[[float], None]], mapping.Candidate | None],
            enough: float = settings.enough,
        ) -> None:
            good = tried and max(candidate.score[0] for candidate in tried) >= enough * len(self.names)
            if good or how in self.job.skip:
                return
            found = run(self.report(f"mapping, {how}"))
            tried.extend([found] if found else [])

        def best() -> mapping.Candidate | None:
            return max(tried, key=lambda candidate: candidate.score, default=None)

        def continued(report: Callable[[float], None]) -> mapping.Candidate | None:
            start = best()
            if start is None:
                return mapping.map_incremental(
                    database, self.images, folder / "relaxed", settings, report, relaxed=True
                )
            path = folder / "start"
            path.mkdir(parents=True, exist_ok=True)
            start.model.write(path)
            return mapping.map_incremental(
                database, self.images, folder / "relaxed", settings, report, relaxed=True, start=path
            )

        def finer(report: Callable[[float], None]) -> mapping.Candidate | None:
            other = self.look(fine=True)
            self.match(other, fine=True)
            return mapping.map_incremental(other, self.images, folder / "finer", settings, report, relaxed=False)

        if settings.mapper != "global":
            attempt(
                "incremental",
                lambda report: mapping.map_incremental(
                    database, self.images, folder / "incremental", settings, report, relaxed=False
                ),
            )
        if settings.mapper == "auto":
            attempt("relaxed", continued, enough=1.0)
        if settings.mapper != "incremental":
            attempt("global", lambda _: mapping.map_global(database, self.images, folder / "global", settings))
        if settings.mapper == "auto" and not fine:
            attempt("finer", finer)
        summary = [f"{one.how}: {'+'.join(map(str, one.sizes))} pictures" for one in tried]
        return best(), [f"pairs: {self.state.get('pairing', '')}", *summary]

    def check_features(self, database: Path) -> None:
        counts = features.feature_counts(database)
        rich = sum(count >= 30 for count in counts.values())
        if rich < 2:
            value = f"{rich} of {len(self.names)} pictures show enough detail to be matched"
            raise SfmFailed(
                "structure from motion", value, "take sharp pictures of a textured scene, or loosen the masks"
            )

    def failure(self, database: Path) -> SfmFailed:
        inliers = features.verified_inliers(database)
        if not inliers:
            value = f"no two of the {len(self.names)} pictures show the same thing"
            return SfmFailed("structure from motion", value, "take pictures that overlap by two thirds")
        value = f"{len(inliers)} pairs of pictures match, but none gives a stable pair of cameras"
        return SfmFailed("structure from motion", value, "move sideways between pictures, do not only turn the camera")

    def write(self, best: mapping.Candidate, dropped: list[str], database: Path, notes: list[str]) -> dict[str, Any]:
        model = best.model
        target = self.folder / "model"
        target.mkdir(exist_ok=True)
        model.write(target)
        registered = {model.image(image_id).name for image_id in model.reg_image_ids()}
        total, n = len(self.names), len(registered)
        loud = f"{n} of {total} pictures registered"
        if len(best.sizes) > 1:
            loud += f"; largest of {len(best.sizes)} models (sizes {', '.join(map(str, best.sizes))})"
        inliers, counts = features.verified_inliers(database), features.feature_counts(database)
        partners: dict[str, int] = {}
        for a, b in inliers:
            for key in (self.names[a], self.names[b]):
                partners[key] = partners.get(key, 0) + 1
        why = {}
        for picture in self.job.pictures:
            if picture.key in registered:
                continue
            if picture.key in dropped:
                why[picture.name] = "unreliable: far from every other camera or held by too few points"
            elif counts.get(picture.key, 0) < 100:
                why[picture.name] = f"few features ({counts.get(picture.key, 0)})"
            elif others := [len(group) for group in best.groups[1:] if picture.key in group]:
                why[picture.name] = f"belongs to another group of {max(others)} pictures"
            elif not partners.get(picture.key):
                why[picture.name] = "few matches: nothing in common with any other picture was found"
            else:
                why[picture.name] = f"matches {partners[picture.key]} pictures, but too weakly for the largest model"
        return {"notes": [loud, *notes], "unregistered": why, "models": list(best.sizes)}

    def triangulate(self) -> dict[str, Any]:
        """Points for cameras that are known and stay as they are."""
        database = self.look(fine=False)
        fine = self.few(database)
        if fine:
            database = self.look(fine=True)
        self.match(database, fine)
        model = mapping.known_model(database, self.job.pictures)
        model = mapping.map_points(model, database, self.images, self.folder / "points", self.job.settings)
        target = self.folder / "model"
        target.mkdir(exist_ok=True)
        model.write(target)
        return {"notes": [], "unregistered": {}, "models": []}

    def refine(self) -> dict[str, Any]:
        """Predicted cameras, the same refined, or plain structure from motion: what explains the matches best."""
        settings = self.job.settings
        database = self.look(fine=False)
        self.match(database, fine=False)
        report = self.report("refining")
        matches = predicted.Matches.read(database, self.names)
        guess = predicted.guessed_model(database, self.job.pictures)
        tried = [predicted.Try("prediction", guess, predicted.explained(guess, matches))]
        refined = predicted.refine_guess(guess, database, self.images, self.folder / "guess", settings, report)
        if refined is not None:
            tried.append(predicted.Try("refined prediction", refined, predicted.explained(refined, matches)))
        plain = self.map(database, fine=False)[0] if matches.total else None
        if plain is not None:
            tried.append(predicted.Try("structure from motion", plain.model, predicted.explained(plain.model, matches)))
        best = predicted.choose(tried)
        dropped = [] if best.how == "prediction" else mapping.drop_unreliable(best.model)
        notes = [predicted.verdict(tried, best, matches)]
        if best.how != "prediction":
            notes += mapping.refine(best.model, settings)
            mapping.clean(best.model, self.images)
        names = frozenset(best.model.image(image_id).name for image_id in best.model.reg_image_ids())
        result = self.write(mapping.Candidate(best.model, (names,), best.how), dropped, database, notes)
        return {**result, "kept": best.how}


def serve(job: Job, out: TextIO) -> None:
    """Run a job and write its JSON lines to ``out``."""

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    worker = Worker(job, say)
    try:
        tasks = {"reconstruct": worker.reconstruct, "triangulate": worker.triangulate, "refine": worker.refine}
        result = tasks[job.task]()
    except SfmFailed as error:
        say(error=list(error.parts))
    else:
        say(done=result)


def _die_with_parent() -> None:
    """The parent holds the other end of standard input: when that closes, nobody waits for this process any more."""
    # Not sys.stdin: the interpreter cannot shut down while a thread sits in a buffered read.
    while os.read(0, 1024):
        pass
    os._exit(1)


def main(path: str) -> None:
    # Native libraries write to file descriptor 1 too: keep it for the protocol, and give them the log.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    serve(Job.from_json(Path(path).read_text()), out)


if __name__ == "__main__":
    main(sys.argv[1])
