"""Scene students: trained on a small scene they place pictures they have not seen; kept, read back, refused."""

from dataclasses import replace

import pytest
import torch
from live_oracle import HEIGHT, WIDTH, Oracle, height, lens, picture, walk

from scenetx.core import Cameras, InputError, Original, Points, Scene, View, project
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import rotation_angle
from scenetx.live.classical_map import FOLDER
from scenetx.live.student import CELL, CoordinateNet, Student, StudentShape, network_size
from scenetx.live.student_train import (
    STUDENT_FILE,
    StudentSettings,
    open_student,
    prepare_lessons,
    train_student,
    with_teacher,
)
from scenetx.live.update import Locator

TINY = StudentShape(side=98, widths=(8, 12, 16), blocks=1, hidden=24, anchors=8)


def hill_scene(count=24, *, depth=True, turn=2.0):
    """Pictures of the hill; every fourth is held out."""
    views = []
    for index, pose in enumerate(walk(count, turn=turn)):
        image, z = picture(pose)
        camera = Cameras(pose[None], lens()[None], HEIGHT, WIDTH)
        original = Original(f"{index}.png", HEIGHT, WIDTH)
        view = View(f"{index}.png", image, original, camera, depth=z if depth else None, held_out=index % 4 == 2)
        views.append(view)
    return Scene(tuple(views), posed_by="sfm")


