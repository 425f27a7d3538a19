"""From door to door on a small posed scene: scene folder, scores, interruption, the same frame, the command line."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scenetx
from scenetx.cli import main
from scenetx.core import Cameras, Gaussians, InputError, Points, Scene
from scenetx.core.cameras import look_at
from scenetx.io.ply import write_points_ply
from scenetx.pipeline.reconstruct import _enough_steps, reconstruct, settings_for
from scenetx.pipeline.render import PathSettings, render_path, to_uint8
from scenetx.splat import rasterize

QUICK = [
    "fit.steps=200",
    "fit.max_splats=1500",
    "fit.eval_interval=60",
    "fit.pyramid=0",
    "sfm.max_image_size=400",
]


def blobs(count: int = 300) -> Gaussians:
    gen = torch.Generator().manual_seed(3)
    means = torch.rand(count, 3, generator=gen) * 2 - 1
    sh = torch.zeros(count, 1, 3)
    sh[:, 0] = (torch.rand(count, 3, generator=gen) - 0.5) / 0.282
    scales = torch.full((count, 3), 0.12) * (0.5 + torch.rand(count, 3, generator=gen))
    return Gaussians(means, torch.randn(count, 4, generator=gen), scales, torch.full((count,), 0.9), sh)


def cameras(count: int = 12) -> Cameras:
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    eye = torch.stack([5 * angle.cos() + 10, 5 * angle.sin(), 1 + 0.5 * (3 * angle).sin()], -1)
    target, up = torch.tensor([10.0, 0, 0], dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64)
    K = torch.tensor([[110.0, 0, 48], [0, 110, 36], [0, 0, 1]], dtype=torch.float64).expand(count, 3, 3)
    return Cameras(look_at(eye, target, up), K, 72, 96)


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with transforms.json, points and a cameras.json, in a frame that is shifted ten units along x."""
    folder = tmp_path_factory.mktemp("posed") / "ring"
    (folder / "images").mkdir(parents=True)
    splats, views = blobs(), cameras()
    splats = replace(splats, means=splats.means + torch.tensor([10.0, 0, 0]))
    entries = {}
    for index in range(len(views)):
        picture = rasterize(splats, views[index].to(torch.float32), backend="torch").rgb[0]
        name = f"{index:03d}.png"
        Image.fromarray(to_uint8(picture)).save(folder / "images" / name)
        entries[name] = {
            "width": 96, "height": 72, "fx": 110.0, "fy": 110.0, "cx": 48.0, "cy": 36.0, "distortion": [0, 0, 0, 0],
            "c2w": views.world_from_cam[index].tolist(),
        }  # fmt: skip
    (folder / "cameras.json").write_text(json.dumps({"pixel_center": 0.5, "images": entries}))
    opengl = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    frames = [
        {"file_path": f"images/{i:03d}.png", "transform_matrix": (views.world_from_cam[i] @ opengl).tolist()}
        for i in range(len(views))
    ]
    lens = {"w": 96, "h": 72, "fl_x": 110.0, "fl_y": 110.0, "cx": 48.0, "cy": 36.0, "ply_file_path": "start.ply"}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    write_points_ply(Points(splats.means, (splats.rgb * 255).to(torch.uint8)), folder / "start.ply")
    return folder


