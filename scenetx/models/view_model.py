"""View synthesis as one interface: ``encode(views) -> SceneState``, ``decode(state, cameras | rays | latents)``.

Pictures are sRGB in [0, 1], channels last. Batches of scenes are flat and scene-major: ``n = scenes * views``. All
views of one `Views` share a picture size; a list of `Views` mixes sizes and lenses within one scene.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, InputError
from scenetx.models.rays import Frame, Rays, camera_rays, check_cameras, world_frame
from scenetx.models.scene_state import SceneState


@dataclass(frozen=True)
class Views:
    """Pictures of ``scenes`` scenes, equally many of each, with their cameras (None where a model needs none)."""

    images: Float[Tensor, "n h w 3"]
    cameras: Cameras | None = None
    scenes: int = 1

    def __len__(self) -> int:
        return len(self.images)

    @property
    def each(self) -> int:
        """Views a scene."""
        return len(self.images) // self.scenes

    def checked(self, *, posed: bool) -> Views:
        """Itself, or an InputError that says what is wrong with it."""
        if len(self.images) == 0 or self.scenes < 1:
            raise InputError("views", "there are none", "give at least one picture with its camera")
        if len(self.images) % self.scenes:
            raise InputError("views", f"{len(self.images)} for {self.scenes} scenes", "give each scene equally many")
        if not bool(self.images.isfinite().all()):
            raise InputError("views", "a picture holds NaN or infinity", "give values in [0, 1]")
        if self.cameras is None:
            if posed:
                raise InputError("views", "no cameras", "this model needs posed pictures")
            return self
        shape = tuple(self.images.shape[1:3])
        if len(self.cameras) != len(self.images) or (self.cameras.height, self.cameras.width) != shape:
            stated = f"{len(self.cameras)} cameras of {self.cameras.height} x {self.cameras.width}"
            raise InputError(
                "views", f"{stated} for {len(self.images)} pictures of {shape[0]} x {shape[1]}", "match them"
            )
        check_cameras(self.cameras, "views")
        return self


@dataclass(frozen=True)
class LatentViews:
    """``n`` views named by what a model estimated of them, not by cameras; pictures of ``height`` x ``width``."""

    latents: Float[Tensor, "n k"]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.latents)


Where = Cameras | Rays | LatentViews


def size_of(where: Where) -> tuple[int, int]:
    """Height and width of the pictures that are asked for."""
    if isinstance(where, Rays):
        return where.origins.shape[1], where.origins.shape[2]
    return where.height, where.width


@dataclass(frozen=True)
class Inputs:
    """What the encoder reads of some views: the rows of `SceneState` of the same names."""

    sizes: tuple[int, ...]
    tokens: Mapping[str, Tensor]
    poses: Mapping[str, Tensor]


class ViewModel(nn.Module, ABC):
    """Pictures to a state, a state and cameras to pictures.

    Subclasses say how views become rows (`tokenise`), how rows become memory (`remember`) and how memory becomes
    pictures (`paint`); all three work in the model's frame.
    """

    name: ClassVar[str]
    posed: ClassVar[bool] = True
    """Whether context views need cameras."""
    separable: bool = False
    """Whether a view's memory depends on that view alone: `append` then costs the same at any number of views."""
    config: Any

    @abstractmethod
    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        """Where the model sees scenes whose context views these are."""

    @abstractmethod
    def tokenise(self, views: Views) -> Inputs:
        """Rows of views that are in the model's frame."""

    @abstractmethod
    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        """The decoder's memory of all views together (of these views, where separable)."""

    @abstractmethod
    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        """Pictures at cameras or rays that are in the model's frame."""

    def kept(self, inputs: Inputs) -> Inputs:
        """The rows a state must keep to be extended later."""
        return Inputs(inputs.sizes, {}, {}) if self.separable else inputs

    def encode(self, views: Views | Sequence[Views], frame: Frame | None = None) -> SceneState:
        """Context views to a state. ``frame`` overrides the one found from these views' cameras.

        Raises InputError for zero views, cameras that are not rigid, NaN intrinsics or pictures.
        """
        return self._encode(views, frame, self.identity())

    def _encode(self, views: Views | Sequence[Views], frame: Frame | None, made_by: str) -> SceneState:
        groups = [group.checked(posed=self.posed) for group in ([views] if isinstance(views, Views) else views)]
        if not groups:
            raise InputError("views", "there are none", "give at least one picture with its camera")
        scenes = groups[0].scenes
        if any(group.scenes != scenes for group in groups) or (len(groups) > 1 and scenes > 1):
            raise InputError("views", "mixed sizes in a batch of scenes", "encode such scenes one by one")
        frame = self._frame(groups, scenes) if frame is None else frame
        parts = [self.tokenise(_in_frame(group, frame)) for group in groups]
        inputs = Inputs(
            tuple(size for part in parts for size in part.sizes),
            {name: torch.cat([part.tokens[name] for part in parts], 1) for name in parts[0].tokens},
            {name: torch.cat([part.poses[name] for part in parts], 1) for name in parts[0].poses},
        )
        kept = self.kept(inputs)
        memory = self.remember(inputs)
        return SceneState(made_by, scenes, frame, inputs.sizes, memory, kept.tokens, kept.poses, self.separable)

    def append(self, state: SceneState, views: Views | Sequence[Views]) -> SceneState:
        """The state with more views, in its own frame. Equals encoding all of them at once in that frame."""
        self._own(state)
        more = [views] if isinstance(views, Views) else list(views)
        if self.separable:
            return state.inputs_joined(self.encode(more, state.frame))
        more = [group.checked(posed=self.posed) for group in more]
        for group in more:
            part = self.tokenise(_in_frame(group, state.frame))
            joined = SceneState(state.made_by, group.scenes, state.frame, part.sizes, {}, part.tokens, part.poses)
            state = state.inputs_joined(joined)
        return self._again(state)

    def drop(self, state: SceneState, view: int) -> SceneState:
        """The state without one of its views: the same as never having encoded it, in the state's frame."""
        self._own(state)
        rest = state.inputs_without(view)
        return rest if self.separable else self._again(rest)

    def decode(self, state: SceneState, where: Where, at_once: int | None = None) -> Float[Tensor, "n h w 3"]:
        """Pictures from new cameras, rays (world frame, any size, any number) or latents, scene-major.

        Values may leave [0, 1]. ``at_once`` bounds the targets painted together (memory) and changes nothing else.
        """
        self._own(state)
        return self._decode(state, where, at_once)

    def _decode(self, state: SceneState, where: Where, at_once: int | None = None) -> Float[Tensor, "n h w 3"]:
        if len(where) == 0 or len(where) % state.scenes:
            raise InputError("targets", f"{len(where)} for {state.scenes} scenes", "give each scene equally many")
        if isinstance(where, Cameras):
            check_cameras(where, "targets")
        there = _placed(where, state.frame)
        if at_once is None or state.scenes > 1 or len(there) <= at_once:
            return self.paint(state.memory, there, state.scenes)
        parts = [_part(there, start, at_once) for start in range(0, len(there), at_once)]
        return torch.cat([self.paint(state.memory, part, 1) for part in parts])

    def forward(self, views: Views, targets: Where, frame: Frame | None = None) -> Float[Tensor, "n h w 3"]:
        """Encode and decode in one go, differentiably: what training calls."""
        return self._decode(self._encode(views, frame, ""), targets)

    def placed(self, where: Where) -> Cameras | Rays:
        """Targets that lie in space. Raises TypeError for latents, which only some models know."""
        if isinstance(where, LatentViews):
            raise TypeError(f"{self.name} paints cameras or rays, not latents")
        return where

    def rays_of(self, where: Where) -> Rays:
        """One ray a pixel."""
        there = self.placed(where)
        return camera_rays(there) if isinstance(there, Cameras) else there

    def identity(self) -> str:
        """Model, settings and weights in a short text; states carry it. Recomputed only when the weights changed."""
        tensors = list(self.state_dict(keep_vars=True).items())
        # Tensors made in inference mode do not count their changes: such weights are read every time.
        counted = not any(value.is_inference() for _, value in tensors)
        stamp = tuple((value.data_ptr(), value._version) for _, value in tensors) if counted else ()
        known: tuple[Any, str] | None = getattr(self, "_identity", None)
        if known is None or not counted or known[0] != stamp:
            digest = hashlib.sha256()
            settings = asdict(self.config)
            digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
            for name, value in tensors:
                # A few values of each tensor tell two trainings apart and cost nothing.
                sample = value.detach().flatten()[:: max(1, value.numel() // 16)].float().cpu()
                digest.update(f"{name}{tuple(value.shape)}{sample.tolist()}".encode())
            known = (stamp, f"{self.name}:{digest.hexdigest()[:16]}")
            self._identity = known
        return known[1]

    def _frame(self, groups: Sequence[Views], scenes: int) -> Frame:
        sizes = [group.cameras for group in groups if group.cameras is not None]
        if not sizes:
            return world_frame(scenes)
        poses = torch.cat([cameras.world_from_cam.double() for cameras in sizes])
        K = torch.cat([cameras.K.double() for cameras in sizes])
        return self.frame_of(Cameras(poses, K, sizes[0].height, sizes[0].width), scenes)

    def _again(self, state: SceneState) -> SceneState:
        return replace(state, memory=self.remember(Inputs(state.sizes, state.tokens, state.poses)))

    def _own(self, state: SceneState) -> None:
        mine = self.identity()
        if state.made_by != mine:
            raise InputError(
                "scene state", f"made by {state.made_by}, not by {mine}", "encode the views with this model"
            )


def _in_frame(views: Views, frame: Frame) -> Views:
    return replace(views, cameras=frame.of_cameras(views.cameras)) if views.cameras is not None else views


def _placed(where: Where, frame: Frame) -> Where:
    if isinstance(where, Cameras):
        return frame.of_cameras(where)
    return frame.of_rays(where) if isinstance(where, Rays) else where


def _part(where: Where, start: int, count: int) -> Where:
    if isinstance(where, Cameras):
        return where[start : start + count]
    if isinstance(where, LatentViews):
        return replace(where, latents=where.latents[start : start + count])
    return Rays(where.origins[start : start + count], where.directions[start : start + count])
