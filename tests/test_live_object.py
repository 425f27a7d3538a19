"""Tracking an object: masks, the box that follows, the object's own frame and scale."""

import math

import numpy as np
import pytest
import torch
from live_oracle import HEIGHT, WIDTH, Oracle, lens, walk

from scenetx.core import Cameras, InputError, unproject
from scenetx.core.rigid import invert_rigid, rigid, rotation_from_rotvec
from scenetx.data import ProceduralConfig, procedural_views
from scenetx.io.images import write_picture
from scenetx.io.video import write_video
from scenetx.live.kv_map import build_map, unplaced
from scenetx.live.kv_session import KvSession
from scenetx.live.kv_tracker import KvTracker
from scenetx.live.object_mode import (
    BACKGROUND,
    BoxFollower,
    MaskFiles,
    Masks,
    MaskVideo,
    ObjectTracker,
    cut_out,
    object_frames,
    object_points,
    object_pose,
    point_at,
    scale_for_points,
    scale_for_size,
)
from scenetx.live.update import Frame, GrowsMap, Located

GREY = torch.tensor(BACKGROUND, dtype=torch.uint8)


def scene_with(x, y, size, seed=1):
    """A textured square at (x, y) on clutter, and its true box."""
    generator = torch.Generator().manual_seed(seed)
    clutter = torch.rand(1, 3, 16, 24, generator=generator)
    picture = torch.nn.functional.interpolate(clutter, (120, 180), mode="bicubic")[0].clamp(0, 1)
    thing = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    thing = torch.nn.functional.interpolate(thing, (size, size), mode="bilinear")[0]
    picture[:, y : y + size, x : x + size] = thing
    return (picture.permute(1, 2, 0) * 255).to(torch.uint8), (x, y, x + size, y + size)


def overlap(a, b):
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / area


def test_a_box_follows_what_it_showed_through_moves_and_growth_and_finds_it_again():
    image, box = scene_with(40, 40, 32)
    masks = BoxFollower(box)
    assert isinstance(masks, Masks)
    path = [(40 + 5 * i, 40 + round(10 * math.sin(i / 3)), 32 + i) for i in range(14)]
    for index, (x, y, size) in enumerate(path):
        image, box = scene_with(x, y, size, seed=1)
        mask = masks.of(image, index)
        assert overlap(masks.box, box) > 0.7, index
        assert mask[round(y + size / 2), round(x + size / 2)]
        # A margin, not the picture.
        assert box[2] - box[0] < int(mask.any(0).sum()) < 1.8 * size
    image, box = scene_with(40, 40, 32)
    nothing = BoxFollower(box)
    nothing.of(image, 0)
    empty, _ = scene_with(0, 0, 1, seed=7)
    assert nothing.of(empty, 1) is None
    # Far from where it was lost.
    image, box = scene_with(120, 70, 32, seed=7)
    assert nothing.of(image, 2) is not None
    assert overlap(nothing.box, box) > 0.7


def test_boxes_that_are_none_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        BoxFollower((10, 10, 12, 40))
    with pytest.raises(InputError, match="inside"):
        BoxFollower((500, 10, 600, 40)).of(scene_with(40, 40, 32)[0], 0)


def test_masks_come_from_a_folder_or_a_video_by_the_frames_number(tmp_path):
    image = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8)
    frames = np.zeros((4, 32, 48, 3), np.uint8)
    (tmp_path / "masks").mkdir()
    for index in range(3):
        frames[index, 8:24, 8 * index : 8 * index + 16] = 255
        write_picture(tmp_path / "masks" / f"{index}.png", frames[index])
    write_picture(tmp_path / "masks" / "3.png", frames[3])
    write_video(tmp_path / "masks.mp4", iter(frames), 10)
    for masks in (MaskFiles(tmp_path / "masks"), MaskVideo(tmp_path / "masks.mp4")):
        assert isinstance(masks, Masks)
        for index in (0, 2):  # frame 1 was dropped
            mask = masks.of(image, index)
            true = torch.from_numpy(frames[index, ..., 0] > 127)
            assert (mask != true).float().mean() < 0.03
            kept = cut_out(image, mask)
            assert torch.equal(kept[mask], image[mask])
            assert (kept[~mask] == GREY).all()
        # Nothing to see, and beyond the end.
        assert masks.of(image, 3) is None
        assert masks.of(image, 9) is None
    with pytest.raises(InputError, match="one mask a frame"):
        MaskFiles(tmp_path / "absent")
    with pytest.raises(InputError, match="video of masks"):
        MaskVideo(tmp_path / "masks" / "absent.mp4").of(image, 0)


