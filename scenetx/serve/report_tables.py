"""The report's tables: timings with settings, errors against a reference, what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from numbers import Real
from typing import Any

from scenetx.core import Scene, Stage

_REFERENCE = {  # key: (what it says, digits, unit)
    "rotation_deg_median": ("Camera rotation, median", 3, "°"),
    "center_percent_median": ("Camera position, median, of the scene's extent", 3, "%"),
    "depth_absrel": ("Depth, mean relative error (AbsRel)", 4, ""),
}


def number(value: Any, digits: int) -> str:
    """A number with so many decimals; what is not a finite number reads "not measured"."""
    if not isinstance(value, Real) or not math.isfinite(value):
        return "not measured"
    return f"{value:.{digits}f}"


def bytes_text(count: int) -> str:
    """A file size in decimal units, as file managers show it."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def seconds_text(seconds: float) -> str:
    """A duration a person reads at a glance: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def reference_section(metrics: Mapping[str, Any]) -> str:
    """Errors against known cameras or depth, when there are any."""
    reference = metrics.get("reference")
    if not isinstance(reference, Mapping) or not reference:
        return ""
    rows = ""
    for key, value in reference.items():
        text, digits, unit = _REFERENCE.get(key, (str(key).replace("_", " "), 4, ""))
        shown = number(value, digits) if isinstance(value, Real) else str(value)
        rows += f'<tr><td>{escape(text)}</td><td class="num">{escape(shown)}{unit}</td></tr>'
    return (
        '<section><h2>Against the reference</h2><p class="soft">After aligning the two scenes by a similarity.</p>'
        f'<table class="narrow"><tbody>{rows}</tbody></table></section>'
    )


def methods_section(metrics: Mapping[str, Any]) -> str:
    """Ways to make the splats, side by side: time and quality on held-out pictures."""
    rows = metrics.get("splats")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return ""
    body = ""
    for row in rows:
        seconds = row.get("seconds")
        known = isinstance(seconds, int | float) and math.isfinite(seconds)
        took = seconds_text(float(seconds)) if known else "not measured"
        count = row.get("gaussians")
        cells = [took, number(row.get("psnr"), 2), number(row.get("ssim"), 3)]
        cells.append(f"{count:,}" if isinstance(count, int) else "not measured")
        numbers = "".join(f'<td class="num">{escape(cell)}</td>' for cell in cells)
        body += f"<tr><td>{escape(str(row.get('by', '')))}</td>{numbers}</tr>"
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Splats", "Time", "PSNR, dB", "SSIM", "Number"))
    return (
        '<section><h2>Ways to the splats</h2><p class="soft">instant: one pass over the depth of the pictures, nothing '
        "fitted; refined: a short fit from there; fitted: the whole fit. On the held-out pictures, without the time "
        f'for cameras.</p><table class="narrow"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></section>'
    )


def history_section(scene: Scene) -> str:
    """Seconds, settings and notes of each stage."""
    stages = list(scene.history)
    if not stages:
        seconds = scene.metrics.get("seconds")
        known = seconds.items() if isinstance(seconds, Mapping) else ()
        stages = [Stage(str(name), float(value)) for name, value in known if isinstance(value, Real)]
    if not stages:
        return ""
    longest = max(stage.seconds for stage in stages) or 1.0
    total = sum(stage.seconds for stage in stages)
    bars = "".join(f"<li>{_bar(stage, longest)}</li>" for stage in stages)
    notes = "".join(f"<li><b>{escape(stage.name)}</b>: {escape(note)}</li>" for stage in stages for note in stage.notes)
    said = f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else ""
    return (
        f'<section><h2>Time</h2><p class="soft">{seconds_text(total)} in all. Open a step for its settings.</p>'
        f'<ul class="bars">{bars}</ul></section>{said}'
    )


def _bar(stage: Stage, longest: float) -> str:
    share = 100 * min(1.0, max(0.0, stage.seconds / longest))
    line = (
        f'<span>{escape(stage.name)}</span><span class="bar" style="width:{share:.1f}%"></span>'
        f'<span class="time">{seconds_text(stage.seconds)}</span>'
    )
    if not stage.settings:
        return f'<div class="plain">{line}</div>'
    settings = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in stage.settings.items())
    return f"<details><summary>{line}</summary><dl>{settings}</dl></details>"


def skipped_section(scene: Scene) -> str:
    """Files that are not in the scene and pictures without a camera."""
    rows = {skipped.name: skipped.reason for skipped in scene.skipped}
    for view in scene.views:
        if view.camera is None:
            rows.setdefault(view.name, "no camera was found for it")
    if not rows:
        return ""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(reason)}</td></tr>" for name, reason in rows.items())
    return (
        "<section><h2>Left out</h2>"
        f'<table><thead><tr><th scope="col">File</th><th scope="col">Why</th></tr></thead><tbody>{body}</tbody></table>'
        "</section>"
    )
