"""What the processes of a run have acknowledged, read and counted: numbers in one file, mapped by all of them.

Each process writes to a part of its own, so that nothing is lost when another is killed.
"""

import mmap
from pathlib import Path
from struct import Struct

NUMBER = Struct("=q")
COUNTS = ("reads", "stale", "writes", "failed")


class Tally:
    """The parts of `processes`, each with a version for every row and a few counts."""

    def __init__(self, path: Path, processes: int, rows: int) -> None:
        self._processes, self._rows = processes, rows
        self._width = rows + len(COUNTS)
        size = self._processes * self._width * NUMBER.size
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def _at(self, process: int, place: int) -> int:
        return (process * self._width + place) * NUMBER.size

    def _get(self, process: int, place: int) -> int:
        found: int = NUMBER.unpack_from(self._map, self._at(process, place))[0]
        return found

    def _set(self, process: int, place: int, number: int) -> None:
        NUMBER.pack_into(self._map, self._at(process, place), number)

    def acknowledge(self, process: int, row: int, version: int) -> None:
        """Whoever reads `row` from now on must not get less than `version`."""
        self._set(process, row, max(version, self._get(process, row)))

    def required(self, row: int) -> int:
        """The least version of `row` that a read which begins now may give."""
        return max(self._get(process, row) for process in range(self._processes))

    def count(self, process: int, what: str, number: int = 1) -> None:
        place = self._rows + COUNTS.index(what)
        self._set(process, place, self._get(process, place) + number)

    def counts(self) -> dict[str, int]:
        """The sums over all processes."""
        return {
            what: sum(self._get(process, self._rows + place) for process in range(self._processes))
            for place, what in enumerate(COUNTS)
        }
