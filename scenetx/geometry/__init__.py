"""Cameras and points from pictures without a learned model, and the alignments between frames."""
