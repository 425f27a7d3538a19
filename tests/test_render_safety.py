"""Rendering and scoring refuse what cannot be meant, and a video is what its name says."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from splat_scenes import make_scene

from scenetx.core import Cameras, InputError, Original, Scene, View
from scenetx.fit import evaluate_views
from scenetx.io.scene_dir import save_scene
from scenetx.io.video import write_video
from scenetx.pipeline.render import PathSettings, render, render_path
from scenetx.serve.report_figures import camera_plans


@pytest.fixture(scope="module")
def scene() -> Scene:
    gaussians, cameras = make_scene(30, 40, 52, cameras=3, degree=0, size=0.15)
    image = torch.zeros(40, 52, 3, dtype=torch.uint8)
    views = tuple(View(f"{i}.png", image, Original(f"{i}.png", 40, 52), cameras[i], held_out=i == 2) for i in range(3))
    return Scene(views, "holiday-photos", gaussians=gaussians, posed_by="input")


def one_frame(**changes: object) -> PathSettings:
    return PathSettings(**{"frames": 1, **changes})


@pytest.mark.parametrize("width", [-4, 0, 1, 16385])
def test_render_refuses_widths_that_make_no_picture(scene: Scene, tmp_path: Path, width: int) -> None:
    with pytest.raises(InputError, match=f"width: {width}"):
        render_path(scene, tmp_path / "out", one_frame(width=width))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [-5, 0, 1, 10])
def test_scores_are_refused_at_widths_below_their_window(scene: Scene, width: int) -> None:
    assert scene.gaussians is not None
    with pytest.raises(InputError, match=f"width: {width}; choose at least 11"):
        evaluate_views(scene, scene.gaussians, width=width)
    assert math.isfinite(evaluate_views(scene, scene.gaussians, width=26).mean_psnr)


def test_render_refuses_more_frames_than_can_be_meant(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 100,000"):
        render_path(scene, tmp_path / "out", one_frame(frames=1_000_000_000))


def test_messages_do_not_name_the_photos_the_scene_came_from(scene: Scene, tmp_path: Path) -> None:
    bare = Scene((), "holiday-photos")
    with pytest.raises(InputError, match="the scene: has no cameras") as error:
        render_path(bare, tmp_path / "out")
    assert "holiday" not in str(error.value)
    camera = scene.views[0].camera
    assert camera is not None
    with pytest.raises(InputError, match="the scene: has no splats") as error:
        render(bare, camera)
    assert "holiday" not in str(error.value)


@pytest.mark.parametrize("output", ["file", "file/out", "file/a.mp4", "file/sub/a.webm", "folder.mp4", "pipe.mp4"])
def test_an_output_that_cannot_be_is_one_line(scene: Scene, tmp_path: Path, output: str) -> None:
    import os

    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match=f"{output}: (cannot be|is no file)"):
        render_path(scene, tmp_path / output, one_frame(width=16))
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4", "pipe.mp4"]


def test_pictures_are_not_rendered_over_those_of_a_scene(scene: Scene, tmp_path: Path) -> None:
    save_scene(scene, tmp_path / "sc")
    for output in ("sc/images", "sc", "sc/scene.json/orbit.mp4"):
        with pytest.raises(InputError, match="belongs to the scene sc"):
            render_path(scene, tmp_path / output, one_frame(width=16))
    assert render_path(scene, tmp_path / "sc/orbit.mp4", one_frame(width=16))[0].is_file()


@pytest.mark.parametrize(
    "suffix, family, codec, mark",
    [
        (".mp4", "mp4", "h264", b"ftypisom"),
        (".mov", "mov", "h264", b"ftypqt"),
        (".mkv", "matroska", "h264", b"matroska"),
        (".webm", "webm", "vp9", b"webm"),
        (".WEBM", "webm", "vp9", b"webm"),
    ],
)
def test_a_video_is_of_the_kind_its_suffix_names(
    tmp_path: Path, suffix: str, family: str, codec: str, mark: bytes
) -> None:
    ramp = np.linspace(30, 220, 64).astype(np.uint8)[None, :, None]
    frames = [np.broadcast_to(np.roll(ramp, 4 * shift, axis=1), (48, 64, 3)) for shift in range(5)]
    path = tmp_path / f"a{suffix}"
    write_video(path, iter(frames), 25)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert family in container.format.name
        assert stream.codec_context.name == codec
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert float(stream.average_rate) == 25
        back = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(back) == 5
    assert max(np.abs(a.astype(float) - b).mean() for a, b in zip(back, frames, strict=True)) < 4
    assert mark in path.read_bytes()[:80]
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_video_written_through_a_link_leaves_the_link(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "there.mp4")
    write_video(tmp_path / "link.mp4", [np.zeros((16, 16, 3), np.uint8)], 30)
    assert (tmp_path / "link.mp4").is_symlink()
    assert (tmp_path / "there.mp4").stat().st_size > 0


@pytest.mark.parametrize("distance", [1e30, 1e160, 1e300])
def test_the_plan_of_cameras_beyond_all_measure_is_drawn(scene: Scene, distance: float) -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, 0, 3] = distance
    K = torch.tensor([[50.0, 0, 26], [0, 50, 20], [0, 0, 1]], dtype=torch.float64)
    image = torch.zeros(40, 52, 3, dtype=torch.uint8)
    views = tuple(
        View(f"{i}.png", image, Original(f"{i}.png", 40, 52), Cameras(poses[i : i + 1], K[None], 40, 52))
        for i in range(2)
    )
    assert all(svg.startswith("<svg") for _, svg in camera_plans(Scene(views)))
