"""Tracking without a map: the first frames make one, and it grows while the camera moves.

    with open_session("da3-small") as session:          # a name whose weights are here, or a weight file
        for update in scenetx.track("0", scene=session):  # a `Locator`: None until the first map is there (init)
            session.added, session.keyframes, session.K  # of the last frame: became a keyframe?; map size; intrinsics
        session.finish()                                 # wait for the map that is being built, and take it
        session.save(folder)                             # the KV map; session.scene().save(folder) = a scene folder

`open_kv(scene_or_folder, model)` is the other door: a fixed map of an earlier scene, or one that `save` wrote.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import InputError, Points, Scene
from scenetx.io.scene_dir import load_scene
from scenetx.live.classical_map import FOLDER
from scenetx.live.kept import scene_mark
from scenetx.live.keyframes import Keyframe, coloured_points, judge, thinned
from scenetx.live.kv_map import CELL, KEYFRAMES_FILE, SPARE, Eye, KvMap, at_home, build_map, open_eye, unplaced
from scenetx.live.kv_tracker import KvSettings, KvTracker, Placed, located, map_scene, place
from scenetx.live.mapper import Mapper
from scenetx.live.update import Located
from scenetx.models.pictures import to_model, window_for

LIVE_SIDE = 308
"""Longest side of what the model looks at while tracking: KV-Tracker's; a third of the work at the published 504."""


@dataclass(frozen=True)
class SessionSettings:
    """How a map begins and grows."""

    kv: KvSettings = field(default_factory=KvSettings)
    first: int = 3
    """Pictures of the first map."""
    change: float = 0.06
    """How much of its brightness a picture has to change (mean, 0 to 1) to be another one for the first map."""
    patience: int = 15
    """Frames after which the first map is made of what there is: a camera may stand still."""
    misfit: float = 0.15
    """A new map whose known keyframes lie farther off than this (see `align`) is not taken; its newcomers go."""
    rest: int = 5
    """Frames without growth after a map was turned away; twice as many after each further one."""
    largest: int = 1280
    """Longest side in which keyframes are kept."""


@dataclass(frozen=True)
class Wish:
    """What a new map is to be made of."""

    keyframes: tuple[Keyframe, ...]
    known: tuple[bool, ...]
    size: tuple[int, int]


