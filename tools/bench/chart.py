"""Draws quantities over time as an SVG picture: panels above each other, on one axis. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 760, 150, 62, 100, 44, 24


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One quantity over time."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Name -> (seconds, value)."""


_COLOURS = ("#1f6feb", "#c2410c", "#15803d", "#7c3aed")


def svg(title: str, subtitle: str, shown: Sequence[Chart]) -> str:
    """The picture as an SVG document."""
    height = _TOP + len(shown) * (_PANEL + _GAP) + 16
    last = max(x for panel in shown for line in panel.lines.values() for x, _ in line)
    ticks = _ticks(last)
    span = ticks[-1]
    wide = _WIDTH - _LEFT - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"',
        f'  width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="12" y="36" font-size="11" fill="#6b7280">{escape(subtitle)}</text>',
    ]
    for number, panel in enumerate(shown):
        top = _TOP + _GAP + number * (_PANEL + _GAP) - 8
        is_last = number == len(shown) - 1
        parts += _panel(panel, top, wide, ticks, span, with_seconds=is_last)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    panel: Chart,
    top: float,
    wide: float,
    ticks: Sequence[float],
    span: float,
    *,
    with_seconds: bool,
) -> list[str]:
    tall = _PANEL - 22
    marks = _ticks(max(y for line in panel.lines.values() for _, y in line), most=4)

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / span * wide, top + tall - y / marks[-1] * tall

    unit = f", {panel.unit}" if panel.unit else ""
    parts = [_label(_LEFT, top - 6, panel.title + unit, "start", "#374151")]
    for mark in marks:
        _, y = at(0, mark)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
        )
        parts.append(_label(_LEFT - 8, y + 4, _number(mark), "end"))
    for tick in ticks:
        x, y = at(tick, 0)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + 4:.1f}" stroke="#9ca3af"/>'
        )
        if with_seconds:
            parts.append(_label(x, y + 17, f"{_number(tick)} s", "middle"))
    names: list[tuple[float, float, str, str]] = []
    for (name, line), colour in zip(panel.lines.items(), _COLOURS, strict=False):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        names.append((*at(*line[-1]), name, colour))
    if len(names) > 1:
        # From below: each name at its line's end, or just above the name below it.
        free = math.inf
        for x, y, name, colour in sorted(names, key=lambda each: -each[1]):
            free = min(y, free - 13)
            parts.append(_label(x + 6, free + 4, name, "start", colour))
    return parts


def _label(x: float, y: float, text: str, anchor: str, colour: str = "#6b7280") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _ticks(most_value: float, most: int = 8) -> list[float]:
    """Round numbers from 0 to just above `most_value`, at most `most` steps."""
    if most_value <= 0:
        return [0.0, 1.0]
    rough = most_value / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999999)
    count = math.ceil(most_value / step - 1e-9)
    return [index * step for index in range(count + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.1f}"
