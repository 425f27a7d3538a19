"""What this machine can do: each part is really tried, in a process of its own where it may crash or hang."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "missing"]

PROBE_SECONDS = 120.0  # a cold disk, or gsplat compiling, can be slow; no answer by then is an answer
MIN_DISK_GB = 5.0
MIN_MEMORY_GB = 6.0


@dataclass(frozen=True)
class Check:
    """One thing that was tried. ``cure`` is empty when there is nothing to do."""

    name: str
    status: Status
    found: str  # version or amount, "" = nothing found
    gives: str
    cure: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks. The machine is `ready` when nothing that reconstruction needs is missing."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return not any(check.status == "missing" and check.name in REQUIRED for check in self.checks)


REQUIRED = frozenset({"python", "torch", "numba", "pycolmap"})

# Each probe prints one line of JSON: {"found": ..., "problem": ... or absent}.
_TORCH = """
import torch
found = torch.__version__
if torch.cuda.is_available():
    torch.ones(2, 2, device="cuda").matmul(torch.ones(2, 2, device="cuda")).sum().item()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    found += f", CUDA {torch.version.cuda} on {torch.cuda.get_device_name(0)} ({memory:.0f} GB)"
else:
    found += ", no CUDA device"
report(found)
"""
_NUMBA = """
import numba, numpy
from scenetx.splat.cpu_jit import choose_threads
choose_threads()
@numba.njit(parallel=True)
def total(values):
    out = numpy.zeros_like(values)
    for i in numba.prange(len(values)):
        out[i] = 2 * values[i]
    return out.sum()
assert total(numpy.ones(1000)) == 2000
report(f"{numba.__version__}, {numba.get_num_threads()} threads")
"""
_PYCOLMAP = """
import numpy, pycolmap
options = pycolmap.FeatureExtractionOptions()
picture = numpy.random.default_rng(0).integers(0, 255, (96, 128), dtype=numpy.uint8).repeat(2, 0).repeat(2, 1)
sift = pycolmap.Sift(device=pycolmap.Device.cpu)
keypoints = sift.extract(picture.astype(numpy.float32) / 255)[0]
report(pycolmap.__version__, None if len(keypoints) else "finds no features")
"""
_GSPLAT = """
import pathlib, gsplat, torch
from torch.utils.cpp_extension import _get_build_directory
version = gsplat.__version__
built = [*pathlib.Path(gsplat.__file__).parent.glob("csrc*.so"),
         *pathlib.Path(_get_build_directory("gsplat_cuda", False)).glob("gsplat_cuda*.so")]
if not built:
    report(version, "not compiled yet")
    raise SystemExit
try:
    from gsplat import rasterization
    one = lambda *value: torch.tensor([value], device="cuda", dtype=torch.float32)
    K = torch.tensor([[[8.0, 0, 8], [0, 8, 8], [0, 0, 1]]], device="cuda")
    rgb, _, _ = rasterization(one(0, 0, 2), one(1, 0, 0, 0), one(1, 1, 1), torch.ones(1, device="cuda"),
                              one(1, 1, 1), torch.eye(4, device="cuda")[None], K, 16, 16)
    report(version, None if float(rgb.max()) > 0.5 else "draws nothing")
except Exception as error:
    report(version, f"{type(error).__name__}: {error}")
"""
_VIDEO = """
import io, av, numpy
buffer = io.BytesIO()
with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("h264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for value in (0, 255):
        frame = av.VideoFrame.from_ndarray(numpy.full((48, 64, 3), value, numpy.uint8), format="rgb24")
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
    codec = stream.codec_context.name
buffer.seek(0)
with av.open(buffer) as container:
    frames = sum(1 for _ in container.decode(video=0))
report(f"PyAV {av.__version__}, {codec}", None if frames == 2 else f"2 frames in, {frames} out")
"""
_HEIC = """
import pi_heif
report(f"pi-heif {pi_heif.__version__}, libheif {pi_heif.libheif_version()}")
"""
_PRELUDE = """
import json
def report(found, problem=None):
    print("PROBE " + json.dumps({"found": str(found), "problem": problem}), flush=True)
"""


def diagnose(probe_seconds: float = PROBE_SECONDS) -> Diagnosis:
    """Tries everything scenetx can use; takes some seconds. Never raises for what is missing or broken: it says so.

    ``probe_seconds`` bounds each probe (a process of its own, two at a time).
    """
    tasks: list[Callable[[], Check]] = [
        _python,
        lambda: _torch(probe_seconds),
        lambda: _probed(
            "numba", _NUMBA, probe_seconds, "the CPU rasterizer, compiled and threaded", "pip install --upgrade numba"
        ),
        lambda: _probed(
            "pycolmap", _PYCOLMAP, probe_seconds, "cameras from pictures", "pip install --upgrade pycolmap"
        ),
        lambda: _gsplat(probe_seconds),
        lambda: _probed("video", _VIDEO, probe_seconds, "videos in and out (h264)", "pip install --upgrade av"),
        lambda: _probed("heic", _HEIC, probe_seconds, "HEIC photos (phones)", "pip install --upgrade pi-heif"),
        lambda: _optional("open3d", probe_seconds, "meshes by Poisson and TSDF", "pip install open3d-cpu"),
        lambda: _optional("kornia", probe_seconds, "more image and epipolar operators", "pip install kornia"),
        lambda: _optional(
            "pytorch3d",
            probe_seconds,
            "mesh and point rendering in torch",
            "build it from its repository with pip install --no-build-isolation (nothing is published)",
        ),
        _cores,
        _memory,
        _disk,
    ]
    with ThreadPoolExecutor(2) as pool:
        return Diagnosis(tuple(pool.map(lambda task: task(), tasks)))


def lines(diagnosis: Diagnosis) -> list[str]:
    """One line a check, aligned for a terminal, and a verdict."""
    width = max(len(check.name) for check in diagnosis.checks)
    out = []
    for check in diagnosis.checks:
        mark = "absent" if check.status == "missing" and check.name not in REQUIRED else check.status
        said = f"{mark:<7}  {check.name:<{width}}  {check.found or '-'} ({check.gives})"
        out.append(f"{said}: {check.cure}" if check.cure else said)
    out.append("Ready to reconstruct." if diagnosis.ready else "Not ready: see what is missing above.")
    return out


@dataclass(frozen=True)
class Probe:
    """What a probe said: the version found, and the problem ("" = it works)."""

    found: str
    problem: str


def run_probe(code: str, seconds: float) -> Probe:
    """Runs Python code that calls ``report(found, problem=None)``, in a process of its own.

    A crash, a hang and a missing package are all answers. The process starts in an empty folder, so that no file of the
    user's shadows a package, and sees the same environment otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting after the time is up.
        with output.open("wb") as to_output, errors.open("wb") as to_errors:
            process = subprocess.Popen(
                [sys.executable, "-c", _PRELUDE + code], stdout=to_output, stderr=to_errors, cwd=folder
            )
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return Probe("", f"no answer in {seconds:g} s")
        told = output.read_text(errors="replace")
        said = errors.read_text(errors="replace").strip().splitlines()
    for line in told.splitlines():
        if line.startswith("PROBE "):
            answer = json.loads(line.removeprefix("PROBE "))
            return Probe(answer["found"], _one_line(answer["problem"] or ""))
    if status < 0:
        return Probe("", f"crashed with signal {-status}")
    return Probe("", _one_line(said[-1]) if said else f"ended with {status}")


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:199] + "…"


