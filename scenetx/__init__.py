"""scenetx: photos, a video or a webcam to cameras, geometry, Gaussian splats and a page that shows them."""

__version__ = "0.1.0"
