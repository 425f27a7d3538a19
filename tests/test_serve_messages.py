"""The protocol: one truth for both sides, round trips, and what a hostile page may send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import InputError
from scenetx.serve.messages import (
    CameraRequest,
    Curve,
    PhotoData,
    Picture,
    SceneInfo,
    Similarity,
    SplatData,
    ViewInfo,
    decode_request,
    encode,
    key_of,
    typescript,
)

TYPESCRIPT = Path(__file__).parents[1] / "viewer" / "src" / "messages.ts"


def split(frame: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(frame[:4], "little")
    return json.loads(frame[4 : 4 + length]), frame[4 + length :]


def test_typescript_is_in_step():
    assert TYPESCRIPT.read_text() == typescript(), "run scripts/build-viewer"


def test_bytes_lie_behind_the_header_in_order():
    views = tuple(
        ViewInfo(f"{i}", (1.0,) * 16, (1.0, 1.0, 0.0, 0.0), 4, 3, i == 1, bytes([i] * (i + 1)), "") for i in range(3)
    )
    info = SceneInfo("t\u00e9st", (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0, views, 0, 0)
    header, body = split(encode(info))
    assert header["type"] == "SceneInfo"
    assert header["title"] == "t\u00e9st"
    for i, view in enumerate(header["views"]):
        offset, size = view["thumbnail"]["$bytes"]
        assert body[offset : offset + size] == bytes([i] * (i + 1))


def test_numbers_that_are_none_become_null_and_names_survive():
    header, _ = split(encode(Curve((1,), (float("nan"),), (), (), 2, 3)))
    assert header["loss"] == [None]
    header, _ = split(encode(PhotoData("a\udcff.jpg", b"x")))
    assert header["name"] == "a?.jpg"


def test_only_equal_kinds_replace_each_other():
    assert key_of(SplatData(1, False, "spz", b"a")) == key_of(SplatData(2, True, "ply", b"b"))
    assert key_of(PhotoData("a", b"")) != key_of(PhotoData("b", b""))
    assert key_of(Picture(1, 1, 1, b"")) != key_of(SplatData(1, False, "spz", b""))


@pytest.mark.parametrize(
    "message",
    [
        CameraRequest(3, tuple(float(i) for i in range(16)), (1.0, 2.0, 3.0, 4.0), 640, 480, True),
        Similarity(2.5, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (1.0, 2.0, 3.0)),
    ],
)
def test_requests_come_back(message):
    assert decode_request(encode(message)) == message


HOSTILE = [
    b"",
    b"\x00",
    b"\xff\xff\xff\xff{}",
    encode(Picture(1, 1, 1, b"")),
    b"\x02\x00\x00\x00[]",
    (5).to_bytes(4, "little") + b"[" * 5,
    (60000).to_bytes(4, "little") + b"[" * 60000,
    b"\x04\x00\x00\x00null" + b"x" * (1 << 17),
]


@pytest.mark.parametrize("frame", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_frames_are_refused(frame: bytes):
    with pytest.raises(InputError):
        decode_request(frame)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": "1"}, {"scale": None}, {"scale": True}, {"scale": 1e999}, {"rotation": [1] * 17}, {"rotation": 3},
        {"rotation": [[1]]}, {"translation": [0, 0]}, {"translation": {"0": 1}},
    ],
)  # fmt: skip
def test_wrong_fields_are_refused(change: dict):
    header, _ = split(encode(Similarity(1.0, (1.0,) * 9, (0.0, 0.0, 0.0))))
    text = json.dumps({**header, **change}).encode()
    with pytest.raises(InputError, match=next(iter(change))):
        decode_request(len(text).to_bytes(4, "little") + text)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes):
    with pytest.raises(InputError):
        decode_request(noise)


@settings(deadline=None, max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=8))
def test_any_json_in_any_field_is_refused_or_right(value):
    for name in ("world_from_cam", "lens", "width", "moving"):
        header, _ = split(encode(CameraRequest(1, (0.0,) * 16, (1.0, 1.0, 0.0, 0.0), 2, 2, False)))
        text = json.dumps({**header, name: value}).encode()
        try:
            got = decode_request(len(text).to_bytes(4, "little") + text)
        except InputError:
            continue
        assert isinstance(got, CameraRequest)
        assert isinstance(got.width, int)
        assert len(got.lens) == 4
