"""The numbers every backend shares. They are gsplat's, so that a scene means the same everywhere."""

from __future__ import annotations

LOW_PASS = 0.3  # pixels^2 added to the diagonal of every screen covariance
MIN_ALPHA = 1 / 255  # a splat fainter than this at a pixel is not there
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4  # a pixel stops before the splat that would bring it to this or below
FRUSTUM_MARGIN = 0.3  # the Jacobian is taken at most this share of the half picture outside of it
MIN_QUAT_NORM = 1e-12
