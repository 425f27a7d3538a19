"""The contract of the room: what a source gives, what a map answers, what a tracker yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import Points, Sim3

# init: no pose yet. tracking: sure. unsure: the pose may be off, or is predicted. lost: no pose. relocalised: the first
# pose after a loss (the next is `tracking`).
Status = Literal["init", "tracking", "unsure", "lost", "relocalised"]


@dataclass(frozen=True)
class Frame:
    """One picture of a source, upright."""

    index: int  # number in the source, dropped frames counted
    time: float  # seconds since the source began: the video's own clock, or when a camera's picture arrived
    image: UInt8[Tensor, "h w 3"]  # sRGB
    name: str = ""  # the file, for folders
    dropped: int = 0  # frames skipped between the last one given and this one
    captured: float | None = None  # `time.perf_counter()` when the picture was there; None = no live clock
    note: str = ""  # what the source has to say: black, frozen, reconnected, ...


@dataclass(frozen=True)
class Anchor:
    """Where a frame was, as a keyframe near it saw it: what stays when keyframes are moved later."""

    name: str
    keyframe_from_cam: Float[Tensor, "4 4"]  # float64, in the unit of the map that the frame was placed in


KeyframePoses = Mapping[str, Float[Tensor, "4 4"]]
"""world_from_cam (float64) of keyframes by name."""


@dataclass(frozen=True)
class Located:
    """Where a picture was taken, as a map sees it."""

    world_from_cam: Float[Tensor, "4 4"]  # float64, in the map's frame and scale
    confidence: float  # 0 (a guess) to 1 (certain)
    matches: int = 0  # correspondences tried, for maps that have some
    inliers: int = 0  # and how many of them agree with the pose
    note: str = ""
    K: Float[Tensor, "3 3"] | None = None  # intrinsics that explain the picture better than those given, if any do;
    zooms: bool = False  # much better: the lens has zoomed, and the pose holds under `K`
    map: int = 0  # number of the map whose frame the pose is in, for a locator that has several (`ManyMaps`)
    rough: bool = False  # the map's lens is still being looked for: the pose is about right
    image: UInt8[Tensor, "h w 3"] | None = None  # the picture as it was placed, if the locator straightened it
    anchor: Anchor | None = None  # of a map whose keyframes may be moved yet


@runtime_checkable
class Locator(Protocol):
    """A map that can place pictures. `track.Tracker` turns the answers into states, whatever the map is."""

    name: str  # for people: "classical", "kv da3-small", "student"

    def locate(
        self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """One undistorted picture against the map; None = it cannot say (not here, nothing to see).

        ``K`` is in the picture's pixels. ``guess`` is where the motion so far puts the camera, and may be used or not;
        None asks for a global search. A locator may keep state between calls, but an answer for ``guess=None`` must
        not depend on earlier pictures.
        """
        ...


@runtime_checkable
class KnowsFocal(Protocol):
    """A `Locator` that can tell the focal length of a picture of its scene."""

    def estimate_K(self, image: UInt8[Tensor, "h w 3"]) -> tuple[Float[Tensor, "3 3"], int] | None:
        """Intrinsics (float64) of an undistorted picture, and how many matches speak for them; None = it cannot say."""
        ...


@runtime_checkable
class TellsK(Protocol):
    """A `Locator` that finds the camera's intrinsics while it tracks."""

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """Intrinsics (float64) of the pictures given; None before it knows."""
        ...

    @property
    def K_settled(self) -> bool:
        """Whether `K` will not change any more: the tracker then keeps it."""
        ...


@runtime_checkable
class TellsLens(Protocol):
    """A `Locator` that finds the whole lens while it tracks, and straightens pictures itself."""

    @property
    def lens_line(self) -> str:
        """What is known of the lens, for people; empty before anything is."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A `Locator` that answers nothing while it catches up with the frames it was given."""

    @property
    def preparing(self) -> str:
        """What it is at, for people; empty when it is not."""
        ...


@runtime_checkable
class GrowsMap(Protocol):
    """A `Locator` whose map is made on the way."""

    def map_points(self) -> Points | None:
        """The map as it is; None before there is one."""
        ...


@runtime_checkable
class ManyMaps(Protocol):
    """A `Locator` that begins another map, in its own frame, where the camera is lost, and joins maps that meet."""

    @property
    def opening(self) -> bool:
        """Whether pictures are being gathered for a map to begin with."""
        ...

    @property
    def joins(self) -> Mapping[int, tuple[int, Sim3]]:
        """Of maps that are part of another one now: its number, and the similarity from their frame to its frame."""
        ...


@runtime_checkable
class MovesKeyframes(Protocol):
    """A `Locator` whose keyframes are moved while it tracks: by loops that close, a lens that is known better."""

    def keyframe_poses(self) -> KeyframePoses:
        """All keyframes of the map that is kept, as they stand now; those that were dropped as redundant, too."""
        ...


@dataclass(frozen=True)
class Update:
    """What a tracker says of one frame."""

    index: int
    time: float  # seconds, the source's clock
    status: Status
    world_from_cam: Float[Tensor, "4 4"] | None  # float64; None in init and lost
    K: Float[Tensor, "3 3"]  # float64, of the frame without its lens's distortion: of `image`
    confidence: float  # 0..1
    added: bool = False  # this frame became a keyframe of the map
    keyframes: int = 0  # pictures in the map now
    latency: float = 0.0  # seconds from capture (the picture is there) to this pose
    dropped: int = 0  # frames skipped since the last update
    note: str = ""
    locator: str = ""  # name of the map that answered
    image: UInt8[Tensor, "h w 3"] | None = None  # the frame, its lens's distortion removed, for viewers
    name: str = ""  # the frame's file name, if it has one
    map: int = 0  # number of the map whose frame `world_from_cam` is in (`ManyMaps.joins` says how maps lie)
    anchor: Anchor | None = None  # of a map whose keyframes may be moved yet: what the last word on this frame hangs on