@pytest.fixture(scope="module")
def done(posed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    output = tmp_path_factory.mktemp("done") / "ring-scene"
    settings = settings_for("draft", overrides=QUICK)
    scene = reconstruct(
        posed / "transforms.json", output, settings=settings, reference=posed / "cameras.json", command="scenetx test"
    )
    return scene, output


def test_the_scene_folder_is_whole(done: tuple[Scene, Path]):
    _, folder = done
    names = {path.name for path in folder.iterdir()}
    wanted = {"scene.json", "images", "sparse", "transforms.json", "points.ply", "depth", "splats.ply", "metrics.json"}
    assert wanted | {"report.html", "preview.mp4"} <= names
    assert ".work" not in names


def test_metrics_say_what_was_measured(done: tuple[Scene, Path]):
    scene, folder = done
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["registered"] == metrics["images"] == 12
    assert set(metrics["views"]) == {"000.jpg", "008.jpg"}
    assert metrics["psnr"] == pytest.approx(np.mean([view["psnr"] for view in metrics["views"].values()]), abs=1e-3)
    assert metrics["psnr"] > 18
    assert metrics["psnr_color_corrected"] >= metrics["psnr"] - 0.01
    assert "held out" in metrics["protocol"]
    assert metrics["gaussians"] == len(scene.gaussians) <= 1500
    assert {"open", "cameras", "splats", "score"} <= set(metrics["seconds"])


def test_kill_stops_a_verb_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("scenetx.cli._doctor", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert stopped.value.code == 130
    assert "goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_many_pictures_get_more_steps_unless_a_number_was_asked_for():
    usual, asked = settings_for("draft"), settings_for("draft", overrides=["fit.steps=700"])
    assert _enough_steps(usual, 20).steps == usual.fit.steps
    assert _enough_steps(usual, 1000).steps == 10_000
    assert _enough_steps(asked, 1000) == asked.fit


def test_given_cameras_keep_their_frame(done: tuple[Scene, Path]):
    scene, _ = done
    assert scene.posed_by == "input"
    assert torch.allclose(scene.world_from_cams, cameras().world_from_cam, atol=1e-9)
    assert scene.metrics["reference"]["rotation_deg_max"] < 1e-3
    assert torch.allclose(scene.gaussians.means.median(0).values, torch.tensor([10.0, 0, 0]), atol=1.0)


def test_held_out_pictures_are_not_seen_by_the_fit(done: tuple[Scene, Path]):
    """Blackening a held-out picture must not change a single splat."""
    scene, _ = done
    # Points come from all pictures, so both fits start from random ones instead.
    settings = settings_for("draft", overrides=[*QUICK, "fit.steps=20", "preview=false"])
    from scenetx.fit import fit_splats
    from scenetx.io.prepare import hold_out

    def fitted(source: Scene) -> Gaussians:
        last = list(fit_splats(hold_out(replace(source, gaussians=None, points=None), 8), settings.fit))[-1]
        assert last.gaussians is not None
        return last.gaussians

    black = tuple(
        replace(view, image=torch.zeros_like(view.image)) if view.name == "008.jpg" else view for view in scene.views
    )
    a, b = fitted(scene), fitted(replace(scene, views=black))
    assert torch.equal(a.means, b.means)
    assert torch.equal(a.sh, b.sh)


def test_load_gives_the_scene_back(done: tuple[Scene, Path], tmp_path: Path):
    scene, folder = done
    loaded = scenetx.load(folder)
    assert torch.equal(loaded.gaussians.means, scene.gaussians.means)
    assert torch.allclose(loaded.world_from_cams, scene.world_from_cams)
    before = scenetx.render(scene, scene.registered[0].camera).rgb
    after = scenetx.render(loaded, loaded.registered[0].camera).rgb
    assert -10 * math.log10(max(float((before - after).square().mean()), 1e-20)) > 50
    scene.save(tmp_path / "copy")
    assert len(scenetx.load(tmp_path / "copy").views) == len(scene.views)


def test_exports_render_alike(done: tuple[Scene, Path], tmp_path: Path):
    scene, _ = done
    from scenetx.io.splat_formats import read_gaussians

    camera = scene.registered[3].camera
    truth = scenetx.render(scene, camera).rgb
    for name, least in (("a.ply", 50), ("a.spz", 35)):
        scenetx.export(scene, tmp_path / name)
        again = rasterize(read_gaussians(tmp_path / name), camera.to(torch.float32)).rgb
        assert -10 * math.log10(max(float((truth - again).square().mean()), 1e-20)) > least


def test_a_finished_scene_is_not_made_twice(done: tuple[Scene, Path], posed: Path):
    _, folder = done
    before = (folder / "splats.ply").stat().st_mtime_ns
    again = reconstruct(posed / "transforms.json", folder, settings=settings_for("draft", overrides=QUICK))
    assert (folder / "splats.ply").stat().st_mtime_ns == before
    assert len(again.gaussians) > 0


@pytest.mark.parametrize("stage", ["open", "cameras", "splats", "score"])
def test_interrupted_anywhere_ends_in_the_same_scene(stage: str, posed: Path, done: tuple[Scene, Path], tmp_path: Path):
    scene, _ = done
    settings = settings_for("draft", overrides=QUICK)

    def interrupt(name: str, fraction: float, _: str) -> None:
        if name == stage and (fraction > 0.3 or stage == "score"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(posed / "transforms.json", tmp_path / "out", settings=settings, report=interrupt)
    again = reconstruct(posed / "transforms.json", tmp_path / "out", settings=settings)
    assert torch.equal(again.gaussians.means, scene.gaussians.means)
    assert again.metrics["psnr"] == scene.metrics["psnr"]


def test_other_peoples_folders_are_left_alone(posed: Path, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        reconstruct(posed / "transforms.json", tmp_path / "precious", settings=settings_for("draft", overrides=QUICK))
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["thesis.txt"]


def test_render_paths_to_video_pictures_and_depth(done: tuple[Scene, Path], tmp_path: Path):
    scene, _ = done
    files = render_path(scene, tmp_path / "a.mp4", PathSettings(frames=4, depth=True))
    assert [path.name for path in files] == ["a.mp4", "a-depth.mp4"]
    assert all(path.stat().st_size > 500 for path in files)
    files = render_path(scene, tmp_path / "stills", PathSettings(path="spiral", frames=2, width=50, depth=True))
    assert [path.name for path in files] == ["00000.png", "00000-depth.png", "00001.png", "00001-depth.png"]
    with Image.open(files[0]) as picture, Image.open(files[1]) as depth:
        assert picture.size == (50, 38)
        assert np.asarray(depth).max() > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reconstruct", "/nowhere/photos"], "/nowhere/photos"),
        (["reconstruct", "{posed}", "fit.stepz=3"], "did you mean 'steps'"),
        (["reconstruct", "{posed}", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["render", "{posed}"], "scene.json"),
        (["render", "{scene}", "--path", "loop"], "choose orbit"),
        (["render", "{scene}", "--path", "/nowhere.json"], "/nowhere.json"),
        (["render", "{scene}", "-o", "a.gif"], "a.gif"),
        (["render", "{scene}", "--frames", "0"], "frames"),
        (["export", "{scene}", "a.xyz"], "unknown suffix .xyz"),
        (["export", "{scene}"], "no target"),
        (["export", "{scene}", "a.ply", "--splats", "0"], "give 1 or more"),
        (["evaluate", "{scene}", "--reference", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    says: str,
    posed: Path,
    done: tuple[Scene, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([word.format(posed=posed, scene=done[1]) for word in arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_export_and_evaluate_from_the_command_line(
    posed: Path, done: tuple[Scene, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(["export", str(done[1]), *(str(tmp_path / name) for name in ("a.splat", "points.ply", "a.glb", "colmap"))])
    assert (tmp_path / "colmap" / "cameras.bin").exists()
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.splat", "points.ply", "a.glb"))
    main(["export", str(done[1]), str(tmp_path / "few.splat"), "--splats", "50"])
    assert (tmp_path / "few.splat").stat().st_size == 50 * 32
    kept = json.loads((done[1] / "metrics.json").read_text())
    main(["evaluate", str(done[1]), "--reference", str(posed)])
    again = json.loads((done[1] / "metrics.json").read_text())
    assert again["psnr"] == pytest.approx(kept["psnr"], abs=0.5)
    assert again["seconds"] == kept["seconds"]
    main(["evaluate", str(done[1]), "--width", "40", "--output", str(tmp_path / "small.json")])
    small = json.loads((tmp_path / "small.json").read_text())
    assert "longest side 40 px" in small["protocol"]
    assert small["psnr"] > again["psnr"]
    assert json.loads((done[1] / "metrics.json").read_text()) == again
    assert "PSNR" in capsys.readouterr().err
