"""Rendering Gaussians: one door, three backends."""
