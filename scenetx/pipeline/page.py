"""A scene as a page that opens from disk, and its splats as the viewer takes them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from scenetx.core import Gaussians, Scene
from scenetx.io.spz import write_spz
from scenetx.serve.contents import Contents, ContentSettings, by_importance, describe, photos, point_data
from scenetx.serve.messages import SplatData
from scenetx.serve.page import write_viewer_page


def contents_of(scene: Scene, *, title: str = "", settings: ContentSettings | None = None) -> Contents:
    """All of the scene for a page that stands alone: splats as SPZ, points, thumbnails and photos."""
    return Contents(
        info=describe(scene, title=title, settings=settings),
        splats=None if scene.gaussians is None else splat_data(scene.gaussians),
        points=None if scene.points is None else point_data(scene.points, settings),
        photos=photos(scene, settings),
    )


def write_page(scene: Scene, path: str | Path, *, title: str = "", settings: ContentSettings | None = None) -> Path:
    """``viewer.html``: the scene in one file that opens from disk. A large scene has parts beside the page."""
    return write_viewer_page(contents_of(scene, title=title, settings=settings), path)[0]


def splat_data(gaussians: Gaussians) -> SplatData:
    """The Gaussians as SPZ, most important first."""
    ordered = gaussians.detach().to("cpu")[by_importance(gaussians).cpu()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splats.spz"
        write_spz(ordered, path)
        return SplatData(len(ordered), ordered.antialiased, "spz", path.read_bytes())