def test_frames_without_the_object_show_nothing(tmp_path):
    image, box = scene_with(40, 40, 32)
    empty, _ = scene_with(0, 0, 1, seed=7)
    frames = [Frame(0, 0.0, image), Frame(1, 0.1, empty, note="black")]
    first, second = object_frames(frames, BoxFollower(box))
    assert torch.equal(first.image[50, 50], image[50, 50])
    assert (first.image[0] == GREY).all()
    assert (second.image == GREY).all()
    assert second.note == "black; object not found"
    assert (first.index, second.time) == (0, 0.1)


class Fixed:
    """A locator that always gives one answer and remembers what it was asked."""

    name = "fixed"

    def __init__(self, pose):
        self.pose, self.guess, self.image = pose, None, None

    def locate(self, image, K, guess):
        self.guess, self.image = guess, image
        return Located(self.pose, 0.8)


def moving_object(count):
    """A still camera, and an object that turns and drifts before it: object_from_cam is the hill's world_from_cam."""
    return walk(count, turn=2.5)


def test_the_pose_is_the_objects():
    object_from_cam = moving_object(24)
    oracle = Oracle(object_from_cam)
    with KvSession(oracle.eye()) as session:
        tracker = ObjectTracker(session)
        found = []
        for image in oracle.pictures:
            answer = tracker.locate(image, lens(), None)
            session._mapper.settle(30)
            found.append(None if answer is None else answer.world_from_cam)
        points = object_points(session.map.keyframes)
        # What the session tells of itself is told on; its growing map has the keyframes' points.
        assert isinstance(tracker, GrowsMap)
        assert tracker.keyframes == session.keyframes > 1
        assert torch.equal(tracker.K, session.K)
        assert tracker.K_settled
        shown, scene = tracker.map_points(), ObjectTracker(session, scale_for_size(points, 0.5)).scene()
        keyframes = session.map.keyframes
    assert len(shown) > 1000
    assert shown.colors.float().std() > 5
    unit = scale_for_size(points, 0.5)
    there = torch.stack([keyframe.world_from_cam for keyframe in keyframes])
    assert torch.allclose(scene.world_from_cams, unit.apply_to_poses(there))
    seen = [(i, pose) for i, pose in enumerate(found) if pose is not None]
    assert len(seen) > 12
    first, begin = seen[0]
    unit = None
    for index, pose in seen[1:]:
        # How the object moved before the camera since the first frame, up to the map's unit.
        moved = object_pose(pose) @ invert_rigid(object_pose(begin))
        true = invert_rigid(object_from_cam[index]) @ object_from_cam[first]
        assert torch.allclose(moved[:3, :3], true[:3, :3], atol=1e-4)
        if true[:3, 3].norm() > 0.3:
            unit = unit or float(moved[:3, 3].norm() / true[:3, 3].norm())
            assert torch.allclose(moved[:3, 3], unit * true[:3, 3], atol=2e-3 * unit)
    assert len(points) > 1000


def test_a_moving_objects_mask_places_it_though_the_camera_moves_too(tmp_path):
    config = ProceduralConfig(140, 196, 8, 0.25, moving=1.0, rigs=("orbit",), shadows=False, blur=1)
    made = procedural_views([7], config)
    mine = made.instances[0] == 3
    world_from_object = made.world_from_object[0, :, 2].double()
    assert (world_from_object[:, :3, 3] - world_from_object[0, :3, 3]).norm(dim=-1).max() > 0.3
    for index, mask in enumerate(mine):
        white = (mask[..., None].expand(-1, -1, 3) * 255).to(torch.uint8)
        write_picture(tmp_path / f"{index}.png", white.numpy())
    frames = [Frame(index, index / 10, made.rgb[0, index]) for index in range(8)]
    cut = [frame.image for frame in object_frames(frames, MaskFiles(tmp_path))]
    assert torch.equal(cut[3][mine[3]], made.rgb[0, 3][mine[3]])
    # What a model sees of the object: its camera moves as the camera does before the object.
    object_from_cam = invert_rigid(world_from_object) @ made.world_from_cam[0].double()
    shown = [(image, made.depth[0, index] * mine[index]) for index, image in enumerate(cut)]
    oracle = Oracle(object_from_cam, shown=shown, lenses=made.K[0].double())
    even = [unplaced(index, cut[index], made.K[0, index]) for index in (0, 2, 4, 6)]
    tracker = ObjectTracker(KvTracker(oracle.eye(), build_map(oracle.eye(), even, [False] * 4)))
    unit = None
    for index in (1, 3, 5, 7):
        found = tracker.locate(cut[index], made.K[0, index], None)
        # The map agrees: the background, which is where it is not, has no say.
        assert found.confidence > 0.3
        true = invert_rigid(object_from_cam[0]) @ object_from_cam[index]
        assert torch.allclose(found.world_from_cam[:3, :3], true[:3, :3], atol=1e-4)
        unit = unit or float(found.world_from_cam[:3, 3].norm() / true[:3, 3].norm())
        assert torch.allclose(found.world_from_cam[:3, 3], unit * true[:3, 3], atol=1e-3 * unit)


