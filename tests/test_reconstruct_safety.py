"""What a reconstruction is told wrongly is said before the work, and leaves nothing behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenetx.cli import main
from scenetx.core import Gaussians, InputError, Points
from scenetx.core.cameras import look_at
from scenetx.fit.optimize import FitUpdate
from scenetx.io.ply import write_points_ply
from scenetx.io.sources import find_source
from scenetx.pipeline.reconstruct import reconstruct, settings_for
from scenetx.pipeline.reference import read_reference
from scenetx.pipeline.workspace import Workspace

H, W, N = 48, 64, 4
OPENGL = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four noisy pictures with a transforms.json and points; true.json has the same cameras as a cameras.json."""
    folder = tmp_path_factory.mktemp("posed") / "wall"
    (folder / "images").mkdir(parents=True)
    x = torch.linspace(-1, 1, N, dtype=torch.float64)
    up = torch.tensor([0.0, -1, 0], dtype=torch.float64)
    poses = look_at(torch.stack([x, x**2, -3 + 0 * x], -1), torch.zeros(3, dtype=torch.float64), up)
    lens = {"w": W, "h": H, "fl_x": 60.0, "fl_y": 60.0, "cx": W / 2, "cy": H / 2}
    noise = np.random.default_rng(0)
    frames, entries = [], {}
    for index in range(N):
        name = f"{index}.png"
        Image.fromarray(noise.integers(0, 256, (H, W, 3), dtype=np.uint8)).save(folder / "images" / name)
        frames.append({"file_path": f"images/{name}", "transform_matrix": (poses[index] @ OPENGL).tolist()})
        K = [[60.0, 0, W / 2], [0, 60.0, H / 2], [0, 0, 1]]
        entries[name] = {"width": W, "height": H, "K": K, "world_from_cam": poses[index].tolist()}
    (folder / "transforms.json").write_text(json.dumps({**lens, "ply_file_path": "start.ply", "frames": frames}))
    (folder / "true.json").write_text(json.dumps({"images": entries}))
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    write_points_ply(Points(points, torch.full((50, 3), 128, dtype=torch.uint8)), folder / "start.ply")
    return folder


@pytest.fixture(scope="module")
def done(posed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "scene"
    reconstruct(posed, folder, settings=settings_for("draft", overrides=["splats=none"]))
    return folder


def never(*_: object, **__: object) -> None:
    pytest.fail("work was begun")


@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_source_is_not_the_working_directory(blank: str, posed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(posed)
    with pytest.raises(InputError, match="source: is empty"):
        find_source(blank)
    with pytest.raises(InputError, match="source: is empty"):
        reconstruct(blank)
    assert not list(posed.glob("*-scene"))


def test_a_reference_is_read_before_the_work(posed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[reconstruct.__module__], "open_source", never)
    with pytest.raises(InputError, match=r"nope\.json"):
        reconstruct(posed, tmp_path / "scene", reference=tmp_path / "nope.json")
    assert list(tmp_path.iterdir()) == []


def test_a_model_s_name_is_looked_at_before_the_work(done: Path, tmp_path: Path):
    with pytest.raises(InputError, match="da3-smal"):
        reconstruct(done, tmp_path / "scene", settings=settings_for("draft", overrides=["model=da3-smal"]))
    assert list(tmp_path.iterdir()) == []


def test_a_scene_as_source_says_that_its_cameras_stay(done: Path, tmp_path: Path):
    settings = settings_for("draft", overrides=["splats=none", "model=da3-small"])
    scene = reconstruct(done, tmp_path / "scene", settings=settings)
    notes = [note for stage in scene.history for note in stage.notes]
    assert any("da3-small is not used" in note for note in notes)


def test_a_finished_scene_is_measured_against_a_reference(posed: Path, done: Path, tmp_path: Path):
    settings = settings_for("draft", overrides=["splats=none"])
    before = (done / "scene.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="not there"):
        reconstruct(posed, done, settings=settings, reference=tmp_path / "nope.json")
    assert "reference" not in json.loads((done / "metrics.json").read_text())
    scene = reconstruct(posed, done, settings=settings, reference=posed / "true.json")
    assert scene.metrics["reference"]["cameras"] == N
    written = json.loads((done / "metrics.json").read_text())
    assert written["reference"]["rotation_deg_max"] < 1e-3
    assert written["registered"] == N
    assert (done / "scene.json").stat().st_mtime_ns == before


def test_an_empty_scene_is_no_result(posed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    none = Gaussians(*(torch.zeros(0, *shape) for shape in ((3,), (4,), (3,), (), (1, 3))))

    def nothing(*_: object, **__: object):
        yield FitUpdate(step=1, steps=1, loss=0.1, psnr=None, gaussians=none, num_gaussians=0, seconds=0.0)

    monkeypatch.setattr(sys.modules[reconstruct.__module__], "fit_splats", nothing)
    with pytest.raises(InputError, match="no splats came out"):
        reconstruct(posed, tmp_path / "scene", settings=settings_for("draft"))
    assert not (tmp_path / "scene" / "scene.json").exists()


def test_a_typo_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", str(tmp_path / "phtos"), "-o", str(tmp_path / "a" / "scene")])
    assert stopped.value.code == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def fail(made: Path | None = None) -> None:
    if made is not None:
        made.mkdir()
    raise InputError("a", "b", "c")


def test_what_was_there_or_was_worked_for_stays(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError), Workspace(tmp_path / "mine").held():
        fail()
    assert (tmp_path / "mine").is_dir()
    assert list((tmp_path / "mine").iterdir()) == []
    space = Workspace(tmp_path / "scene")
    with pytest.raises(InputError), space.held():
        fail(space.work / "frames")
    assert (space.work / "frames").is_dir()


def test_references_are_told_by_what_they_hold(posed: Path, done: Path, tmp_path: Path):
    assert read_reference(posed).kind == "transforms"
    assert read_reference(posed / "true.json").kind == "cameras.json"
    renamed = posed / "cams.json"
    renamed.write_text((posed / "transforms.json").read_text())
    assert read_reference(renamed).kind == "transforms"
    named = tmp_path / "my_transforms.json"
    named.write_text((posed / "true.json").read_text())
    assert read_reference(named).kind == "cameras.json"
    for ours in (done, done / "scene.json"):
        assert {Path(picture.name).stem for picture in read_reference(ours).pictures} == {"0", "1", "2", "3"}
    assert read_reference(done / "sparse" / "0" / "cameras.bin").kind == "colmap"
    (tmp_path / "list.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="without 'frames' or 'images'"):
        read_reference(tmp_path / "list.json")
    (tmp_path / "cameras.json").write_text("[]")  # 3DGS writes a list
    with pytest.raises(InputError, match="COLMAP"):
        read_reference(tmp_path)


def test_a_reference_need_not_have_its_pictures(posed: Path, tmp_path: Path):
    bare = tmp_path / "true.json"
    bare.write_text((posed / "true.json").read_text())
    assert len(read_reference(bare).pictures) == N
