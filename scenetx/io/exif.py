"""What EXIF says about the camera: which way is up, focal length, capture time. Broken EXIF says nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from PIL import Image

ORIENTATION = 274
_MAKE, _MODEL, _DATE = 271, 272, 306
_EXIF_FOLDER = 0x8769
_DATE_TAKEN, _OFFSET_TAKEN, _SUBSECONDS_TAKEN = 36867, 36881, 37521
_FOCAL_MM, _FOCAL_35MM = 37386, 41989
_PLANE_X, _PLANE_UNIT, _FULL_WIDTH = 41486, 41488, 40962
_LENS_MODEL = 42036

# EXIF 2.32: 2 = inch, 3 = centimetre; 4 and 5 (millimetre, micrometre) are in use though not in the standard.
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_DIAGONAL_35MM = math.hypot(36.0, 24.0)

# What Pillow raises on EXIF blocks that are cut off, of wrong type or that point outside themselves.
_BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, SyntaxError, OverflowError,
           ZeroDivisionError, ArithmeticError, RuntimeError, EOFError)  # fmt: skip


@dataclass(frozen=True)
class Exif:
    """What a picture file says about how it was taken. ``focal`` is in pixels of the stored (= upright) picture."""

    orientation: int = 1
    focal: float | None = None
    camera: str = ""
    time: float | None = None


def orientation_of(image: Image.Image) -> int:
    """EXIF tag 274, 1 to 8; 1 where it is missing, broken or out of range."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return int(value) if int(value) in range(1, 9) else 1
    except _BROKEN:
        return 1


def read_exif(image: Image.Image, width: int, height: int) -> Exif:
    """The EXIF of an opened picture whose size is ``width`` x ``height`` pixels.

    Focal length, in pixels: from FocalLengthIn35mmFilm, as ``f35 / 43.27 mm * picture diagonal``. EXIF defines that tag
    by the diagonal (CIPA DCG-001), and so does COLMAP; with the longer side instead, a 4:3 sensor comes out 4 % short.
    Otherwise from FocalLength with FocalPlaneXResolution, which counts pixels of the full picture (PixelXDimension), so
    a picture made smaller later is allowed for. A picture that was cropped later is not: no tag tells. None = not said.
    """
    try:
        top = image.getexif()
        taken = top.get_ifd(_EXIF_FOLDER)
    except _BROKEN:
        return Exif()
    focal_mm, focal_35mm = _number(taken.get(_FOCAL_MM)), _number(taken.get(_FOCAL_35MM))
    focal = None
    if focal_35mm is not None:
        focal = focal_35mm / _DIAGONAL_35MM * math.hypot(width, height)
    elif focal_mm is not None:
        focal = _focal_from_plane(taken, focal_mm, max(width, height))
    # Outside of 165 to 2 degrees of view it is a camera's default, not a lens.
    if focal is not None and not 0.13 < focal / max(width, height) < 30:
        focal = None
    texts = [_text(top.get(_MAKE)), _text(top.get(_MODEL)), _text(taken.get(_LENS_MODEL))]
    if focal_mm or focal_35mm:
        texts.append(f"{focal_mm or 0:g}mm" + (f"/{focal_35mm:g}" if focal_35mm else ""))
    camera = "|".join(texts) if any(texts) else ""
    return Exif(orientation_of(image), focal, camera, _time(taken, top.get(_DATE)))


def _focal_from_plane(taken: Any, focal_mm: float, longest: int) -> float | None:
    """Pixels, from the pixel density on the sensor; None if it is not stated or makes no sensor that exists."""
    density, unit = _number(taken.get(_PLANE_X)), _number(taken.get(_PLANE_UNIT)) or 2
    if density is None or int(unit) not in _UNIT_MM:
        return None
    full_width = _number(taken.get(_FULL_WIDTH)) or longest
    sensor_mm = full_width / density * _UNIT_MM[int(unit)]
    if not 2 <= sensor_mm <= 120:
        return None
    return focal_mm / sensor_mm * longest


def _number(value: Any) -> float | None:
    """A finite number above zero, or None."""
    try:
        number = float(Fraction(value)) if isinstance(value, str) else float(value)
    except _BROKEN:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    kept = "".join(c for c in value if c.isprintable() and c != "|")
    return " ".join(kept.split())[:80]


def _time(taken: Any, fallback: Any) -> float | None:
    """Seconds since 1970; without a stated offset the camera's clock is taken as UTC, so differences are right."""
    text = _text(taken.get(_DATE_TAKEN)) or _text(fallback)
    try:
        moment = datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except _BROKEN:
        return None
    subseconds = _text(taken.get(_SUBSECONDS_TAKEN))
    if subseconds.isascii() and subseconds.isdigit():
        moment += float(f"0.{subseconds}")
    offset = _text(taken.get(_OFFSET_TAKEN))
    try:
        zone = datetime.strptime(offset, "%z").utcoffset()
    except _BROKEN:
        zone = None
    return moment - zone.total_seconds() if zone is not None else moment
