"""The output folder: one run at a time, other people's files left alone, started over when asked."""

from pathlib import Path

import pytest

from scenetx.core import InputError
from scenetx.pipeline.workspace import Workspace


def test_a_second_run_in_one_folder_is_refused_and_the_first_is_not_disturbed(tmp_path: Path):
    first, second = Workspace(tmp_path / "scene"), Workspace(tmp_path / "scene")
    with first.held():
        (first.work / "kept").write_text("half done")
        for again in (False, True):
            with pytest.raises(InputError, match="another run is at work in it"), second.held(again=again):
                pytest.fail("the folder was held twice")
        assert (first.work / "kept").read_text() == "half done"
    with second.held():
        assert (second.work / "kept").read_text() == "half done"


def test_an_interrupt_lets_the_folder_go(tmp_path: Path):
    space = Workspace(tmp_path / "scene")
    with pytest.raises(KeyboardInterrupt), space.held():
        raise KeyboardInterrupt
    with Workspace(tmp_path / "scene").held():
        pass
    space.close()
    assert not space.work.exists()


def test_again_empties_the_work_area(tmp_path: Path):
    space = Workspace(tmp_path / "scene")
    with space.held():
        (space.work / "sfm").mkdir()
        (space.work / "sfm" / "database.db").write_text("old")
    with space.held(again=True):
        assert not (space.work / "sfm").exists()


def test_other_peoples_folders_are_not_taken(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"), Workspace(tmp_path).held():
        pytest.fail("a folder of other files was opened")
    with pytest.raises(InputError, match="is a file"), Workspace(tmp_path / "thesis.txt").held():
        pytest.fail("a file was opened")