def test_lessons_hold_the_scene_points_of_every_pixel():
    scene = hill_scene(4)
    tall = scene.views[1]
    half = View(
        "half.png",
        tall.image[:, : WIDTH // 2],
        tall.original,
        tall.camera.cropped(0, 0, HEIGHT, WIDTH // 2),
        depth=tall.depth[:, : WIDTH // 2],
    )
    lessons = prepare_lessons([*scene.views, half], 98, 2.0)
    height, width = network_size(HEIGHT, WIDTH, 98)
    assert (height % CELL, width % CELL) == (0, 0)
    assert network_size(HEIGHT, WIDTH // 2, 98)[0] > height  # the narrow one is taller at the same longest side
    # Each known place lies where its pixel looks, and at its depth.
    for row in range(5):
        known = lessons.places[row].isfinite().all(-1)
        assert known.float().mean() > 0.3
        points = lessons.places[row][known].double()
        cameras = Cameras(
            torch.linalg.inv(lessons.cam_from_place[row].double())[None], lessons.K[row : row + 1].double(), 1, 1
        )
        pixels, z = project(points, cameras)
        grid = pixel_grid(*lessons.places.shape[1:3], dtype=torch.float64)[known]
        assert (pixels[0] - grid).abs().max() < 1e-2
        assert (z > 0).all()
    world = lessons.places[0][4, 4].double() * lessons.radius + lessons.center
    assert float(world[2].abs()) < 0.5  # on the ground


def test_masked_pixels_teach_nothing():
    scene = hill_scene(2)
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, : WIDTH // 2] = True
    lessons = prepare_lessons([replace(view, mask=mask) for view in scene.views], 98, 2.0)
    known = lessons.places[0].isfinite().all(-1)
    assert known[:, :40].all()
    assert not known[:, 56:].any()


def test_a_student_is_kept_and_read_back_to_the_last_bit(tmp_path):
    scene = hill_scene(6)
    heard = []
    settings = StudentSettings(TINY, steps=21, batch=2)
    student = train_student(scene, settings, lambda line, share: heard.append((line, share)))
    assert isinstance(student, Locator)
    assert heard
    assert "21 steps" in student.report.notes[0]
    assert student.report.tested == 1
    assert student.report.pictures == 5
    path = student.save(tmp_path / "s.safetensors")
    assert path.stat().st_size == pytest.approx(1e6 * student.megabytes, rel=0.35)
    loaded = Student.load(path)
    assert loaded.report == student.report or loaded.report.localised == 0  # not-a-number is not equal to itself
    for mine, theirs in zip(
        student.coordinates(scene.views[2].image), loaded.coordinates(scene.views[2].image), strict=True
    ):
        assert torch.equal(mine, theirs)
    # The same seed, the same student; kept in the scene's folder, it is not trained again.
    kept = open_student(scene, tmp_path, settings)
    assert (tmp_path / FOLDER / STUDENT_FILE).is_file()
    assert torch.equal(kept.coordinates(scene.views[2].image)[1], student.coordinates(scene.views[2].image)[1])
    silent = []
    again = open_student(scene, tmp_path, settings, lambda line, share: silent.append(line))
    assert not silent
    assert again.report.source == kept.report.source
    # Of another scene it is not.
    with pytest.raises(InputError, match="reconstruct it first"):
        open_student(Scene(()), tmp_path, settings)


def test_what_is_no_student_or_no_scene_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Student\.save"):
        Student.load(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"Student\.save"):
        Student.load(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="reconstruct it first"):
        train_student(Scene(hill_scene(4).views[:1]))
    # An untrained network places nothing with confidence.
    torch.manual_seed(0)
    student = Student(CoordinateNet(TINY, torch.randn(8, 3)), TINY, torch.zeros(3), 1.0)
    found = student.locate(hill_scene(1).views[0].image, lens(), None)
    assert found is None or found.confidence < 0.3


def test_a_models_depth_teaches_where_a_scene_has_none():
    oracle = Oracle(walk(9, turn=1.5))
    scene = hill_scene(9, depth=False, turn=1.5)
    taught = with_teacher(scene, oracle.eye(), chunk=4)
    for view, true in zip(taught.views, oracle.depths, strict=True):
        # In the scene's unit, whatever the model's was.
        assert torch.allclose(view.depth, true, rtol=1e-3)


def test_points_teach_what_they_cover_and_not_through_what_is_before_them():
    scene = hill_scene(3, depth=False, turn=0.5)
    x, y = torch.meshgrid(torch.linspace(-2, 2, 60), torch.linspace(-2, 2, 60), indexing="ij")
    x, y = x.flatten().double(), y.flatten().double()
    ground = torch.stack([x, y, height(x, y)], -1)
    buried = ground - torch.tensor([0.0, 0, 2.0])
    lessons = prepare_lessons(scene.views, 98, 2.0, torch.cat([ground, buried]).float())
    known = lessons.places.isfinite().all(-1)[:, :72]
    assert known.float().mean() > 0.8
    world = lessons.places[:, :72][known].double() * lessons.radius + lessons.center
    off = world[:, 2] - height(world[:, 0], world[:, 1])
    assert off.abs().median() < 0.03
    assert (off < -0.5).double().mean() < 0.02


@pytest.fixture
def one_thread():
    """Pictures this small are learnt faster by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["depth", "points"])
def test_a_student_places_pictures_it_has_not_seen(teacher: str, one_thread: None):
    scene = hill_scene(24, depth=teacher == "depth")
    if teacher == "points":
        x, y = (4 * torch.rand(2, 3000, generator=torch.Generator().manual_seed(0)) - 2).double()
        points = torch.stack([x, y, height(x, y)], -1).float()
        scene = replace(scene, points=Points(points, torch.zeros(3000, 3, dtype=torch.uint8)))
    shape = StudentShape(side=98, widths=(16, 24, 48), blocks=2, hidden=96, anchors=16)
    student = train_student(scene, StudentSettings(shape, steps=240, batch=6, rate=6e-3))
    report = student.report
    assert (report.tested, report.localised, report.pictures) == (6, 6, 18)
    # Of the distance to the hill, from pictures of 98 x 70 pixels.
    assert report.center_share_median < 0.04
    assert report.rotation_deg_median < 2.0
    true = scene.held_out[0]
    found = student.locate(true.image, lens(), None)
    assert rotation_angle(true.camera.world_from_cam[0, :3, :3].T @ found.world_from_cam[:3, :3]) < 0.15
    assert found.inliers <= found.matches
    # The focal length is found too, from the picture alone.
    K, agree = student.estimate_K(true.image)
    assert float(K[0, 0]) == pytest.approx(float(lens()[0, 0]), rel=0.2)
    assert agree > 20
    # Another place is not taken for this one.
    noise = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lost = student.locate(noise, lens(), None)
    assert lost is None or lost.confidence < 0.5 * found.confidence
