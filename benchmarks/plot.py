"""Horizontal bars as SVG: no scripts, no fonts to fetch, colours that read on light and on dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

OURS, THEIRS, INK, FAINT = "#3b82f6", "#9aa4b0", "#6e7781", "#8b949e55"
WIDTH, LABELS, VALUES, BAR, GAP = 760, 270, 100, 16, 7


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    text: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars in groups (a group's heading may be empty). `log`: on a logarithmic scale, which the subtitle says."""

    name: str
    title: str
    subtitle: str
    groups: Sequence[tuple[str, Sequence[Bar]]]
    log: bool = False

    def svg(self) -> str:
        low, high = self._range()
        parts: list[str] = []
        y = 62.0
        for heading, bars in self.groups:
            if heading:
                parts.append(_text(12, y + 12, heading, weight=600))
                y += 24
            for bar in bars:
                length = max(2.0, self._share(bar.value, low, high) * (WIDTH - LABELS - VALUES))
                weight = 600 if bar.ours else 400
                parts.append(_text(LABELS - 8, y + 12.5, bar.label, anchor="end", weight=weight))
                parts.append(
                    f'<rect x="{LABELS}" y="{y:g}" width="{length:.1f}" height="{BAR}" rx="2" '
                    f'fill="{OURS if bar.ours else THEIRS}"/>'
                )
                parts.append(_text(LABELS + length + 6, y + 12.5, bar.text, weight=weight))
                y += BAR + GAP
            y += 8
        height = round(y + 6)
        scale = ", logarithmic scale" if self.log else ""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img" font-family="system-ui, sans-serif" font-size="13" '
            f'fill="{INK}">',
            f"<title>{escape(self.title)}</title>",
            _text(12, 24, self.title, weight=600, size=16),
            _text(12, 44, f"{self.subtitle}{scale}", size=12),
            f'<path d="M{LABELS - 0.5} 56V{height - 10}" stroke="{FAINT}"/>',
            *parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _range(self) -> tuple[float, float]:
        values = [bar.value for _, bars in self.groups for bar in bars if bar.value > 0]
        if not values:
            return 0.0, 1.0
        # A decade's fraction below the least, so that its bar has some length.
        return (min(values) / 2 if self.log else 0.0), max(values)

    def _share(self, value: float, low: float, high: float) -> float:
        if value <= low:
            return 0.0
        return math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: int = 400, size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
