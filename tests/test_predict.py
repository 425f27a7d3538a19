"""From what a model says to a scene: exact pixels, chunks in one frame, given cameras kept, the best answer kept."""

from dataclasses import replace
from pathlib import Path

import pycolmap
import pytest
import torch
from PIL import Image

from scenetx.core import Cameras, InputError, Points, Sim3
from scenetx.core.cameras import look_at, pixel_grid
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.geometry.align import align_cameras
from scenetx.geometry.lift import LiftSettings
from scenetx.geometry.predicted import Matches, Try, choose, sampson, verdict
from scenetx.geometry.sfm import SfmCamera, SfmPicture, SfmSettings, refine_cameras
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.prepare import CameraModel, PrepareSettings, open_source, with_cameras
from scenetx.measure.shape import pose_errors
from scenetx.models.geometry import Geometry
from scenetx.models.pictures import SizeRule
from scenetx.pipeline.dense import add_depth, from_model
from scenetx.pipeline.predict import Predictor, PredictSettings, predict
from scenetx.pipeline.workspace import Workspace

WIDTH, HEIGHT, COUNT = 120, 90, 14
DESK = Path(__file__).parents[1] / "examples" / "desk"


def truth() -> Cameras:
    """Cameras along an arc that look at a plane; their pictures are grey, each its own grey."""
    x = torch.linspace(-1.5, 1.5, COUNT, dtype=torch.float64)
    eyes = torch.stack([x, 0.2 * x**2 - 0.3, -3 + 0.1 * x], -1)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    K = torch.tensor([[110.0, 0, WIDTH / 2], [0, 110, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(poses, K.repeat(COUNT, 1, 1), HEIGHT, WIDTH)


def plane_depth(cameras: Cameras) -> torch.Tensor:
    """z-depth of the world's wavy plane, nearly z = 0.5, at every pixel."""
    pixels = pixel_grid(cameras.height, cameras.width, dtype=torch.float64)
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    rays = torch.einsum("nij,hwj->nhwi", torch.linalg.inv(cameras.K), rays)
    along = torch.einsum("nij,nhwj->nhwi", cameras.world_from_cam[:, :3, :3], rays)
    return ((0.5 - cameras.centers[:, 2, None, None]) / along[..., 2]).float()


class Oracle:
    """Knows the pictures by their grey. Every look is in a frame and scale of its own, as a model's is."""

    def __init__(self, *, same_frame: bool = False) -> None:
        self.looks: list[list[int]] = []
        self.given: list[Cameras | None] = []
        self.same_frame = same_frame

    def __call__(self, images: torch.Tensor, cameras: Cameras | None) -> Geometry:
        which = [round(float(image.mean()) * 255 / 10) for image in images]
        self.looks.append(which)
        self.given.append(cameras)
        true = truth()[which].resized(images.shape[1], images.shape[2])
        depth = plane_depth(true)
        scale, turn = (1.0, 0.0) if self.same_frame else (1 + 0.3 * len(self.looks), 0.4 * len(self.looks))
        rotation = rotation_from_rotvec(torch.tensor([0.1 * turn, turn, -0.2 * turn], dtype=torch.float64))
        frame = Sim3(scale, rotation, torch.tensor([turn, -1.0, 2.0], dtype=torch.float64))
        moved = replace(true, world_from_cam=frame.apply_to_poses(true.world_from_cam))
        return Geometry(moved, depth * scale, torch.ones_like(depth))


@pytest.fixture
def opened(tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(COUNT):
        grey = Image.new("RGB", (WIDTH, HEIGHT), (10 * index,) * 3)
        grey.save(tmp_path / "photos" / f"{index:02d}.png")
    return open_source(str(tmp_path / "photos"), PrepareSettings(width=WIDTH), tmp_path / "work")


def predictor(oracle: Oracle, **changes) -> Predictor:
    return replace(Predictor("oracle", oracle, SizeRule(longest=112)), **changes)


def silent(_: str, __: float) -> None:
    """No one watches."""


def check_poses(found: torch.Tensor, tolerance: float = 1e-4) -> None:
    errors = pose_errors(truth().world_from_cam, found)
    assert float(errors.rotation_deg.max()) < 100 * tolerance
    assert float(errors.center.max()) < tolerance


def test_one_look_gives_the_pictures_own_pixels(opened):
    oracle, notes = Oracle(), []
    found = predict(opened.scene.views, predictor(oracle), PredictSettings(), silent, notes, posed=False)
    assert oracle.looks == [list(range(COUNT))]
    check_poses(torch.cat([one.camera.world_from_cam for one in found]))
    K = found[3].window.K_for_picture(found[3].camera.K[0])
    assert torch.allclose(K, truth().K[3], atol=1e-9)
    assert found[0].depth.shape == (84, 112)


def test_chunks_end_up_in_one_frame_and_scale(opened):
    oracle, notes = Oracle(), []
    settings = PredictSettings(chunk=6, overlap=3)
    found = predict(opened.scene.views, predictor(oracle), settings, silent, notes, posed=False)
    assert len(oracle.looks) > 3
    assert max(map(len, oracle.looks)) == 6
    poses = torch.cat([one.camera.world_from_cam for one in found])
    check_poses(poses, 1e-3)
    # Depth is in the same scale as the cameras.
    scale = align_cameras(truth().world_from_cam, poses).scale
    true = plane_depth(truth().resized(84, 112))
    ratios = torch.stack([(one.depth * scale / depth).median() for one, depth in zip(found, true, strict=True)])
    assert (ratios - 1).abs().max() < 1e-3
    assert any("chunks of 6" in note for note in notes)
    with pytest.raises(InputError, match="chunk"):
        predict(opened.scene.views, predictor(oracle), PredictSettings(chunk=3), silent, [], posed=False)


def space(tmp_path) -> Workspace:
    place = Workspace(tmp_path / "scene")
    place.open()
    return place


def test_a_scene_comes_out_of_a_prediction(opened, tmp_path):
    settings, notes = PredictSettings(refine=False, lift=LiftSettings(confident=0.0)), []
    scene = from_model(
        opened.scene, predictor(Oracle()), settings, SfmSettings(), PrepareSettings(width=WIDTH),
        lambda scene: [], space(tmp_path), notes,
    )  # fmt: skip
    assert scene.posed_by == "model"
    assert len(scene.registered) == COUNT
    poses = scene.world_from_cams
    check_poses(poses)
    similarity = align_cameras(truth().world_from_cam, poses)
    assert len(scene.points) > 1000
    heights = similarity.apply(scene.points.positions.double())[:, 2]
    assert (heights - 0.5).abs().median() < 0.01
    view = scene.registered[4]
    assert view.camera.K[0, 0, 0] == pytest.approx(110 * view.width / WIDTH, rel=1e-3)
    assert (view.depth > 0).float().mean() > 0.5
    assert view.original.K is not None


def test_given_cameras_stay_and_depth_comes_in_their_scale(opened, tmp_path):
    given = truth()
    grown = Sim3(7.0, torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    larger = replace(given, world_from_cam=grown.apply_to_poses(given.world_from_cam))
    models = {
        view.name: CameraModel(larger.world_from_cam[i], larger.K[i], (), "opencv", HEIGHT, WIDTH)
        for i, view in enumerate(opened.scene.views)
    }
    scene = with_cameras(opened.scene, models, PrepareSettings(width=WIDTH))
    for takes in (False, True):
        oracle = Oracle()
        told = predictor(oracle, takes_cameras=takes)
        settings = PredictSettings(lift=LiftSettings(confident=0.0))
        out = add_depth(scene, told, settings, space(tmp_path / str(takes)), [])
        assert torch.equal(out.world_from_cams, scene.world_from_cams)
        assert (oracle.given[0] is not None) == takes
        ratio = out.views[4].depth / (7 * plane_depth(given)[4])
        assert ratio[out.views[4].depth > 0].median() == pytest.approx(1.0, abs=2e-3)
    assert float(oracle.given[0].centers[1:].norm(dim=-1).median()) == pytest.approx(1.0, abs=1e-5)
    # Sparse points, where there are some, have the last word on the scale.
    sparse = Points(torch.tensor([[0.0, 0.0, 1.0]]).repeat(50, 1), torch.zeros(50, 3, dtype=torch.uint8))
    with_sparse = add_depth(replace(scene, points=sparse), told, settings, space(tmp_path / "sparse"), [])
    assert with_sparse.points is not None


def test_sampson_is_zero_on_the_epipolar_line_and_a_distance_off_it():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0, 6])
    rotation = rotation_from_rotvec(torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64))
    translation = torch.tensor([1.0, 0.2, 0.1], dtype=torch.float64)
    moved = points @ rotation.T + translation
    a, b = points[:, :2] / points[:, 2:], moved[:, :2] / moved[:, 2:]
    errors = sampson(rotation.numpy(), translation.numpy(), a.numpy(), b.numpy())
    assert errors.max() < 1e-12
    off = sampson(rotation.numpy(), translation.numpy(), a.numpy(), (b + 0.01).numpy())
    assert 0 < off.mean() < 0.02
    shifted = sampson(rotation.numpy(), 3 * translation.numpy(), a.numpy(), b.numpy())
    assert shifted.max() < 1e-12


def test_the_answer_that_explains_most_is_kept():
    def kept(prediction: float, refined: float, plain: float) -> str:
        shares = {"prediction": prediction, "refined prediction": refined, "structure from motion": plain}
        tried = [Try(how, pycolmap.Reconstruction(), share) for how, share in shares.items()]
        return choose(tried).how

    assert kept(0.2, 0.9, 0.8) == "refined prediction"
    assert kept(0.2, 0.5, 0.8) == "structure from motion"
    assert kept(0.2, 0.899, 0.9) == "refined prediction"
    assert kept(0.0, 0.0, 0.0) == "refined prediction"
    assert kept(0.3, 0.1, 0.1) == "prediction"
    nothing = verdict([], Try("prediction", pycolmap.Reconstruction(), 0.0), Matches({}))
    assert "could not be checked" in nothing


def desk(degrees: float, shift: float, zoom: float):
    """Seven of the desk's pictures and cameras that are off by so much."""
    source = read_cameras_json(DESK)
    pictures = source.pictures[:7]
    true = torch.stack([picture.world_from_cam.double() for picture in pictures])
    extent = (true[:, :3, 3] - true[:, :3, 3].mean(0)).norm(dim=-1).max()
    generator = torch.Generator().manual_seed(0)
    files, guesses = [], {}
    for picture, pose in zip(pictures, true, strict=True):
        noise = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        off = pose.clone()
        off[:3, :3] = pose[:3, :3] @ rotation_from_rotvec(torch.deg2rad(degrees * noise[0]))
        off[:3, 3] += shift * extent * noise[1]
        K = picture.K.double() * torch.tensor([[zoom], [zoom], [1.0]])
        guesses[picture.name] = SfmCamera(off, K, (0.0, 0.0, 0.0, 0.0), picture.height, picture.width)
        files.append(SfmPicture(picture.name, picture.path, "desk"))
    return true, files, guesses


@pytest.mark.slow
def test_cameras_that_are_nearly_right_become_right(tmp_path):
    true, files, guesses = desk(2.0, 0.04, 1.1)
    result = refine_cameras(files, guesses, tmp_path, SfmSettings(num_threads=1, max_image_size=640))
    found = torch.stack([result.cameras[picture.name].world_from_cam for picture in files])
    errors = pose_errors(true, found, reference_from_estimate=align_cameras(true, found))
    assert result.kept in ("refined prediction", "structure from motion")
    assert float(errors.rotation_deg.median()) < 0.3
    assert float(errors.center.median()) < 0.01
    assert "explained" in result.notes[1]


@pytest.mark.slow
def test_bad_cameras_do_no_harm(tmp_path):
    true, files, guesses = desk(60.0, 1.0, 2.0)
    result = refine_cameras(files, guesses, tmp_path, SfmSettings(num_threads=1, max_image_size=640))
    assert result.kept == "structure from motion"
    found = torch.stack([result.cameras[picture.name].world_from_cam for picture in files])
    errors = pose_errors(true, found, reference_from_estimate=align_cameras(true, found))
    assert float(errors.rotation_deg.median()) < 0.3
