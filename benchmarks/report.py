"""Tables for the terminal and for the documentation, and what is printed while they are made."""

import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.plot import Plot

_started = time.perf_counter()


def step(what: str) -> None:
    """Say what is being measured now, and how long all took so far."""
    print(f"[{time.perf_counter() - _started:6.1f} s] {what}", flush=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that the project holds itself to."""

    what: str
    measured: float
    limit: float
    at_least: bool = False
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def row(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        return [
            self.what,
            f"{figure(self.measured)}{self.unit}",
            f"{sign} {figure(self.limit)}{self.unit}",
            "yes" if self.met else "**no**",
        ]


@dataclass(frozen=True, slots=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.headers) - 1)]
        return "\n".join("| " + " | ".join(row) + " |" for row in [self.headers, rule, *self.rows])

    def text(self) -> str:
        rows = [[cell.replace("*", "").replace("`", "") for cell in row] for row in [self.headers, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


@dataclass(slots=True)
class Report:
    """What one subject found."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def goals(self) -> Table | None:
        if not self.targets:
            return None
        return Table(["what the project asks of itself", "measured", "asked", "met"], [one.row for one in self.targets])

    def text(self) -> str:
        goals = self.goals()
        tables = [*self.tables, *([goals] if goals else [])]
        return "\n\n".join([f"== {self.title}", *(one.text() for one in tables), *self.notes])

    def markdown(self, folder: str) -> str:
        goals = self.goals()
        parts = [f"![{plot.title}]({folder}/{plot.name}.svg)" for plot in self.plots]
        parts += [one.markdown() for one in [*self.tables, *([goals] if goals else [])]]
        parts += self.notes
        return "\n\n".join(parts)


def percent(share: float, digits: int = 0) -> str:
    return f"{share * 100:.{digits}f} %"


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{figure(seconds / size)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced. Raises `ValueError` without such markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"there is no {begin} ... {end} to put the figures into")
    return f"{before}{begin}\n{content}\n{end}{after}"


def write(page: Path, pictures: Path, reports: Iterable[Report], machine: str) -> None:
    """Put the figures of `reports` into the page, and their plots beside it."""
    text = between(page.read_text(encoding="utf-8"), "machine", machine)
    pictures.mkdir(parents=True, exist_ok=True)
    for one in reports:
        text = between(text, one.name, one.markdown(pictures.name))
        for plot in one.plots:
            (pictures / f"{plot.name}.svg").write_text(plot.svg(), encoding="utf-8")
    page.write_text(text, encoding="utf-8")


def machine(versions: dict[str, str]) -> str:
    """What the figures were measured on, and with which versions."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}; "
        f"{platform.python_implementation()} {platform.python_version()}; {libraries}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def warn(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
