"""Wrong names, files that are not there or broken, and no network: one line each, which says what is meant."""

import pytest
import torch
from huggingface_hub import HfApi

from scenetx.core import InputError
from scenetx.models import hub, own, zoo
from scenetx.models.weights import read_weights
from scenetx.pipeline.choose import choose_model


@pytest.fixture(autouse=True)
def no_weights_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SCENETX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(own, "SHIPPED", tmp_path / "shipped")


def test_a_fetch_without_a_network_is_one_line(monkeypatch):
    class ConnectError(Exception):
        """As httpx has it: no OSError."""

    def refuse(*_, **__):
        raise ConnectError("[Errno -2] Name or service not known\n(and more)")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(InputError, match=r"mvp\.pt: .*Name or service not known .*check the network") as error:
        hub.fetch(zoo.find("mvp"))
    assert "\n" not in str(error.value)


def test_a_weights_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(InputError, match="Not a directory"):
        hub.fetch(zoo.find("mvp"))


@pytest.mark.parametrize("content", [b"abc", b"...", b"\x80\x02.", b"(lp0\n.", b"0", b"\x80\x02}q\x00u.", b"a"])
def test_broken_weight_files_are_said(tmp_path, content):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pt"):
        read_weights(path)


def test_mutilated_weight_files_are_said(tmp_path):
    """An old-style file with one byte changed is read or refused, never a traceback."""
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            read_weights(path)
        except InputError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", ["w/nope.safetensors", "nope.pt", "nowhere/at-all"])
def test_a_weight_file_that_is_not_there_is_said_so(name):
    for ask in (choose_model, zoo.find):
        with pytest.raises(InputError, match=f"{name}: no such file") as error:
            ask(name)
        assert "da3-base" not in str(error.value)


def test_a_slip_of_the_pen_gets_the_name_that_is_meant():
    for ask in (choose_model, zoo.find):
        with pytest.raises(InputError, match=r"did you mean da3-small\? Or use"):
            ask("da3-smal")
        with pytest.raises(InputError, match="da4; use"):
            ask("da4")


def test_mini_is_offered_where_it_ships(tmp_path):
    for name in ("mini", "da4"):
        with pytest.raises(InputError, match="use auto, sfm, a weight file") as error:
            choose_model(name)
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "mini-geometry.safetensors").touch()
    with pytest.raises(InputError, match="use auto, sfm, mini, a weight file") as error:
        choose_model("da4")
    assert "\n" not in str(error.value)
    assert choose_model("mini")[0] == "mini-geometry"
