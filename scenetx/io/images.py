"""Pictures in and out: any photo file becomes upright 8-bit sRGB, or an `InputError` that says what is wrong."""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageCms

from scenetx.core import InputError, Original
from scenetx.core.atomic import replacing
from scenetx.io.exif import orientation_of, read_exif

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
    | {".mpo", ".heic", ".heif", ".hif", ".avif", ".pgm", ".ppm", ".pnm", ".jp2"}
)
RAW_SUFFIXES = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"})

# A 200-megapixel phone photo passes (Pillow needs 4 bytes a pixel: 1 GB); a decompression bomb does not.
MAX_PIXELS = 256_000_000

# Only these decoders: no EPS (runs Ghostscript), no PDF, no containers made for other things.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "HEIF", "AVIF", "JPEG2000")

# What Pillow and its codecs raise on files that are broken on purpose or by accident.
_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, EOFError, OverflowError, IndexError, KeyError,
               AttributeError, RuntimeError, AssertionError, MemoryError, ArithmeticError, struct.error, zlib.error,
               Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip

# EXIF tag 274 -> what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

_open_lock = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright, sRGB, straight (not premultiplied) colour. ``alpha`` is None where all is opaque."""

    pixels: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    original: Original
    note: str = ""


def is_picture(path: Path) -> bool:
    """Whether the suffix is one of a picture format that `read_picture` knows."""
    return path.suffix.lower() in SUFFIXES


def read_picture(path: str | Path) -> Picture:
    """Decode a picture file: first frame, turned upright, ICC profile applied, 16 bit and CMYK brought to 8-bit sRGB.

    ``original.K`` is not set. Raises InputError for a file that is missing, empty, no picture, truncated, corrupt, or
    larger than `MAX_PIXELS`. JPEG data whose entropy-coded part is damaged but complete decodes with wrong colours, as
    everywhere: no decoder can tell.
    """
    with quiet_pillow():
        return decode_picture(Path(path))


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warnings about odd metadata say nothing a user can act on. Enter once around threads that decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_picture(path: Path) -> Picture:
    """`read_picture` without the silencing, which is not safe to enter from several threads at once."""
    with _opened(path) as image:
        orientation = _stated_orientation(image)
        frames = getattr(image, "n_frames", 1) if image.format in ("GIF", "WEBP", "PNG", "AVIF") else 1
        image.load()
        # Asked again after loading: the TIFF decoder turns the picture itself and then forgets the tag.
        turn = _UPRIGHT.get(orientation_of(image))
        exif = read_exif(image, image.width, image.height)
        upright = image.transpose(turn) if turn is not None else image
        alpha, colour = _split_alpha(upright)
        pixels = np.array(_to_srgb(colour, image.info.get("icc_profile"), path))
    height, width = pixels.shape[:2]
    original = Original(
        path=str(path), height=height, width=width, orientation=orientation,
        focal_exif=exif.focal, camera_exif=exif.camera, time=exif.time,
    )  # fmt: skip
    note = f"animated: the first of {frames} frames is used" if frames > 1 else ""
    return Picture(pixels, alpha, original, note)


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header alone. Raises InputError like `read_picture`."""
    with quiet_pillow(), _opened(path) as image:
        # A TIFF announces the size after turning.
        turned = orientation_of(image) >= 5 and image.format != "TIFF"
        return (image.width, image.height) if turned else (image.height, image.width)


