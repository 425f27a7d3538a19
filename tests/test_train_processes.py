"""Several processes: DDP and FSDP on gloo train to the weights of one process, and go on from each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.sample import procedural_samples
from scenetx.data.shards import write_shard

pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")
JOB = Path(__file__).with_name("train_job.py")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    config = ProceduralConfig(height=28, width=28, views=4, difficulty=0.1, blur=1, shadows=False)
    write_shard(folder / "a.tar", procedural_samples(procedural_views([0, 1, 2, 3], config), list("0123")))
    return folder


def run(processes: int, *words: object) -> None:
    command = [sys.executable, str(JOB)]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command.append(str(JOB))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([*command, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def weights(folder: Path, name: str) -> dict:
    return load_file(folder / "checkpoints" / "step-00000003" / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["svsm", "da3"])
def test_processes_train_to_the_weights_of_one(model: str, shards: Path, tmp_path: Path):
    run(1, tmp_path / "one", shards, model, "auto")
    for strategy in ("ddp", "fsdp"):
        run(2, tmp_path / strategy, shards, model, strategy)
        for name in ("model", "average"):
            one, two = weights(tmp_path / "one", name), weights(tmp_path / strategy, name)
            assert one.keys() == two.keys()
            # Adam turns rounding of tiny gradients into steps of the learning rate: 3 steps of 1e-3 at most.
            off = {key: float((one[key] - two[key]).abs().max()) for key in one}
            typical = sum(float((one[key] - two[key]).abs().mean()) for key in one) / len(one)
            assert typical < 2e-5, (strategy, off)
            assert max(off.values()) < 2e-3, (strategy, off)
        rows = [
            [json.loads(line)["loss"] for line in (tmp_path / run_ / "metrics.jsonl").read_text().splitlines()]
            for run_ in ("one", strategy)
        ]
        assert rows[0] == pytest.approx(rows[1], rel=1e-3)


def scenetx(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scenetx", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_commands_make_data_train_and_refuse(tmp_path: Path):
    size = ("procedural.height=16", "procedural.width=16", "procedural.views=4", "procedural.difficulty=0.1")
    made = scenetx("data", "make", tmp_path / "shards", "scenes=3", "per_shard=2", *size)
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 2
    small = ("svsm.dim=32", "svsm.heads=2", "svsm.encoder_layers=1", "svsm.decoder_layers=1", "batch=2")
    data = (f'data.path=["{tmp_path}/shards"]', "data.height=16", "data.width=16", "data.context_most=0")
    words = ("mini-view-cpu", *small, *data, "data.targets=2", "evaluate_scenes=1")
    trained = scenetx("train", *words, "optim.steps=2", "-o", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert {"psnr", "nearest_psnr"} <= last.keys()
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "average.safetensors").is_file()
    other = scenetx("train", *words, "optim.steps=3", "-o", tmp_path / "run")
    assert other.returncode == 2
    assert "optim.steps" in other.stderr
    assert "Traceback" not in other.stderr
    unknown = scenetx("train", "mini-view-cpu", "optim.stepz=3")
    assert unknown.returncode == 2
    assert "did you mean" in unknown.stderr
