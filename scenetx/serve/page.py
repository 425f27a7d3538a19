"""The viewer as a page: self-contained with the scene inside, or the page that a server gives out."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote

from scenetx.core.atomic import write_text
from scenetx.serve.contents import Contents
from scenetx.serve.messages import FromServer, PhotoData, encode

EARLY = """(() => {
const socket = new WebSocket(new URL($socket, location.href.replace(/^http/, "ws")));
const frames = [], take = (event) => frames.push(event.data);
socket.binaryType = "arraybuffer";
socket.addEventListener("message", take);
globalThis.scenetxSocket = { socket, frames, take };
})()"""
"""Opens the socket ahead of the viewer's script, so that the scene comes while the browser reads it."""

SPLIT_ABOVE = 64_000_000
"""Bytes of scene above which a page keeps it in scripts beside itself: browsers read huge pages slowly."""


def write_viewer_page(contents: Contents, path: str | Path, *, split_above: int = SPLIT_ABOVE) -> tuple[Path, ...]:
    """Writes the page that opens from disk and gives the files written: the page, and parts of a large scene.

    The page asks nothing of any network; a content security policy forbids it. A scene of more than ``split_above``
    bytes lies in ``NAME-data/`` beside the page, as scripts, because a page from disk may load nothing else. Raises
    InputError when the files cannot be written.
    """
    path = Path(path)
    frames = [encode(message) for message in _messages(contents)]
    if sum(map(len, frames)) <= split_above:
        inside = "\n".join(
            f'<script type="application/x-scenetx">{base64.b64encode(frame).decode("ascii")}</script>'
            for frame in frames
        )
        write_text(path, _page(contents.info.title, inside, parts=len(frames)))
        return (path,)
    folder = path.with_name(f"{path.stem}-data")
    files = []
    for index, frame in enumerate(frames):
        files.append(folder / f"{index:03d}.js")
        write_text(files[-1], _part(frame))
    # A nonce, because a page from disk is no origin that a policy could name, and digests want CORS.
    nonce = hashlib.sha256(b"".join(frames)).hexdigest()[:32]
    beside = "\n".join(f'<script nonce="{nonce}" src="{quote(folder.name)}/{file.name}"></script>' for file in files)
    write_text(path, _page(contents.info.title, beside, parts=len(frames), nonce=nonce))
    return (path, *files)


def served_page(title: str, socket: str) -> str:
    """The page a server gives out: the scene comes through the web socket at the relative address ``socket``."""
    return _page(title, "", socket=socket)


def _messages(contents: Contents) -> list[FromServer]:
    """In the order of use: the splats before the photos that may never be looked at."""
    out: list[FromServer] = [contents.info]
    out += [part for part in (contents.splats, contents.points) if part is not None]
    return [*out, *(PhotoData(name, data) for name, data in contents.photos.items())]


def _part(frame: bytes) -> str:
    return f'(globalThis.scenetxParts ??= []).push("{base64.b64encode(frame).decode("ascii")}");\n'


def _page(title: str, inside: str, *, parts: int = 0, socket: str = "", nonce: str = "") -> str:
    script = viewer_script()
    early = Template(EARLY).substitute(socket=json.dumps(socket)) if socket else ""
    sources = " ".join(f"'{_digest(each.encode('utf-8'))}'" for each in (script, early) if each)
    sources += f" 'nonce-{nonce}'" if nonce else ""
    policy = {
        "default-src": "'none'",
        "script-src": f"{sources} 'wasm-unsafe-eval'",
        "style-src": "'unsafe-inline'",
        "img-src": "'self' data: blob:" if socket else "data: blob:",
        "connect-src": "'self'" if socket else "'none'",
        "worker-src": "blob:",
        "media-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    attributes = {"data-socket": socket} if socket else {"data-parts": str(parts)}
    return Template((resources.files("scenetx.serve") / "viewer.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        version=importlib.metadata.version("scenetx"),
        attributes=_attributes(attributes),
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        early=f"<script>{early}</script>\n" if early else "",
        parts=inside,
        script=script,
    )


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in values.items())


@cache
def viewer_script() -> str:
    """The built viewer, one classic script."""
    return (resources.files("scenetx.serve") / "viewer.js").read_text(encoding="utf-8")


def _digest(data: bytes) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(data).digest()).decode('ascii')}"
