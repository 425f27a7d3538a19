"""Any picture file becomes upright 8-bit sRGB or one clear line."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from scenetx.core import InputError
from scenetx.io.images import MAX_PIXELS, is_picture, picture_size, read_mask, read_picture, write_picture

DEV = Path(__file__).parents[2] / "shared/data/dev"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason="shared/data/dev is not beside this checkout")


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 2 % 256], -1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_upright(tmp_path: Path, suffix: str, orientation: int):
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32], upright[:24, 32:], upright[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    store = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.ascontiguousarray(store[orientation](upright))).save(path, exif=exif, quality=95)
    picture = read_picture(path)
    assert picture.pixels.shape == upright.shape == (*picture_size(path), 3)
    assert (picture.original.height, picture.original.width) == (48, 64)
    assert picture.original.orientation == orientation
    corners = [(8, 8), (8, 55), (39, 8), (39, 55)]
    for row, column in corners:
        assert np.abs(picture.pixels[row, column].astype(int) - upright[row, column]).max() < 12


def test_16_bit_is_scaled_not_wrapped_or_clipped(tmp_path: Path):
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        path = saved(tmp_path / name, Image.fromarray(values))
        assert np.array_equal(read_picture(path).pixels[..., 1], values >> 8)
    (tmp_path / "a.pgm").write_bytes(b"P5 64 48 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(read_picture(tmp_path / "a.pgm").pixels[..., 2], values >> 8)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "F", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str):
    grey = Image.fromarray(gradient()[..., 0])
    image = {
        "LAB": lambda: ImageCms.profileToProfile(
            grey.convert("RGB"), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        ),
        "F": lambda: Image.fromarray(gradient()[..., 0].astype(np.float32) / 255),
        "I;16": lambda: Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257),
    }.get(mode, lambda: grey.convert(mode))()
    picture = read_picture(saved(tmp_path / "a.tiff", image))
    assert picture.pixels.shape == (48, 64, 3)
    assert np.abs(picture.pixels[..., 1].astype(int) - gradient()[..., 0]).max() <= 6
    assert picture.alpha is None


def test_alpha_is_given_and_colour_stays_straight(tmp_path: Path):
    rgba = np.dstack([gradient(), np.full((48, 64), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    picture = read_picture(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, rgba[..., 3])
    assert np.array_equal(picture.pixels, rgba[..., :3])


def test_transparent_palette_entry_is_alpha(tmp_path: Path):
    image = Image.fromarray((gradient()[..., 0] > 127).astype(np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    picture = read_picture(saved(tmp_path / "a.png", image, transparency=0))
    assert picture.alpha is not None
    assert set(np.unique(picture.alpha)) == {0, 255}


def test_adobe_cmyk_is_not_inverted(tmp_path: Path):
    image = Image.fromarray(gradient()).convert("CMYK")
    picture = read_picture(saved(tmp_path / "a.jpg", image, quality=98))
    assert np.abs(picture.pixels.astype(int) - gradient()).mean() < 6


def test_icc_profile_is_applied(tmp_path: Path):
    # The linear-light profile of the same primaries: half the light is sRGB 188.
    xyz = ImageCms.createProfile("sRGB")
    profile = bytearray(ImageCms.ImageCmsProfile(xyz).tobytes())
    grey = Image.fromarray(np.full((32, 32, 3), 128, np.uint8))
    plain = read_picture(saved(tmp_path / "a.png", grey, icc_profile=bytes(profile))).pixels
    assert (plain == 128).all()
    count = struct.unpack_from(">I", profile, 128)[0]
    for index in range(count):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[offset : offset + 14] = b"curv" + bytes(4) + struct.pack(">IH", 1, 256)
            struct.pack_into(">I", profile, 132 + 12 * index + 8, 14)
        if name == b"desc":
            position = profile.find("sRGB".encode("utf-16-be"))
            profile[position : position + 8] = "line".encode("utf-16-be")
    linear = read_picture(saved(tmp_path / "b.png", grey, icc_profile=bytes(profile))).pixels
    assert np.abs(linear.astype(int) - 188).max() <= 2


def test_broken_icc_profile_is_left_aside(tmp_path: Path):
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()), icc_profile=b"no profile at all")
    assert np.array_equal(read_picture(path).pixels, gradient())


def with_exif(path: Path, size: tuple[int, int], **tags) -> Path:
    exif = Image.Exif()
    exif[271], exif[272] = "Maker", "Model"
    folder = exif.get_ifd(0x8769)
    folder.update({int(key[1:]): value for key, value in tags.items()})
    Image.new("RGB", size, "gray").save(path, exif=exif)
    return path


def test_focal_length_from_35mm_equivalent_by_the_diagonal(tmp_path: Path):
    original = read_picture(with_exif(tmp_path / "a.jpg", (300, 400), t41989=43, t37386=29.0)).original
    assert original.focal_exif == pytest.approx(43 / (36**2 + 24**2) ** 0.5 * 500)
    assert original.camera_exif == "Maker|Model||29mm/43"


def test_focal_length_from_the_sensor_survives_resizing(tmp_path: Path):
    tags = {"t37386": 10.0, "t41486": 4000.0, "t41488": 3, "t40962": 4000}  # 4000 pixels a centimetre: a 10 mm sensor
    assert read_picture(with_exif(tmp_path / "a.jpg", (400, 300), **tags)).original.focal_exif == pytest.approx(400)


@pytest.mark.parametrize(
    "tags", [{}, {"t41989": 0}, {"t37386": 50.0}, {"t41989": 60000}, {"t37386": 0.0, "t41486": 0.0}]
)
def test_focal_length_that_is_not_said_is_none(tmp_path: Path, tags: dict):
    assert read_picture(with_exif(tmp_path / "a.jpg", (400, 300), **tags)).original.focal_exif is None


def test_capture_time_counts_zone_and_fraction(tmp_path: Path):
    tags = {"t36867": "2023:02:21 14:33:08", "t37521": "25"}
    local = read_picture(with_exif(tmp_path / "a.jpg", (40, 30), **tags)).original.time
    zoned = read_picture(with_exif(tmp_path / "b.jpg", (40, 30), **tags, t36881="+02:00")).original.time
    assert local == pytest.approx(1676989988.25)
    assert zoned == pytest.approx(1676989988.25 - 7200)
    assert read_picture(with_exif(tmp_path / "c.jpg", (40, 30), t36867="0000:00:00 00:00:00")).original.time is None


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bomb_is_refused_before_decoding(tmp_path: Path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60000, 60000))
    with pytest.raises(InputError, match=r"bomb\.png: 60000x60000 pixels; make it at most 256 megapixels"):
        read_picture(path)


def test_the_limit_lets_a_200_megapixel_phone_through():
    assert MAX_PIXELS > 16320 * 12240


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "an empty file"),
        (b"hello, this is text\n" * 30, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", "not a picture"),
        (b"\xff\xd8\xff\xe0", "damaged or truncated"),
    ],
)
def test_what_is_no_picture_says_so(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_picture(path)


def test_missing_file_and_folder_are_input_errors(tmp_path: Path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(InputError):
            read_picture(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize("part", [0.02, 0.4, 0.9])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str, part: float):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(len(data) * part))])
    with pytest.raises(InputError, match=f"a{suffix}"):
        read_picture(path)


def is_picture_or_one_line(path: Path) -> bool:
    """Whatever else is raised fails the test."""
    try:
        return read_picture(path).pixels.dtype == np.uint8
    except InputError as error:
        return str(path) in str(error) and "\n" not in str(error)


HEADS = [
    b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"GIF89a", b"BM", b"P6 ", b"P5\n3 3\n65535\n",
    b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\0\0\0\x0cjP  \r\n\x87\n",
]  # fmt: skip


@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=400))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_give_a_picture_or_an_input_error(tmp_path: Path, head: bytes, tail: bytes):
    path = tmp_path / "any"
    path.write_bytes(head + tail)
    assert is_picture_or_one_line(path)


SEEDS = {}
for _format in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "AVIF"):
    _buffer = io.BytesIO()
    _exif = Image.Exif()
    _exif[274], _exif[271] = 6, "Maker"
    _exif.get_ifd(0x8769)[41989] = 28
    Image.fromarray(gradient(16, 24)).save(_buffer, _format, exif=_exif)
    SEEDS[_format] = _buffer.getvalue()


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_give_a_picture_or_an_input_error(tmp_path: Path, data: st.DataObject):
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "any"
    path.write_bytes(content)
    assert is_picture_or_one_line(path)


def test_write_picture_round_trips_and_is_whole_or_not_there(tmp_path: Path):
    for name in ("a.png", "a.webp"):
        write_picture(tmp_path / "deep" / name, gradient())
        assert np.array_equal(read_picture(tmp_path / "deep" / name).pixels, gradient())
    write_picture(tmp_path / "a.jpg", gradient())
    assert np.abs(read_picture(tmp_path / "a.jpg").pixels.astype(int) - gradient()).mean() < 4
    with pytest.raises(InputError, match="suffix"):
        write_picture(tmp_path / "a.xyz", gradient())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_picture(tmp_path / "file" / "a.png", gradient())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "deep", "file"]


def test_mask_black_is_ignored_and_size_follows(tmp_path: Path):
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 255
    path = saved(tmp_path / "m.png", Image.fromarray(mask))
    used = read_mask(path, 20, 40)
    assert used.shape == (20, 40)
    assert used[:, 20:].all()
    assert not used[:, :20].any()
    assert np.array_equal(read_mask(saved(tmp_path / "n.png", Image.fromarray(mask // 255)), 10, 20), mask > 0)
    with pytest.raises(InputError, match="20x40 picture"):
        read_mask(path, 40, 20)


def test_is_picture_by_suffix_only():
    assert is_picture(Path("a.JPG"))
    assert is_picture(Path("b.Heic"))
    assert not is_picture(Path("Thumbs.db"))


@needs_dev
@pytest.mark.parametrize("folder", ["formats", "hostile_door"])
def test_real_files_do_what_their_manifest_says(folder: str):
    manifest = json.loads((DEV / folder / "manifest.json").read_text())
    for name, entry in manifest.get("files", manifest).items():
        path = DEV / folder / "images" / name
        if entry.get("upright_size"):
            original = read_picture(path).original
            assert [original.width, original.height] == entry["upright_size"], name
        elif "truncated" in name or "empty" in name or "text" in name or "bomb" in name:
            with pytest.raises(InputError, match=path.name):
                read_picture(path)


@needs_dev
@pytest.mark.parametrize(
    "name, truth",
    [
        ("lund_door/images/DSC_0001.JPG", 2396),
        ("sceaux/images/100_7100.JPG", 2974),
        ("kermit/images/kermit000.jpg", 695),
        ("skull/images/01.JPG", 3230),
    ],
)
def test_real_focal_lengths_are_near(name: str, truth: float):
    focal = read_picture(DEV / name).original.focal_exif
    assert focal == pytest.approx(truth, rel=0.06)