def read_mask(path: Path, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """True where a pixel may be used. Black (and, in 0/1 masks, 0) or transparent = ignore.

    A mask of another size but the same shape is enlarged or reduced to ``height`` x ``width`` (nearest); InputError
    when its shape differs by more than 2 %.
    """
    picture = read_picture(path)
    grey = picture.pixels.max(axis=-1)
    if picture.alpha is not None:
        grey = np.where(picture.alpha > 127, grey, 0).astype(np.uint8)
    rows, columns = grey.shape
    if abs(np.log((rows / columns) / (height / width))) > 0.02:
        raise InputError(str(path), f"mask of {columns}x{rows}", f"give one shaped like its {width}x{height} picture")
    used = grey > (0 if grey.max() <= 1 else 127)
    if (rows, columns) != (height, width):
        used = np.asarray(Image.fromarray(used).resize((width, height), Image.Resampling.NEAREST))
    return used


def write_picture(
    path: str | Path, pixels: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"] | None = None,
    quality: int = 95,
) -> None:  # fmt: skip
    """Write sRGB pixels by suffix (.jpg: ``quality``, full chroma; .png; .webp: lossless), whole or not at all.

    Raises InputError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    options: dict[str, dict[str, object]] = {
        ".jpg": {"format": "JPEG", "quality": quality, "subsampling": 0},
        ".png": {"format": "PNG", "compress_level": 4},
        ".webp": {"format": "WEBP", "lossless": True},
    }
    suffix = ".jpg" if path.suffix.lower() == ".jpeg" else path.suffix.lower()
    if suffix not in options:
        raise InputError(str(path), f"suffix {path.suffix!r}", "write .jpg, .png or .webp")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if alpha is not None:
        if suffix == ".jpg":
            raise InputError(str(path), "JPEG has no transparency", "write .png or .webp")
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    with replacing(path) as file:
        image.save(file, **options[suffix])  # type: ignore[arg-type]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file opened by Pillow (not yet decoded); everything that goes wrong inside becomes an InputError."""
    _register_formats()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "check the path and its permissions") from error
    if not data:
        raise InputError(str(path), "an empty file (0 bytes)", "copy it again from the camera")
    if _is_cut_off(data):
        raise InputError(str(path), f"truncated (ends after {len(data)} bytes)", "copy it again from the camera")
    try:
        with _open_lock:
            # Pillow's own limit refuses a 200-megapixel photo; ours is checked two lines on, before any decoding.
            pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(BytesIO(data), formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = pillow_limit
    except _UNREADABLE as error:
        raise InputError(str(path), _unreadable(data, error), "give a JPEG, PNG, TIFF, WebP or HEIC file") from error
    with image:
        if image.width * image.height > MAX_PIXELS or min(image.size) < 1:
            size = f"{image.width}x{image.height} pixels"
            raise InputError(str(path), size, f"make it at most {MAX_PIXELS // 10**6} megapixels")
        try:
            yield image
        except InputError:
            raise
        except _UNREADABLE as error:
            reason = f"truncated or corrupt ({str(error) or type(error).__name__})"
            raise InputError(str(path), reason, "copy it again from the camera") from error


def _unreadable(data: bytes, error: BaseException) -> str:
    # Magic numbers of JPEG, PNG, TIFF, RIFF and ISO media: then it was a picture once.
    heads = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*")
    if data.startswith(heads) or data[8:12] == b"WEBP" or data[4:8] == b"ftyp":
        return f"a damaged or truncated picture ({len(data)} bytes, {str(error) or type(error).__name__})"
    return "not a picture this program can read"


def _is_cut_off(data: bytes) -> bool:
    """Whether an ISO media file (HEIC, AVIF) ends inside one of its boxes: the decoder would make up the rest."""
    if data[4:8] != b"ftyp":
        return False
    offset = 0
    while offset + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 1 and offset + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        if size == 0:  # up to the end of the file
            return False
        if size < 8:
            return True
        offset += size
    return offset > len(data)


@functools.cache
def _register_formats() -> None:
    import pi_heif

    # Pillow knows only the commonest five formats until it is asked for all.
    Image.init()
    pi_heif.register_heif_opener(thumbnails=False)


def _stated_orientation(image: Image.Image) -> int:
    """The file's own tag, for the record. HEIF turns itself while decoding and keeps the tag aside."""
    aside = image.info.get("original_orientation")
    return aside if isinstance(aside, int) and aside in range(1, 9) else orientation_of(image)


def _split_alpha(image: Image.Image) -> tuple[UInt8[np.ndarray, "h w"] | None, Image.Image]:
    """Transparency (None if all is opaque) and the picture without it, in a mode `_to_srgb` knows."""
    if not image.has_transparency_data:
        return None, image.convert("RGB") if image.mode == "P" else image
    whole = image.convert("RGBA")
    alpha = np.array(whole.getchannel("A"))
    return (None if bool((alpha == 255).all()) else alpha), whole.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """Any mode to 8-bit RGB. A colour profile that does not fit or is broken is left aside, as browsers do."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image), path)).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if not ImageCms.getProfileDescription(source).strip().lower().startswith("srgb"):
                target = ImageCms.createProfile("sRGB")
                flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
                converted = ImageCms.profileToProfile(
                    image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB", flags=flags
                )
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, *_UNREADABLE):
            pass
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray, path: Path) -> UInt8[np.ndarray, "h w"]:
    """Grey of 16 bit, 32 bit (TIFF, PGM: Pillow scales those to 16 bit) or float in [0, 1] as 8 bit."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(str(path), "float values outside [0, 1]", "convert it to 8 or 16 bit")
        return np.round(values * 255).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(str(path), "integer values outside of 16 bit", "convert it to 8 or 16 bit")
    return (values.astype(np.uint32) >> 8).astype(np.uint8)
