"""The stories: what a person asks for, told as a walk through the rooms below."""

from scenetx.pipeline.export import export
from scenetx.pipeline.reconstruct import ReconstructSettings, reconstruct
from scenetx.pipeline.render import render, render_path
from scenetx.pipeline.score import evaluate

__all__ = ["ReconstructSettings", "evaluate", "export", "reconstruct", "render", "render_path"]
