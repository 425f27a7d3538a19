"""Optimising splats to pictures."""