def _probed(name: str, code: str, seconds: float, gives: str, cure: str) -> Check:
    probe = run_probe(code, seconds)
    if not probe.problem:
        return Check(name, "ok", probe.found, gives)
    return Check(name, "missing" if name in REQUIRED else "warn", probe.found, gives, f"{probe.problem}; {cure}")


def _optional(package: str, seconds: float, gives: str, cure: str) -> Check:
    """A package nobody needs: absent is a hint, present but broken a warning."""
    if importlib.util.find_spec(package) is None:
        return Check(package, "missing", "", gives, f"optional; {cure}")
    probe = run_probe(f"import {package}\nreport(getattr({package}, '__version__', 'unknown version'))", seconds)
    if probe.problem:
        return Check(package, "warn", _version(package), gives, f"does not import: {probe.problem}; {cure}")
    return Check(package, "ok", probe.found, gives)


def _python() -> Check:
    found, gives = platform.python_version(), "runs everything"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", found, gives)
    return Check("python", "warn", found, gives, "tried with 3.11 to 3.13 only")


def _torch(seconds: float) -> Check:
    check = _probed("torch", _TORCH, seconds, "tensors and fitting", "see pytorch.org for the build for this machine")
    if check.status == "ok" and "no CUDA" in check.found and shutil.which("nvidia-smi"):
        cure = "there is an NVIDIA driver but torch sees no GPU; install torch's CUDA build (pytorch.org)"
        return Check(check.name, "warn", check.found, check.gives, cure)
    return check


def _gsplat(seconds: float) -> Check:
    """gsplat imports happily where it cannot draw, so it has to draw one Gaussian; every missing part is named."""
    gives = "splats fitted and drawn on an NVIDIA GPU"
    found = _version("gsplat")
    device = run_probe("import torch\nreport(torch.cuda.is_available())", seconds)
    missing = []
    if device.found != "True":
        missing.append("a CUDA device that torch sees (the CPU rasterizer is used)")
    if not found:
        missing.append("the package (pip install 'scenetx[cuda]')")
    elif importlib.util.find_spec("packaging") is None:
        missing.append("the package it forgets to ask for (pip install packaging)")
    if missing:
        return Check("gsplat", "missing", found, gives, f"optional; needs {' and '.join(missing)}")
    probe = run_probe(_GSPLAT, seconds)
    if not probe.problem:
        return Check("gsplat", "ok", probe.found, gives)
    # Compiling it here could be cut off half-way by the time limit, so a probe never starts that.
    cure = "it compiles itself at first use, in minutes"
    if not shutil.which("nvcc"):
        cure += "; that needs the CUDA toolkit (nvcc) of torch's CUDA version and a C++ compiler"
    return Check("gsplat", "warn", probe.found or found, gives, f"{probe.problem}; {cure}")


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cure = "fitting on one core is slow" if usable < 2 else ""
    return Check("cores", "warn" if cure else "ok", str(usable), "speed without a GPU", cure)


def _memory() -> Check:
    """Physical memory, or the control group's limit where that is less."""
    gives = "how many and how large pictures fit"
    total = 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (said := limit.read_text().strip()).isdigit():
        total = min(total or int(said), int(said))
    if total <= 0:
        return Check("memory", "ok", "not known", gives)
    size = total / 1e9
    cure = f"less than {MIN_MEMORY_GB:.0f} GB: use a smaller --width" if size < MIN_MEMORY_GB else ""
    return Check("memory", "warn" if cure else "ok", f"{size:.1f} GB", gives, cure)


def _disk() -> Check:
    gives = "room for results in this folder"
    try:
        free = shutil.disk_usage(Path.cwd()).free / 1e9
    except OSError as error:
        return Check("disk", "warn", "", gives, f"cannot be read: {error.strerror}")
    cure = f"less than {MIN_DISK_GB:.0f} GB free: make room or write elsewhere" if free < MIN_DISK_GB else ""
    return Check("disk", "warn" if cure else "ok", f"{free:.1f} GB free", gives, cure)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
