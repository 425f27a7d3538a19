"""The report page: self-contained, escaped, sensible whatever is missing."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Points, Scene, Skipped, Stage, View
from scenetx.core.cameras import look_at
from scenetx.serve.report import ReportPicture, ReportSettings, write_report
from scenetx.serve.report_figures import absolute_error, data_uri, error_scale, inferno
from scenetx.serve.report_tables import bytes_text, number, seconds_text

HOSTILE = "<script>alert(1)</script>\"'&$title.jpg"
VOID = {"meta", "img", "input", "br", "link", "path", "circle", "image"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and notices tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.text, self.crossed = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data + " "


def make_scene(count: int = 6, name: str = "{}.jpg") -> Scene:
    angle = torch.arange(count, dtype=torch.float64)
    eyes = torch.stack([3 * angle.cos(), 3 * angle.sin(), 0 * angle + 1], -1)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    K = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]], dtype=torch.float64)
    views = tuple(
        View(
            name.format(i),
            torch.full((48, 64, 3), 20 * i % 255, dtype=torch.uint8),
            Original(name.format(i), 48, 64),
            camera=Cameras(poses[i : i + 1], K, 48, 64),
            held_out=i % 2 == 0,
        )
        for i in range(count)
    )
    return Scene(views, source="photos/desk")


def make_pictures(scene: Scene) -> list[ReportPicture]:
    generator = np.random.default_rng(0)
    out = []
    for i, view in enumerate(scene.held_out):
        photo = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        noise = generator.normal(0, 2 + 3 * i, photo.shape)
        out.append(ReportPicture(view.name, photo, np.clip(photo + noise, 0, 255).astype(np.uint8)))
    return out


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def assert_sound(page: Page) -> None:
    """Nests, loads nothing from elsewhere, every picture is described."""
    assert not page.crossed
    assert not page.open
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(key)
            if value is None:
                continue
            if tag == "a":
                assert value.startswith("./"), value
            else:
                assert value.startswith("data:image/webp;base64,"), (tag, value[:60])
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(key.startswith("on") for key in attributes)
        if tag == "img":
            assert attributes.get("alt") is not None
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_a_full_report(tmp_path):
    scene = replace(
        make_scene(),
        points=Points(torch.randn(500, 3), torch.zeros(500, 3, dtype=torch.uint8)),
        posed_by="sfm",
        skipped=(Skipped("broken.jpg", "cut off after 12 kB"),),
        history=(Stage("cameras", 41.2, {"matcher": "exhaustive"}, ("one model",)), Stage("fit", 312.7)),
        metrics={
            "psnr": 27.254, "ssim": 0.9123, "protocol": "every 2nd picture held out", "registered": 6, "images": 6,
            "gaussians": 148213, "model": "sfm", "quality": "draft", "views": {"0.jpg": {"psnr": 51.415, "ssim": 0.95}},
            "reference": {"rotation_deg_median": 0.2134, "center_percent_median": 0.41, "depth_absrel": 0.03125},
        },
    )  # fmt: skip
    (tmp_path / "viewer.html").write_text("viewer")
    (tmp_path / "splats.ply").write_bytes(b"0" * 35_000)
    other = tmp_path / "sub folder"
    other.mkdir()
    (other / "a b.txt").write_text("x")
    path = write_report(
        scene, tmp_path, make_pictures(scene), command="scenetx reconstruct 'my photos'", files=[other / "a b.txt"]
    )
    assert path == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "splats.ply", "sub folder", "viewer.html"]
    text, page = read(path)
    assert_sound(page)
    for said in (
        "desk", "27.25", "0.912", "every 2nd picture held out", "148\u202f213", "35 kB", "51.41",
        "0.213°", "0.410%", "0.0312",
        "broken.jpg", "cut off after 12 kB", "exhaustive", "one model", "5 min 54 s", "scenetx reconstruct 'my photos'",
        "found by structure from motion", "3 held out", "From above", "From the side", "Left out", "draft",
    ):  # fmt: skip
        assert said in page.text, said
    assert {a["href"] for t, a in page.tags if t == "a"} == {
        "./viewer.html",
        "./splats.ply",
        "./sub%20folder/a%20b.txt",
    }
    names = re.findall(r"<h3>(.*?)</h3>", text)
    assert names[-1] == "0.jpg"  # best measured, worst first
    assert text.count('class="cam held"') == 2 * 3
    assert "<title>0.jpg (held out)</title>" in text


@pytest.mark.parametrize(
    "scene",
    [
        Scene(()),
        Scene((), source=HOSTILE),
        make_scene(1),
        replace(make_scene(2), metrics={"psnr": math.nan, "ssim": None, "seconds": {"fit": 1.5, "bad": None}}),
        replace(make_scene(3), views=tuple(replace(v, camera=None) for v in make_scene(3).views)),
        replace(make_scene(3), views=tuple(replace(v, held_out=False) for v in make_scene(3).views)),
        replace(make_scene(3), metrics={"views": 3, "reference": [], "seconds": 7, "model": None}),
        replace(make_scene(3), history=(Stage("fit", 0.0),)),
        replace(make_scene(2), points=Points(torch.full((30, 3), math.nan), torch.zeros(30, 3, dtype=torch.uint8))),
    ],
    ids=["empty", "hostile", "one", "nan", "unposed", "all-train", "odd-metrics", "no-time", "nan-points"],
)
def test_missing_parts_leave_a_sensible_page(tmp_path, scene):
    _, page = read(write_report(scene, tmp_path))
    assert_sound(page)
    assert not re.search(r"\b(nan|None|inf)\b", page.text)


def test_what_has_no_camera_is_named(tmp_path):
    scene = make_scene(4)
    scene = replace(scene, views=(*scene.views[:3], replace(scene.views[3], camera=None)))
    _, page = read(write_report(scene, tmp_path))
    assert "3 of 4 pictures found their place; the other one is named below" in page.text
    assert "no camera was found for it" in page.text


def test_hostile_text_stays_text(tmp_path):
    scene = make_scene(4, HOSTILE + "{}")
    scene = replace(
        scene,
        source=HOSTILE,
        skipped=(Skipped(HOSTILE, HOSTILE),),
        history=(Stage(HOSTILE, 1.0, {HOSTILE: HOSTILE}, (HOSTILE,)),),
        metrics={
            "protocol": HOSTILE,
            "model": HOSTILE,
            "quality": HOSTILE,
            "psnr": 1.0,
            "reference": {HOSTILE: HOSTILE},
        },
    )
    text, page = read(write_report(scene, tmp_path, make_pictures(scene), command=HOSTILE))
    assert_sound(page)
    assert "<script>alert" not in text
    assert page.text.count("<script>alert(1)</script>") > 10  # shown as what it is


@given(st.text(max_size=60))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_stays_text(tmp_path, text):
    scene = replace(make_scene(2), source=text, history=(Stage(text, 1.0, {text: text}, (text,)),))
    scene = replace(scene, views=tuple(replace(view, name=text + view.name) for view in scene.views))
    _, page = read(write_report(scene, tmp_path, make_pictures(scene), command=text))
    assert_sound(page)


def test_names_that_are_not_utf8_do_not_cost_the_report(tmp_path):
    scene = replace(make_scene(2), skipped=(Skipped("caf\udce9.jpg", "cut off"),))
    _, page = read(write_report(scene, tmp_path))
    assert "caf?.jpg" in page.text


def test_of_many_pictures_the_worst_and_the_best_are_shown(tmp_path):
    scene = make_scene(24)
    metrics = {"views": {view.name: {"psnr": 10.0 + i} for i, view in enumerate(scene.held_out)}}
    path = write_report(
        replace(scene, metrics=metrics), tmp_path, make_pictures(scene), settings=ReportSettings(max_pictures=5)
    )
    text, page = read(path)
    held_out = [view.name for view in scene.held_out]
    assert re.findall(r"<h3>(.*?)</h3>", text) == [*held_out[:3], *held_out[-2:]]
    assert "The 3 worst and the 2 best of 12" in page.text
    assert "median PSNR, 16.00 dB" in page.text


def test_psnr_is_computed_where_it_was_not_measured(tmp_path):
    scene = make_scene(1)
    photo = np.full((48, 64, 3), 100, dtype=np.uint8)
    path = write_report(scene, tmp_path, [ReportPicture("0.jpg", photo, photo + np.uint8(10))])
    assert f"{20 * math.log10(25.5):.2f}" in path.read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(Scene(()), tmp_path / "file")


def test_photo_and_render_are_one_size():
    # A test process checks types as well and may say it first.
    with pytest.raises((ValueError, TypeError), match=r"one size|Type-check"):
        ReportPicture("a", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="not empty"):
        ReportPicture("a", np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8))


def test_inferno_gets_lighter_all_the_way():
    rgb = inferno(np.linspace(0, 1, 256)).astype(float)
    luma = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > -0.5).all()
    assert luma[0] < 3
    assert luma[-1] > 230
    # Anchors of matplotlib's table.
    np.testing.assert_allclose(inferno(np.array([0.0, 0.5, 1.0])), [[0, 0, 4], [188, 55, 84], [252, 255, 164]], atol=6)
    np.testing.assert_array_equal(inferno(np.array([-1.0, 2.0, np.nan])), inferno(np.array([0.0, 1.0, 1.0])))


def test_one_error_scale_holds_nearly_all_pixels():
    photo = np.zeros((10, 10, 3), np.uint8)
    errors = [absolute_error(photo, photo + np.uint8(k)) for k in (3, 40)]
    assert error_scale(errors) == 64
    assert error_scale(errors[:1]) == 16
    assert error_scale([]) == 16
    assert error_scale([absolute_error(photo, photo + np.uint8(255))]) == 255


def test_data_uri_shrinks_and_decodes():
    pixels = np.zeros((300, 900, 3), np.uint8)
    pixels[:, 450:] = 200
    head, _, body = data_uri(pixels, 90).partition(",")
    assert head == "data:image/webp;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")).astype(int)
    assert picture.shape == (30, 90, 3)
    assert picture[:, :40].max() < 12
    assert abs(picture[:, 50:] - 200).max() < 12


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185.0, "3 min 05 s"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    "count, text", [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (35_000_000, "35 MB"), (2.5e9, "2.5 GB")]
)
def test_sizes_read_well(count, text):
    assert bytes_text(int(count)) == text
    assert number(math.inf, 2) == number("x", 2) == "not measured"
