"""Tracking in a map of other frames: trajectory errors, latency from capture to pose, frames dropped, size of the map.

    python benchmarks/track.py --data ../shared/data/dev                 # all sequences, classical map
    python benchmarks/track.py --data ../shared/data/dev redkitchen_a --method kv --model da3-small
    python benchmarks/track.py procedural                                # exact poses, no data needed
    python benchmarks/track.py redkitchen_a --soak 20000                 # looped frames: memory, latency, their slopes
    python benchmarks/track.py --bootstrap                               # without a map, classical; also --unknown-lens

Every n-th frame of a sequence is reconstructed (`scenetx reconstruct --no-splats`, or with the reference's own cameras
under ``--posed``); all other frames are tracked in that map, twice: each frame in order (errors, seconds a pose), and
replayed in real time at the sequence's rate (latency, dropped frames). ATE and RPE are of the tracked frames that have
a reference, after a Sim(3) fit of their centres (Umeyama, 1991); percent is of the path's extent, the largest distance
of a reference centre from their mean. Lost frames count beside the errors, not in them.

``tracked`` are the frames with a reference that are called tracking or relocalised, and ``wrong`` those of them whose
centre is more than 5 % of the extent off, or whose rotation more than 5 degrees, after a Sim(3) fit. This fit is to
centres and rotations, each in those units (centres alone leave open the turn about a path that is almost a line), and
to the better 60 %, refitted five times: wrong frames would bend a fit to all towards themselves. ``focal_found`` is the
focal length that the last pose was found with, ``focal_true`` the reference's, in pixels of the frames as placed
(straightened, where a lens is known). ``finished`` is of the trajectory that is written at the end, as the keyframes
then stand (`scenetx.live.anchors`). ``--bend K1`` and ``--crop PERCENT`` make other lenses of a sequence's: its frames
bent by a radial term, its middle cut out; ``--fps`` another rate. Results are added to benchmarks/track.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenetx.core import InputError, Original, Scene, Sim3, View, umeyama
from scenetx.core.atomic import write_bytes
from scenetx.core.cameras import focal_and_center
from scenetx.core.rigid import invert_rigid, rotation_angle
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.images import read_picture, write_picture
from scenetx.live.anchors import finished
from scenetx.live.capture import CaptureSettings
from scenetx.live.classical_map import Lens
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.intrinsics import GivenLens, Straighten
from scenetx.live.one_frame import Joins, root_of
from scenetx.live.outputs import BELIEVED, Trajectory
from scenetx.live.radial import straight
from scenetx.live.source import Shot, VideoFile
from scenetx.live.update import Update
from scenetx.measure.shape import pose_errors
from scenetx.pipeline.locators import OpenMap, open_map
from scenetx.pipeline.track import track

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """``every``: each so-many-th frame makes the map; ``fps``: the rate of the replay."""

    every: int
    fps: float
    step: int = 1  # frames of the video that are used
    posed: bool = False  # the map from the reference's cameras unless asked otherwise: too sparse for a plain SfM


SOAK_PART = 1000
WRONG_SHARE, WRONG_DEGREES = 0.05, 5.0
SEQUENCES = {
    "redkitchen_a": Plan(5, 30),
    "hololens_a": Plan(2, 5, posed=True),
    "video_pyramid": Plan(4, 10, step=3),
    "pavilion_chair_midday": Plan(2, 10),
}


@dataclass(frozen=True)
class Files:
    """A `Reader` of some frames, each under its own number."""

    frames: tuple[tuple[str, np.ndarray], ...]
    name: str = "sequence"
    live: bool = False

    def shots(self) -> Iterator[Shot]:
        for name, pixels in self.frames:
            yield Shot(pixels, name=name)


def read_frames(folder: Path, plan: Plan) -> list[tuple[str, np.ndarray]]:
    """All frames by name. Those of a video are named by their number in decoding order, as the references are."""
    if (folder / "images").is_dir():
        files = sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in (".jpg", ".png"))
        return [(path.name, read_picture(path).pixels) for path in files]
    shots = enumerate(VideoFile(folder / "video.mp4").shots())
    return [(f"{index:06d}.png", shot.image) for index, shot in shots if index % plan.step == 0]


def reconstruct(frames: Sequence[tuple[str, np.ndarray]], folder: Path, reference: Path | None) -> tuple[Path, float]:
    """The scene folder of the map's frames, and the seconds it took."""
    pictures = folder / "images"
    for name, pixels in frames:
        write_picture(pictures / f"{Path(name).stem}.png", pixels)
    source = folder
    if reference is not None:
        root = json.loads(reference.read_text())
        entries = {
            f"{Path(name).stem}.png": {key: value for key, value in entry.items() if not key.startswith("depth")}
            for name, entry in root["images"].items()
        }
        kept = {path.name: entries[path.name] for path in pictures.iterdir() if path.name in entries}
        (folder / "cameras.json").write_text(json.dumps({**root, "images": kept}))
    command = [
        sys.executable, "-m", "scenetx", "reconstruct", str(source), "--output", str(folder / "scene"), "--no-splats",
        "--model", "sfm", "--eval-every", "0",
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "scene", time.monotonic() - start


def errors(updates: Sequence[Update], truth: dict[str, torch.Tensor]) -> dict[str, Any]:
    """ATE and RPE of the updates whose frame has a reference."""
    both = believed(updates, truth)
    out: dict[str, Any] = {"judged": sum(update.name in truth for update in updates), "placed": len(both)}
    if len(both) < 4:
        return out
    found, true = (torch.stack(column) for column in zip(*both, strict=True))
    result = pose_errors(true, found)
    centers = true[:, :3, 3]
    extent = extent_of(centers)
    aligned = umeyama(centers, found[:, :3, 3]).apply_to_poses(found)
    steps = [
        (invert_rigid(true[a]) @ true[b], invert_rigid(aligned[a]) @ aligned[b]) for a, b in pairwise(range(len(true)))
    ]
    moved = torch.stack([(p[:3, 3] - q[:3, 3]).norm() for p, q in steps])
    turned = torch.stack([torch.rad2deg(rotation_angle(p[:3, :3].T @ q[:3, :3])) for p, q in steps])
    return out | {
        "ate_rmse": result.ate_rmse,
        "ate_percent": 100 * result.ate_rmse / extent,
        "extent": extent,
        "rotation_deg_median": float(result.rotation_deg.median()),
        "rpe_translation_rmse": float(moved.square().mean().sqrt()),
        "rpe_rotation_deg_rmse": float(turned.square().mean().sqrt()),
    }


def believed(updates: Sequence[Update], truth: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The poses that are called tracking or relocalised, with the true ones, where there is one."""
    return [
        (update.world_from_cam, truth[update.name])
        for update in updates
        if update.world_from_cam is not None and update.status in BELIEVED and update.name in truth
    ]


def wrong_frames(updates: Sequence[Update], truth: dict[str, torch.Tensor]) -> dict[str, Any]:
    """How many of the poses that are believed are wrong (defined at the top), and how far the worst are off."""
    both = believed(updates, truth)
    out: dict[str, Any] = {"tracked": len(both)}
    if len(both) < 4:
        return out
    found, true = (torch.stack(column).double() for column in zip(*both, strict=True))
    extent = extent_of(torch.stack([truth[update.name][:3, 3] for update in updates if update.name in truth]))
    best = torch.ones(len(true), dtype=torch.bool)
    for _ in range(6):
        aligned = wrong_fit(true[best], found[best], extent).apply_to_poses(found)
        share = (aligned[:, :3, 3] - true[:, :3, 3]).norm(dim=-1) / extent
        turned = torch.rad2deg(rotation_angle(aligned[:, :3, :3].transpose(1, 2) @ true[:, :3, :3]))
        off = (share / WRONG_SHARE).square() + (turned / WRONG_DEGREES).square()
        best = torch.zeros_like(best).index_fill(0, off.argsort()[: max(4, int(0.6 * len(off)))], value=True)
    return out | {
        "wrong": int(((share > WRONG_SHARE) | (turned > WRONG_DEGREES)).sum()),
        "worst_percent": round(100 * float(share.max()), 1),
        "worst_deg": round(float(turned.max()), 1),
    }


def wrong_fit(true: torch.Tensor, found: torch.Tensor, extent: float) -> Sim3:
    """true_from_found of least squares, centres in units of `WRONG_SHARE` of the extent, rotations of `WRONG_DEGREES`:
    Procrustes for the rotation and, in turn with it, the scale."""
    a, b = (each[:, :3, 3] - each[:, :3, 3].mean(0) for each in (true, found))
    turns = torch.einsum("nij,nkj->ik", true[:, :3, :3], found[:, :3, :3]) / (2 * np.deg2rad(WRONG_DEGREES) ** 2)
    scale = extent_of(true[:, :3, 3]) / max(extent_of(found[:, :3, 3]), 1e-12)
    for _ in range(20):
        left, _, right = torch.linalg.svd(scale * a.T @ b / (WRONG_SHARE * extent) ** 2 + turns)
        proper = torch.ones(3, dtype=left.dtype)
        proper[2] = torch.linalg.det(left @ right)
        rotation = left @ torch.diag(proper) @ right
        scale = max(float((a * (b @ rotation.T)).sum() / b.square().sum().clamp_min(1e-24)), 1e-12)
    return Sim3(scale, rotation, true[:, :3, 3].mean(0) - scale * rotation @ found[:, :3, 3].mean(0))


def extent_of(centers: torch.Tensor) -> float:
    """The largest distance of a centre from their mean."""
    return float((centers - centers.mean(0)).norm(dim=-1).max())


def judged(updates: Sequence[Update], truth: dict[str, torch.Tensor], focal: float) -> dict[str, Any]:
    """All that is said of a pass over a sequence."""
    posed = [update for update in updates if update.world_from_cam is not None]
    lens = {"focal_found": round(float(posed[-1].K[0, 0]), 1) if posed else None, "focal_true": round(focal, 1)}
    return errors(updates, truth) | wrong_frames(updates, truth) | lens | timing(updates)


def timing(updates: Sequence[Update]) -> dict[str, Any]:
    """Seconds from capture to pose, of all frames (the first, which may wait for compilation, left out)."""
    latency = np.array([update.latency for update in updates[1:]])
    return {
        "frames": len(updates),
        "latency_median_ms": round(1000 * float(np.median(latency)), 2),
        "latency_p95_ms": round(1000 * float(np.quantile(latency, 0.95)), 2),
        "poses_per_second": round(len(latency) / float(latency.sum()), 2),
        "dropped": sum(update.dropped for update in updates),
        "states": {state: sum(u.status == state for u in updates) for state in sorted({u.status for u in updates})},
    }


def measure(
    name: str,
    opened: OpenMap,
    frames: list[tuple[str, np.ndarray]],
    truth: dict[str, torch.Tensor],
    focal: float,
    fps: float,
) -> dict[str, Any]:
    """Both passes over the frames."""
    with torch.inference_mode():
        every = list(track(Files(tuple(frames), name), scene=opened))
        live = list(track(Files(tuple(frames), name), scene=opened, capture=CaptureSettings(fps=fps)))
    return {
        "method": opened.locator.name,
        "map_bytes": opened.bytes,
        "size": f"{frames[0][1].shape[1]}x{frames[0][1].shape[0]}",
        "every_frame": judged(every, truth, focal),
        f"real_time_{fps:g}_per_second": judged(live, truth, focal),
    }


def soak(name: str, opened: OpenMap, frames: list[tuple[str, np.ndarray]], count: int) -> dict[str, Any]:
    """Loops the frames until ``count`` were tracked, trajectory on disk: resident memory (MiB) and latency (ms) of each
    thousand, and the slopes of straight lines through them, the first thousand (compilation, caches) left out."""
    rows: list[dict[str, float]] = []
    latency: list[float] = []
    page = os.sysconf("SC_PAGE_SIZE")
    updates = track(Files(tuple(frames), name), scene=opened, capture=CaptureSettings(loop=True))
    with tempfile.TemporaryDirectory() as scratch, Trajectory(scratch) as trajectory, torch.inference_mode():
        for number, update in enumerate(updates, start=1):
            trajectory.add(update)
            latency.append(update.latency)
            if number % SOAK_PART == 0 or number == count:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
                ms = 1000 * np.array(latency)
                row = {"frames": number, "memory_mib": round(resident, 1)}
                row |= {"median_ms": round(float(np.median(ms)), 2), "p95_ms": round(float(np.quantile(ms, 0.95)), 2)}
                rows.append(row)
                print(row, flush=True)
                latency.clear()
            if number >= count:
                break
    updates.close()
    return {"frames": count, "parts": rows, **slopes(rows)}


def slopes(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """MiB and milliseconds gained per thousand frames, by least squares."""
    later = rows[1:]
    if len(later) < 3:
        return {}
    at = np.array([row["frames"] for row in later]) / 1000
    return {
        f"{name}_per_1000": round(float(np.polyfit(at, [row[key] for row in later], 1)[0]), 4)
        for name, key in (("memory_mib", "memory_mib"), ("latency_ms", "median_ms"))
    }


def soak_frames(text: str, fps: float) -> int:
    """``20000`` frames, or ``60min`` of frames at the sequence's rate."""
    return round(60 * fps * float(text.removesuffix("min"))) if text.endswith("min") else int(text)


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One sequence."""
    data, keep = arguments.data, arguments.keep
    plan = replace(SEQUENCES[name], fps=arguments.fps or SEQUENCES[name].fps)
    frames = read_frames(data / name, plan)
    listed = read_cameras_json(data / name).pictures
    truth = {item.name: item.world_from_cam.double() for item in listed if item.world_from_cam is not None}
    truth |= {f"{Path(item).stem}.png": pose for item, pose in truth.items()}
    lens = lens_of(listed)
    if arguments.bootstrap:
        return bootstrap(name, *other_lens(frames, lens, arguments), truth, arguments, plan.fps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (keep or Path(scratch)) / name
        folder.mkdir(parents=True, exist_ok=True)
        posed = arguments.posed or plan.posed
        # References are often at round frame numbers: those are to be tracked, not mapped.
        first = 0 if posed else plan.every // 2
        made, seconds = reconstruct(
            frames[first :: plan.every], folder, data / name / "cameras.json" if posed else None
        )
        start = time.monotonic()
        opened = open_map(made, arguments.method, model=arguments.model, say=print)
        building = time.monotonic() - start
        rest = [frame for index, frame in enumerate(frames) if index % plan.every != first]
        out = measure(name, opened, rest, truth, straight_focal(lens, rest), plan.fps)
        if arguments.soak:
            out["soak"] = soak(name, opened, rest, soak_frames(arguments.soak, plan.fps))
    about = {"every": plan.every, "posed": posed, "reconstruct_seconds": round(seconds, 1)}
    return {**about, "map_seconds": round(building, 1), **out}


def procedural(arguments: argparse.Namespace) -> dict[str, Any]:
    """A walk past made-up things: exact poses. Half of the pictures make the map."""
    config = ProceduralConfig(height=480, width=640, views=60, difficulty=0.4, rigs=("walk",), kinds=("room",), blur=1)
    # Some scenes zoom from picture to picture, which a camera that is tracked does not.
    small = replace(config, height=12, width=16)
    seed = next(seed for seed in range(11, 99) if one_lens(procedural_views([seed], small).K[0]))
    made = procedural_views([seed], config)
    cameras = made.cameras(0)
    truth = {f"{k:06d}.png": cameras.world_from_cam[k].double() for k in range(config.views)}
    lens = GivenLens(K=focal_and_center(cameras.K[0]))
    if arguments.bootstrap:
        every = [(f"{k:06d}.png", made.rgb[0, k].numpy()) for k in range(config.views)]
        return bootstrap("procedural", *other_lens(every, lens, arguments), truth, arguments, 10)
    views = [
        View(
            f"{k:06d}.png",
            made.rgb[0, k],
            Original(f"{k:06d}.png", 480, 640, cameras.K[k].double()),
            cameras[k].to(torch.float64),
        )
        for k in range(0, config.views, 2)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        Scene(tuple(views), source="procedural", posed_by="input").save(scratch)
        start = time.monotonic()
        opened = open_map(scratch, arguments.method, model=arguments.model, say=print)
        seconds = time.monotonic() - start
        frames = [(f"{k:06d}.png", made.rgb[0, k].numpy()) for k in range(1, config.views, 2)]
        out = {
            "map_seconds": round(seconds, 1),
            **measure("procedural", opened, frames, truth, straight_focal(lens, frames), 10),
        }
        if arguments.soak:
            out["soak"] = soak("procedural", opened, frames, soak_frames(arguments.soak, 10))
        return out


def bootstrap(
    name: str,
    frames: list[tuple[str, np.ndarray]],
    lens: GivenLens,
    truth: dict[str, torch.Tensor],
    arguments: argparse.Namespace,
    fps: float,
) -> dict[str, Any]:
    """All frames without a map, as files (each waits for its map) and in real time."""
    known = not arguments.unknown_lens
    assert lens.K is not None
    focal = straight_focal(lens, frames) if known else lens.K[0]  # an unknown lens keeps size and focal length
    out: dict[str, Any] = {"method": "classical, own map", "lens": "known" if known else "unknown"}
    for label, rate in (("every_frame", None), (f"real_time_{fps:g}_per_second", fps)):
        with ClassicalSession(known_lens=known) as session, torch.inference_mode():
            reader, capture = Files(tuple(frames), name), CaptureSettings(fps=rate)
            updates = list(track(reader, scene=session, lens=lens if known else None, capture=capture))
            about: dict[str, Any] = {"keyframes": session.keyframes, "lens_line": session.lens_line}
            session.finish()
            stand = session.keyframe_poses()
        unit = {number: root_of(number, session.joins)[1].scale for number in {update.map for update in updates}}
        ends = [finished(u.anchor, unit[u.map], stand) if u.anchor else None for u in updates]
        final = [replace(update, world_from_cam=pose) for update, pose in zip(updates, ends, strict=True)]
        about["finished"] = errors(final, truth) | wrong_frames(final, truth)
        maps = {update.map for update in updates if update.world_from_cam is not None}
        first = next((k for k, update in enumerate(updates) if update.status == "tracking"), len(updates))
        updates, apart = one_frame(updates, session.joins)
        about |= {"first_pose": first, "maps": len(maps), "joined": len(session.joins), "in_no_common_frame": apart}
        out[label] = judged(updates, truth, focal) | about
    return out


def other_lens(
    frames: list[tuple[str, np.ndarray]], lens: GivenLens, arguments: argparse.Namespace
) -> tuple[list[tuple[str, np.ndarray]], GivenLens]:
    """The frames as ``--bend`` and ``--crop`` ask, and their lens."""
    if arguments.bend and any(lens.distortion):
        raise InputError(
            "--bend", "a sequence whose lens is bent already", "choose hololens_a or pavilion_chair_midday"
        )
    height, width = frames[0][1].shape[:2]
    assert lens.K is not None
    fx, fy, cx, cy = lens.K
    top, left, table = 0, 0, None
    if arguments.bend:
        y, x = np.mgrid[:height, :width] + 0.5
        xy, K = np.stack([x.ravel(), y.ravel()], axis=1), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        table = straight(xy, K, arguments.bend).reshape(height, width, 2)
        inside = ((table > 0.5) & (table < np.array([width, height]) - 0.5)).all(axis=2)
        while not inside[top : height - top, left : width - left].all():  # what the straight frames do not show
            left, top = left + 2, (left + 2) * height // width
    left += round(width * (1 - arguments.crop / 100) / 2)
    top += round(height * (1 - arguments.crop / 100) / 2)
    middle = slice(top, height - top), slice(left, width - left)
    made = [(name, (pixels if table is None else sampled(pixels, table))[middle].copy()) for name, pixels in frames]
    bend = (arguments.bend, 0.0, 0.0, 0.0) if arguments.bend else lens.distortion
    return made, GivenLens(K=(fx, fy, cx - left, cy - top), distortion=bend)


def sampled(pixels: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """A picture's colours at some places (x right, y down, pixel centres at halves), bilinear."""
    height, width = pixels.shape[:2]
    at = torch.from_numpy(2 * xy / np.array([width, height]) - 1).float()[None]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    out = torch.nn.functional.grid_sample(image, at, align_corners=False, padding_mode="border")
    return (out[0].permute(1, 2, 0) + 0.5).byte().numpy()


def one_frame(updates: Sequence[Update], joins: Joins) -> tuple[list[Update], int]:
    """The updates with their poses in the frame that most of them are in or were brought to; how many stay outside,
    without a pose."""
    roots = [root_of(update.map, joins) for update in updates]
    posed = [root for (root, _), update in zip(roots, updates, strict=True) if update.world_from_cam is not None]
    main = max(sorted(set(posed)), key=posed.count, default=0)
    out = []
    for (root, similarity), update in zip(roots, updates, strict=True):
        pose = update.world_from_cam if root == main else None
        out.append(replace(update, world_from_cam=None if pose is None else similarity.apply_to_poses(pose)))
    return out, len(posed) - posed.count(main)


def lens_of(listed: Sequence[Any]) -> GivenLens:
    """The lens that a sequence's pictures share, by its reference: with its distortion, or the map bends."""
    item = next(item for item in listed if item.K is not None)
    return GivenLens(K=focal_and_center(item.K), distortion=tuple(item.distortion))


def straight_focal(lens: GivenLens, frames: Sequence[tuple[str, np.ndarray]]) -> float:
    """The focal length in the frames' pixels once the lens's distortion is taken out of them."""
    assert lens.K is not None
    fx, fy, cx, cy = lens.K
    K = (fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0)
    return float(Straighten(Lens(*frames[0][1].shape[:2], K, lens.distortion)).K[0, 0])


def one_lens(K: torch.Tensor) -> bool:
    """Whether all views have the same intrinsics."""
    return bool(torch.allclose(K, K[:1].expand_as(K)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="*", default=[*SEQUENCES, "procedural"])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "dev")
    parser.add_argument("--method", default="classical", choices=["classical", "kv", "student", "auto"])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--posed", action="store_true", help="maps from the reference's cameras, not from SfM")
    parser.add_argument("--keep", type=Path, help="keep the reconstructions here, and go on from them")
    parser.add_argument("--soak", default="", help="loop so many frames (20000), or minutes of them (60min)")
    parser.add_argument("--bootstrap", action="store_true", help="no map: it is made on the way (exact lens given)")
    parser.add_argument("--unknown-lens", action="store_true", help="with --bootstrap: K is found on the way too")
    parser.add_argument("--fps", type=float, help="frames a second of the real-time pass")
    parser.add_argument("--bend", type=float, default=0.0, help="with --bootstrap: bend the frames by this k1")
    parser.add_argument("--crop", type=float, default=100.0, help="with --bootstrap: percent of the frames' middle")
    parser.add_argument("--output", type=Path, default=HERE / "track.json")
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name in arguments.sequences:
        way = arguments.method
        if arguments.bootstrap:
            way = "bootstrap unknown lens" if arguments.unknown_lens else "bootstrap"
            way += f" bent {arguments.bend:g}" if arguments.bend else ""
            way += f" middle {arguments.crop:g} %" if arguments.crop < 100 else ""
            way += f" at {arguments.fps:g}" if arguments.fps else ""
        key = f"{name} {way}"
        try:
            result = procedural(arguments) if name == "procedural" else run(name, arguments)
        except (InputError, subprocess.CalledProcessError) as error:
            result = {"failed": str(error)}
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        results[key] = {**result, **machine, "load": round(os.getloadavg()[0], 1)}
        print(key, json.dumps(result, indent=1))
        write_bytes(arguments.output, json.dumps(results, indent=1, sort_keys=True).encode())


if __name__ == "__main__":
    main()
