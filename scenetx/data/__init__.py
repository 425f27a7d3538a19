"""Data to learn from: endless procedural scenes with exact answers, shards of them, posed pictures on disk."""

from scenetx.data.procedural import ProceduralConfig, ProceduralViews, endless, procedural_views

__all__ = ["ProceduralConfig", "ProceduralViews", "endless", "procedural_views"]
