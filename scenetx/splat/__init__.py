"""Rendering Gaussians: one door, `rasterize`, and three backends behind it that agree."""

from scenetx.splat.rasterize import Backend, rasterize, resolve_backend
from scenetx.splat.stats import ScreenStats

__all__ = ["Backend", "ScreenStats", "rasterize", "resolve_backend"]