class KvSession:
    """A `Locator` that builds its own map. The world is the first keyframe's camera, in the model's unit.

    Every answer comes from a whole map; a new keyframe is usable at once (its keys join the map in use), while the map
    with full attention over all keyframes is built beside and takes its place, aligned to the old keyframes.
    """

    def __init__(self, eye: Eye, settings: SessionSettings | None = None) -> None:
        self.eye, self.settings = eye, settings or SessionSettings()
        self.name = f"kv {eye.name}"
        self.added = False
        self.map: KvMap | None = None
        self._first: list[Keyframe] = []
        self._seen = 0
        self._refused, self._resume = 0, 0
        self._frame: UInt8[Tensor, "h w 3"] | None = None
        self._answer: Located | None = None
        self._mapper: Mapper[Wish, KvMap] = Mapper(self._build)

    @property
    def keyframes(self) -> int:
        """Pictures in the map now."""
        return 0 if self.map is None else len(self.map.keyframes)

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """Intrinsics (float64) for the frames' pixels, as the model sees them: the median over the keyframes.

        None before the first map, and for models that do not say.
        """
        if self.map is None or not self.eye.tells_focal:
            return None
        height, width = self.map.keyframes[0].picture.shape[:2] if self._frame is None else self._frame.shape[:2]
        grid = torch.stack([keyframe.grid_lens for keyframe in self.map.keyframes]).median(0).values
        of_model = torch.diag(grid.new_tensor([CELL, CELL, 1.0])) @ grid
        K = window_for(height, width, self.map.size).K_for_picture(of_model)
        # Pixels are square, and models put the principal point in the middle.
        K[0, 0] = K[1, 1] = (K[0, 0] + K[1, 1]) / 2
        K[0, 2], K[1, 2] = width / 2, height / 2
        return K

    @property
    def K_settled(self) -> bool:
        """The first map's `K` is kept: later ones differ by less than the model's own error."""
        return self.map is not None

    def locate(
        self,
        image: UInt8[Tensor, "h w 3"],
        K: Float[Tensor, "3 3"],
        guess: Float[Tensor, "4 4"] | None,  # noqa: ARG002
    ) -> Located | None:
        """See `Locator.locate`. None while the first pictures are gathered, and where the map does not answer.

        The same tensor again is the same frame: it is not looked at twice.
        """
        if image is not self._frame:
            self._frame = image
            self._answer = self._look(image, K)
        return self._answer

    def _look(self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Located | None:
        index, self._seen, self.added = self._seen, self._seen + 1, False
        note = self._take()
        if self.map is None:
            return self._begin(index, image, K)
        placed = place(self.eye, self.map, image, K)
        if placed is None or placed.confidence < self.settings.kv.hopeless:
            return None
        verdict = judge(placed.camera, placed.confidence, self.map.keyframes, self.settings.kv.keyframes)
        if verdict.kind == "new" and index >= self._resume and not self._mapper.busy:
            self._grow(self._keyframe(index, image, K, placed))
        return located(placed, note)

    def finish(self, timeout: float | int | None = None) -> bool:
        """Wait for the map that is being built, and take it. False: it took longer than ``timeout`` seconds."""
        done = self._mapper.settle(timeout)
        self._take()
        return done

    def save(self, folder: str | Path) -> Path:
        """Write the map (`KvMap.save`). Raises InputError before there is one."""
        return self._required().save(folder)

    def scene(self) -> Scene:
        """The keyframes as a scene. Raises InputError before there is a map."""
        return self._required().scene()

    def map_points(self) -> Points | None:
        """See `GrowsMap`: the keyframes' depth, a point a cell, as the model put it when each one joined the map."""
        return None if self.map is None else coloured_points(self.map.keyframes)

    def close(self) -> None:
        """End the mapper's thread."""
        self._mapper.close()

    def __enter__(self) -> KvSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _required(self) -> KvMap:
        if self.map is None:
            raise InputError("map", "none yet", "track a few frames first")
        return self.map

    def _build(self, wish: Wish) -> KvMap:
        return build_map(self.eye, wish.keyframes, wish.known, size=wish.size, dtype=self.settings.kv.dtype)

    def _begin(self, index: int, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Located | None:
        """Gather the first pictures; the map of them is made at once, for there is nothing else to do meanwhile."""
        frame = self._kept(index, image, K)
        if not self._first or _changed(self._first[-1].picture, frame.picture) > self.settings.change:
            self._first.append(frame)
        if len(self._first) < self.settings.first and index + 1 < self.settings.patience:
            return None
        known = [False] * len(self._first)
        self.map = build_map(self.eye, self._first, known, dtype=self.settings.kv.dtype)
        self._first, self.added = [], True
        placed = place(self.eye, self.map, image, K)
        return None if placed is None else located(placed, f"map of {self.keyframes} pictures")

    def _kept(self, index: int, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Keyframe:
        """A frame in the size in which keyframes are kept."""
        height, width = image.shape[:2]
        shrink = min(1.0, self.settings.largest / max(height, width))
        if shrink < 1:
            size = (round(height * shrink), round(width * shrink))
            channels = image.permute(2, 0, 1)[None].float()
            small = torch.nn.functional.interpolate(channels, size, mode="bilinear", antialias=True)[0]
            image = (small.permute(1, 2, 0) + 0.5).clamp(0, 255).to(torch.uint8)
            K = K.new_tensor([size[1] / width, size[0] / height, 1.0])[:, None] * K
        return unplaced(index, image.clone(), K)

    @torch.no_grad()
    def _keyframe(self, index: int, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], placed: Placed) -> Keyframe:
        """A placed frame as a keyframe; its depth comes with the next map, until then its neighbours speak for it."""
        frame = self._kept(index, image, K)
        rows, columns = placed.grey.shape
        return replace(
            frame,
            world_from_cam=placed.camera.world_from_cam[0],
            grid_lens=placed.camera.K[0],
            depth=torch.zeros(rows, columns),
            grey=placed.grey,
            confidence=placed.confidence,
        )

    def _grow(self, frame: Keyframe) -> None:
        """The frame joins the map in use, and a map of all keyframes is asked for."""
        before = self._required()
        self.map = self._joined(before, frame)
        keyframes = thinned([*before.keyframes, frame], self.settings.kv.keyframes)
        known = tuple(keyframe.index != frame.index for keyframe in keyframes)
        self._mapper.ask(Wish(tuple(keyframes), known, before.size))
        self.added = True

    @torch.no_grad()
    def _joined(self, kv_map: KvMap, frame: Keyframe) -> KvMap:
        """The map with one more picture behind it: it sees the map, the map does not see it. Full maps stay."""
        if kv_map.cache.views >= kv_map.cache.capacity:
            return kv_map
        image = _for_model(self.eye, frame, kv_map.size)
        geometry = at_home(self.eye.model.step(image.to(self.eye.device), kv_map.cache, dense=True, keep=True))
        if geometry.depth is not None:
            middle = CELL // 2
            rows, columns = frame.grey.shape
            depth = geometry.depth[0, middle::CELL, middle::CELL][:rows, :columns].float()
            depth = torch.where(depth.isfinite(), depth, 0.0).clamp_min(0) * kv_map.world_from_map.scale
            frame = replace(frame, depth=depth)
        return replace(kv_map, keyframes=(*kv_map.keyframes, frame))

    def _take(self) -> str:
        """Swap in a finished map; gives what there is to say."""
        fresh = self._mapper.take()
        trouble = self._mapper.trouble()
        if fresh is None or self.map is None:
            return trouble and f"no new map: {trouble}"
        names = {keyframe.index for keyframe in fresh.keyframes}
        if fresh.fit > self.settings.misfit:
            self._forget(names)
            self._refused += 1
            self._resume = self._seen + self.settings.rest * 2 ** min(self._refused, 6)
            return f"new map turned away: it fits the old one only to {fresh.fit:.2f}"
        # Keyframes that came after the wish join the new map as they joined the old one.
        newest, self._refused = max(names), 0
        for frame in [frame for frame in self.map.keyframes if frame.index > newest][-SPARE:]:
            fresh = self._joined(fresh, frame)
        self.map = fresh
        return f"map of {len(fresh.keyframes)} pictures"

    def _forget(self, wished: set[int]) -> None:
        """The newcomer of a map that did not fit leaves the map in use too."""
        assert self.map is not None
        newest = max(wished)
        kept = list(self.map.keyframes)
        for place_, frame in reversed(list(enumerate(kept))):
            if frame.index == newest and len(kept) > 1:
                self.map.cache.drop(place_)
                del kept[place_]
        self.map = replace(self.map, keyframes=tuple(kept))


def _for_model(eye: Eye, frame: Keyframe, size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    return to_model([frame.picture], eye.rule, size)[0][0]


def _changed(a: UInt8[Tensor, "h w 3"], b: UInt8[Tensor, "h w 3"]) -> float:
    """Mean difference of brightness in small, 0 to 1, each against its own mean."""
    small = [torch.nn.functional.adaptive_avg_pool2d(x.float().mean(-1)[None], (24, 32)) / 255 for x in (a, b)]
    return float(((small[0] - small[0].mean()) - (small[1] - small[1].mean())).abs().mean())


def open_session(
    model: str = "da3-small", *, weights: str = "hub", side: int = LIVE_SIDE, settings: SessionSettings | None = None
) -> KvSession:
    """A session that tracks without a map; arguments as in `open_eye`."""
    return KvSession(open_eye(model, weights=weights, side=side), settings)


def open_kv(
    where: Scene | str | Path,
    model: str = "da3-small",
    *,
    weights: str = "hub",
    side: int = LIVE_SIDE,
    settings: KvSettings | None = None,
) -> KvTracker:
    """A fixed map as a locator: of a scene (or its folder, where it is kept), or as `KvMap.save` wrote it.

    Raises InputError where `open_eye`, `KvMap.load`, `load_scene` or `map_scene` do.
    """
    if isinstance(where, Scene):
        eye = open_eye(model, weights=weights, side=side)
        return KvTracker(eye, map_scene(where, eye, settings), settings)
    if (Path(where) / KEYFRAMES_FILE).is_file():
        kv_map = KvMap.load(where)
        eye = open_eye(kv_map.model if weights == "hub" else model, weights=weights, side=side)
        kv_map = KvMap.load(where, device=eye.device) if eye.device != "cpu" else kv_map
        return KvTracker(eye, kv_map, settings)
    eye, scene = open_eye(model, weights=weights, side=side), load_scene(where)
    return KvTracker(eye, _kept_map(Path(where), scene, eye, settings or KvSettings()), settings)


def _kept_map(folder: Path, scene: Scene, eye: Eye, settings: KvSettings) -> KvMap:
    """The map in a scene's folder if it is of these cameras and made in this way; else it is made, and kept there."""
    source = scene_mark(scene, (settings, eye.rule))
    place_ = (folder.parent if folder.name == "scene.json" else folder) / FOLDER / f"kv-{eye.name}"
    if (place_ / KEYFRAMES_FILE).is_file():
        with contextlib.suppress(InputError):
            kept = KvMap.load(place_, device=eye.device)
            if kept.source == source and kept.model == eye.name:
                return kept
    made = replace(map_scene(scene, eye, settings), source=source)
    # A scene on a read-only or full disk can still be tracked in.
    with contextlib.suppress(OSError):
        made.save(place_)
    return made
