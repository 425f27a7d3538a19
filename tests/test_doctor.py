"""The doctor: probes survive what they probe, and every finding says what to do."""

from __future__ import annotations

import pytest

from scenetx import doctor
from scenetx.doctor import Check, Diagnosis, diagnose, lines, run_probe


def test_a_probe_gives_its_answer():
    probe = run_probe("print('noise')\nreport('1.2.3')", 60.0)
    assert (probe.found, probe.problem) == ("1.2.3", "")


@pytest.mark.parametrize(
    "code, said",
    [
        ("import time; time.sleep(60)", "no answer in 1 s"),
        ("import os; os.abort()", "crashed with signal 6"),
        ("import ctypes; ctypes.string_at(0)", "crashed with signal 11"),
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("import sys; sys.exit(3)", "ended with 3"),
        ("report('0.1', 'first line\\nsecond ' + 'x' * 999)", "first line second xxx"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe'); sys.exit(4)", "ended with 4"),
    ],
)
def test_a_probe_outlives_what_it_probes(code, said):
    seconds = 1.0 if "sleep" in code else 60.0
    probe = run_probe(code, seconds)
    assert said in probe.problem
    assert "\n" not in probe.problem
    assert len(probe.problem) <= 200


def test_a_probe_is_not_fooled_by_files_in_the_users_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert run_probe("import json\nreport(json.loads('1'))", 60.0).found == "1"


def test_this_machine_is_diagnosed(monkeypatch):
    monkeypatch.setattr(doctor, "run_probe", lambda *_: doctor.Probe("1.0", ""))
    checks = {check.name: check for check in diagnose().checks}
    assert checks["python"].status == "ok"
    assert checks["torch"].found == "1.0"
    assert {"numba", "pycolmap", "gsplat", "video", "heic", "open3d", "pytorch3d", "kornia"} <= checks.keys()
    assert {"disk", "memory", "cores"} <= checks.keys()


def test_nothing_working_is_said_and_not_raised(monkeypatch):
    monkeypatch.setattr(doctor, "run_probe", lambda *_: doctor.Probe("", "crashed with signal 11"))
    diagnosis = diagnose()
    assert not diagnosis.ready
    for check in diagnosis.checks:
        assert check.status == "ok" or check.cure, check
    text = lines(diagnosis)
    assert text[-1].startswith("Not ready")
    assert all("\n" not in line for line in text)
    assert next(line for line in text if " torch " in line).startswith("missing")
    gsplat = next(check for check in diagnosis.checks if check.name == "gsplat")
    assert "a CUDA device that torch sees" in gsplat.cure


def test_optional_parts_do_not_make_a_machine_unready():
    optional = Check("open3d", "missing", "", "meshes", "optional; pip install open3d-cpu")
    fine = Check("torch", "ok", "2", "tensors")
    assert Diagnosis((fine, optional)).ready
    assert not Diagnosis((optional, Check("torch", "missing", "", "tensors", "install it"))).ready
    assert lines(Diagnosis((fine, optional)))[1].startswith("absent")


def test_little_disk_and_memory_are_warned_about(monkeypatch):
    monkeypatch.setattr(doctor, "MIN_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "MIN_MEMORY_GB", 1e9)
    for check in (doctor._disk(), doctor._memory()):
        assert check.status == "warn"
        assert "less than" in check.cure


@pytest.mark.slow
def test_the_real_probes_answer_here():
    checks = {check.name: check for check in diagnose().checks}
    for name in ("torch", "numba", "pycolmap", "video", "heic"):
        assert checks[name].status == "ok", checks[name]
