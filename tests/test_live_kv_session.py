"""Tracking without a map: it begins, grows and is replaced, and neither place nor scale jump."""

from dataclasses import replace

import pytest
import torch
from live_oracle import HEIGHT, WIDTH, Oracle, lens, pan, walk
from test_models_cache import made

from scenetx.core import InputError
from scenetx.core.rigid import invert_rigid
from scenetx.live.intrinsics import Intrinsics
from scenetx.live.keyframes import KeyframeSettings
from scenetx.live.kv_map import SPARE, Eye, KvMap
from scenetx.live.kv_session import KvSession, SessionSettings, open_kv, open_session
from scenetx.live.kv_tracker import KvSettings, KvTracker
from scenetx.live.track import Tracker
from scenetx.live.update import Frame, Locator
from scenetx.models.pictures import SizeRule


def session_of(oracle, most=30, **settings):
    kv = KvSettings(KeyframeSettings(most=most))
    return KvSession(oracle.eye(), SessionSettings(kv, **settings))


def tracked(session, oracle, numbers, *, settle=True):
    """Poses found of the pictures, None where there was none, and what was said."""
    found, notes = [], []
    for number in numbers:
        answer = session.locate(oracle.pictures[number].clone(), lens(), None)
        found.append(None if answer is None else answer.world_from_cam)
        notes.append("" if answer is None else answer.note)
        if settle:
            assert session._mapper.settle(30)
    return found, notes


def errors(found, oracle, numbers):
    """Of the poses against the truth, relative to the first picture: one scale for all frames is allowed."""
    pairs = [(pose, oracle.poses[number]) for pose, number in zip(found, numbers, strict=True) if pose is not None]
    true = torch.stack([invert_rigid(oracle.poses[numbers[0]]) @ pose for _, pose in pairs])
    mine = torch.stack([pose for pose, _ in pairs])
    far = true[:, :3, 3].norm(dim=-1) > 0.1
    scale = (mine[far, :3, 3].norm(dim=-1) / true[far, :3, 3].norm(dim=-1)).median() if far.any() else 1.0
    return (mine[:, :3, :3] - true[:, :3, :3]).abs().amax(), (mine[:, :3, 3] - scale * true[:, :3, 3]).abs().amax()


def test_place_and_scale_do_not_jump_though_every_map_has_its_own():
    oracle = Oracle(walk(60))
    numbers = list(range(60))
    with session_of(oracle) as session:
        assert isinstance(session, Locator)
        with pytest.raises(InputError, match="none yet"):
            session.scene()
        found, notes = tracked(session, oracle, numbers)
        # The first pictures make the map; from then on every frame has a pose.
        assert found[0] is None
        begun = next(i for i, pose in enumerate(found) if pose is not None)
        assert begun < SessionSettings().patience
        assert all(pose is not None for pose in found[begun:])
        assert sum("map of" in note for note in notes) >= 4
        rotation, center = errors(found, oracle, numbers)
        assert rotation < 1e-5
        assert center < 1e-4
        assert oracle.maps > 4
        assert 8 <= session.keyframes <= 40
        # Intrinsics as the model sees them, for the frames' pixels.
        assert torch.allclose(session.K, lens(), rtol=1e-6)


def test_a_wrong_keyframe_in_a_new_map_moves_nothing():
    oracle = Oracle(walk(40, turn=3.0), mistakes={number: {0} for number in range(3, 100)})
    with session_of(oracle) as session:
        found, _ = tracked(session, oracle, range(40))
        rotation, center = errors(found, oracle, range(40))
    assert rotation < 1e-4
    assert center < 1e-3


def test_a_map_that_fits_nothing_is_turned_away_with_its_newcomer():
    oracle = Oracle(walk(40, turn=3.0), mistakes={number: {None} for number in range(4, 100)})
    with session_of(oracle) as session:
        found, notes = tracked(session, oracle, range(40))
        # It is tried again ever more rarely.
        assert 1 <= sum("turned away" in note for note in notes) <= 4
        rotation, center = errors(found, oracle, range(40))
        assert rotation < 1e-4
        assert center < 1e-3
        # The map in use is still the last good one, with nobody in it whom only the bad ones knew.
        good = session.keyframes
        assert good == session.map.cache.views
        assert good <= 9


def test_turning_on_the_spot_keeps_the_scale():
    oracle = Oracle(pan(30, 50))
    with session_of(oracle, change=0.02) as session:
        tracked(session, oracle, range(30))
        session.finish()
        assert oracle.maps >= 3
        depth = torch.tensor([frame.middle_depth for frame in session.map.keyframes])
        true = torch.tensor([float(oracle.depths[frame.index].median()) for frame in session.map.keyframes])
        unit = depth / true
        assert float(unit.max() / unit.min()) < 1.02


def test_the_map_stays_under_its_cap_and_memory_flat_over_many_frames():
    oracle = Oracle(walk(36))
    numbers = list(range(36))
    with session_of(oracle, most=6) as session:
        sizes, counts = [], []
        for _ in range(3):
            tracked(session, oracle, numbers)
            session.finish()
            sizes.append(session.map.nbytes)
            counts.append(session.keyframes)
        assert max(counts) <= 6 + SPARE
        # Once full it does not grow, however often it is replaced.
        one = session.map.keyframes[0].picture.nbytes + session.map.cache.bytes_per_view
        assert max(sizes) <= (6 + 2 * SPARE + 1) * one
        assert oracle.maps > 12
        assert session.map.cache.capacity <= 6 + SPARE
        assert len(session._first) == 0


