"""Files are written whole or not at all; links, pipes and devices stay what they are."""

import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scenetx.core import InputError
from scenetx.core.atomic import replacing, replacing_path, write_bytes, write_tensors
from scenetx.io.json_value import to_json


def stop_halfway(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError


def test_a_file_stays_as_it_was_when_writing_ends_badly(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_bytes(path, b"first")
    with pytest.raises(ZeroDivisionError):
        stop_halfway(path)
    assert path.read_bytes() == b"first"
    assert [item.name for item in path.parent.iterdir()] == ["b.txt"]
    with replacing_path(path) as part:
        assert part.parent == path.parent
        part.write_bytes(b"third")
    assert path.read_bytes() == b"third"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_bytes(tmp_path / "folder", b"x")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_into(tmp_path: Path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda got=got: got.append(pipe.read_bytes()), daemon=True)
        reader.start()
        write_bytes(path, b"through")
        reader.join(10)
        assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_ends_badly_says_nothing_into_a_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ZeroDivisionError):
        stop_halfway(tmp_path / "pipe")  # opening the pipe would wait for a reader
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path):
    there, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(there)
    for _ in range(2):  # first it leads nowhere
        write_tensors(link, {"a": torch.ones(2)}, {})
        assert link.is_symlink()
        assert load_file(there)["a"].tolist() == [1.0, 1.0]
    assert [item.name for item in there.parent.iterdir()] == ["file"]


def test_json_takes_names_that_are_not_utf8():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert to_json({"picture": name}).decode() == '{\n "picture": "caf?.jpg"\n}\n'