def test_known_sizes_and_known_points_make_metres():
    oracle = Oracle(walk(4, turn=1.0))
    kv_map = build_map(oracle.eye(), [unplaced(i, oracle.pictures[i], lens()) for i in range(4)], [False] * 4)
    frame = kv_map.keyframes[0]
    inner = KvTracker(oracle.eye(), kv_map)
    # Two points of the hill whose distance is known.
    a, b = point_at(frame, 52.5, 38.5), point_at(frame, 24.5, 38.5)
    one = Cameras(oracle.poses[:1], lens()[None], HEIGHT, WIDTH)
    depth = oracle.depths[0][38, [52, 24]].double()
    true = unproject(torch.tensor([[[52.5, 38.5], [24.5, 38.5]]]).double(), depth[None], one)[0]
    distance = float((true[1] - true[0]).norm())
    metric = ObjectTracker(inner, scale_for_points(a, b, distance))
    poses = [metric.locate(oracle.pictures[i], lens(), None).world_from_cam for i in (0, 2)]
    apart = float((oracle.poses[2] - oracle.poses[0])[:3, 3].norm())
    assert float((poses[1] - poses[0])[:3, 3].norm()) == pytest.approx(apart, rel=1e-3)
    with pytest.raises(InputError, match="different points"):
        scale_for_points(a, a, 1.0)
    with pytest.raises(InputError, match="choose one on the object"):
        point_at(frame, -500, -500)


def test_a_known_length_scales_and_centres():
    generator = torch.Generator().manual_seed(0)
    box = (torch.rand(20_000, 3, generator=generator).double() - 0.5) * torch.tensor([4.0, 2.0, 1.0]).double()
    turn = rotation_from_rotvec(torch.tensor([0.3, -1.0, 0.5]).double())
    center = torch.tensor([5.0, 6.0, 7.0]).double()
    box[:3] = 100.0  # stray points have no say
    sim3 = scale_for_size(box @ turn.T + center, 0.5)
    assert sim3.scale == pytest.approx(0.5 / (4.0 * 0.96), rel=0.03)
    assert torch.allclose(sim3.apply(center), torch.zeros(3).double(), atol=0.01)
    with pytest.raises(InputError, match="above 0"):
        scale_for_size(box, 0.0)
    with pytest.raises(InputError, match="few sides"):
        scale_for_size(box[:3], 1.0)


def test_the_objects_frame_goes_in_and_out_and_masks_are_asked():
    pose = rigid(torch.eye(3).double(), torch.tensor([1.0, 2.0, 3.0]).double())
    sim3 = scale_for_points(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 5.0]), 1.0)
    inner = Fixed(pose)
    image, box = scene_with(40, 40, 32)
    tracker = ObjectTracker(inner, sim3, BoxFollower(box))
    found = tracker.locate(image, lens(), torch.eye(4).double())
    assert torch.allclose(found.world_from_cam[:3, 3], torch.zeros(3).double())
    assert torch.allclose(inner.guess[:3, 3], torch.tensor([1.0, 2.0, 3.0]).double())
    assert (inner.image[0] == GREY).all()
    assert found.confidence == 0.8
    # A map that tells nothing of itself has no more to tell as an object's.
    assert (tracker.K, tracker.K_settled, tracker.keyframes, tracker.map_points()) == (None, True, 0, None)
    with pytest.raises(InputError, match="makes no scene"):
        tracker.scene()
    assert tracker.locate(scene_with(0, 0, 1, seed=7)[0], lens(), None) is None
    assert Cameras(found.world_from_cam[None], lens()[None], 4, 4).centers.abs().max() < 1e-9