def test_tracking_goes_on_while_a_map_is_built():
    oracle = Oracle(walk(60))
    with session_of(oracle) as session:
        # Nobody waits for the mapper here; new keyframes are of use before it is done.
        found, _ = tracked(session, oracle, range(60), settle=False)
        assert session.finish(30)
        rotation, center = errors(found, oracle, range(60))
        again, _ = tracked(session, oracle, range(60))
        assert rotation < 1e-4
        assert center < 1e-3
        assert all(pose is not None for pose in again)


def test_the_same_frame_asked_twice_is_one_frame():
    oracle = Oracle(walk(20))
    with session_of(oracle, first=1) as session:
        first = session.locate(oracle.pictures[0], lens(), None)
        for image in oracle.pictures[1:]:
            answer = session.locate(image, lens(), first.world_from_cam)
            added, keyframes = session.added, session.keyframes
            # A tracker that doubts the answer asks again without a guess.
            assert session.locate(image, lens(), None) is answer
            assert (session.added, session.keyframes) == (added, keyframes)


def test_a_still_camera_begins_after_some_patience_and_adds_nothing():
    oracle = Oracle(walk(1))
    with session_of(oracle, patience=5) as session:
        found, _ = tracked(session, oracle, [0] * 12)
        assert [pose is None for pose in found] == [True] * 4 + [False] * 8
        assert session.keyframes == 1
        assert oracle.maps == 1
        assert torch.allclose(found[-1], torch.eye(4, dtype=torch.float64), atol=1e-6)


def test_large_frames_are_kept_small_and_intrinsics_follow():
    oracle = Oracle(walk(1))
    with session_of(oracle, largest=WIDTH // 2) as session:
        kept = session._kept(0, oracle.pictures[0], lens())
    assert kept.picture.shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert torch.allclose(kept.K, torch.diag(torch.tensor([0.5, 0.5, 1]).double()) @ lens())


def test_a_saved_session_is_opened_again_and_agrees(tmp_path, monkeypatch):
    oracle = Oracle(walk(30, turn=2.0))
    with session_of(oracle) as session:
        tracked(session, oracle, range(30))
        session.finish()
        session.save(tmp_path / "map")
        kept = KvTracker(oracle.eye(), KvMap.load(tmp_path / "map"))
        for number in (3, 17, 29):
            mine = session.locate(oracle.pictures[number], lens(), None)
            theirs = kept.locate(oracle.pictures[number], lens(), None)
            assert torch.equal(mine.world_from_cam, theirs.world_from_cam)
        session.scene().save(tmp_path / "scene")
    monkeypatch.setattr("scenetx.live.kv_session.open_eye", lambda *a, **k: oracle.eye())
    assert open_kv(tmp_path / "map").keyframes == kept.keyframes
    first = open_kv(tmp_path / "scene")
    assert first.keyframes == kept.keyframes
    # Kept in the scene's folder: not made twice, unless the scene is another.
    maps = oracle.maps
    second = open_kv(tmp_path / "scene")
    assert oracle.maps == maps
    there = second.locate(oracle.pictures[5], lens(), None).world_from_cam
    assert torch.equal(there, first.locate(oracle.pictures[5], lens(), None).world_from_cam)
    open_kv(tmp_path / "scene", settings=KvSettings(KeyframeSettings(most=3)))
    assert oracle.maps == maps + 1


def test_a_tiny_transformer_tracks_a_moving_picture_without_stopping():
    eye = Eye("da3", made("da3"), SizeRule(56), tells_focal=True)
    generator = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 30, generator=generator), (60, 300), mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    frames = [(wide[:, 2 * i : 2 * i + 80] * 255).to(torch.uint8) for i in range(40)]
    kv = KvSettings(KeyframeSettings(most=4, confidence=0.0, least_overlap=0.0), hopeless=-1.0)
    K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]]).double()
    with KvSession(eye, SessionSettings(kv, misfit=1e9, first=1)) as session:
        answers = [session.locate(frame, K, None) for frame in frames]
        assert session.finish(60)
        assert sum(answer is not None for answer in answers) > 30
        assert session.keyframes <= 4 + SPARE
        assert session.map.cache.views == session.keyframes
        assert torch.isfinite(session.K).all()


def test_unknown_models_are_refused_in_words():
    with pytest.raises(InputError, match="use one of"):
        open_session("no-such-model")
    with pytest.raises(InputError, match="not geometry"):
        open_session("srt-msn")
    assert replace(SessionSettings(), first=1).first == 1


def test_the_tracker_makes_states_of_a_growing_map():
    oracle = Oracle(walk(30, turn=2.0))
    with session_of(oracle) as session:
        tracker = Tracker(session, Intrinsics())
        updates = []
        for index, image in enumerate(oracle.pictures):
            updates.append(tracker.step(Frame(index, index / 10, image.clone())))
            assert session._mapper.settle(30)
    states = [update.status for update in updates]
    begun = states.index("tracking")
    assert states == ["init"] * begun + ["tracking"] * (30 - begun)
    assert sum(update.added for update in updates) >= 4
    assert updates[-1].keyframes == session.keyframes
    # The focal length is the model's, once there is a map.
    assert torch.allclose(updates[-1].K, lens(), rtol=1e-5)
    rotation, center = errors([update.world_from_cam for update in updates], oracle, range(30))
    assert rotation < 1e-4
    assert center < 1e-3
