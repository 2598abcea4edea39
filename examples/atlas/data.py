"""The airports in SQLite: plain blocking functions that say what data they read, and what they changed.

Nothing here knows what is cached. Tags name data, so they are added where the data is read; whatever
is being computed at that moment gets them, also from a worker thread. Outside of any cached computation
`add_tags` does nothing.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, radians
from pathlib import Path

import airportsdata

from asynctag import add_tags, tag

PAGE_SIZE = 50


@dataclass(frozen=True, slots=True)
class Airport:
    icao: str
    iata: str
    name: str
    city: str
    subdivision: str
    country: str
    elevation: int  # feet
    latitude: float
    longitude: float
    timezone: str


COLUMNS = "icao, iata, name, city, subdivision, country, elevation, latitude, longitude, timezone"


def airport_tag(icao: str) -> str:
    """One row."""
    return f"airport:{icao}"


def elevations_tag(country: str | None = None) -> str:
    """The elevations of a country's airports, or of all: what a result depends on that *compares* them.

    The row's own tag is not enough for a list by elevation: an airport that is not in it today may
    rise into it by an edit, and the list cannot carry the tag of a row that it does not hold.
    """
    return tag(field="elevation") if country is None else tag(country=country, field="elevation")


class Database:
    """The table of airports. For any number of threads and processes: each call has a connection to itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []

    def load(self) -> bool:
        """Fill the table with the public data that the package `airportsdata` ships, if it is not there. Whether so.

        Of workers that start at once, the first one does it. The others wait for that, and find the table.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'airports'").fetchone():
                return False
            rows = [
                (
                    *(row[name] for name in ("icao", "iata", "name", "city", "subd", "country")),
                    round(row["elevation"]),
                    *(row[name] for name in ("lat", "lon", "tz")),
                )
                for row in airportsdata.load("ICAO").values()
            ]
            connection.execute(
                "CREATE TABLE airports (icao TEXT PRIMARY KEY, iata TEXT, name TEXT, city TEXT, subdivision TEXT, "
                "country TEXT, elevation INTEGER, latitude REAL, longitude REAL, timezone TEXT)"
            )
            connection.executemany("INSERT INTO airports VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("CREATE INDEX by_elevation ON airports (country, elevation DESC, icao)")
            connection.execute("CREATE INDEX by_latitude ON airports (latitude)")
        return True

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    # --- reading -------------------------------------------------------------------------------------

    def airport(self, icao: str) -> Airport | None:
        add_tags(airport_tag(icao))  # also where there is none: "not found" depends on the row, too
        found = self._select("WHERE icao = ?", icao)
        return found[0] if found else None

    def highest(self, country: str, page: int) -> tuple[Airport, ...]:
        """A country's airports from the highest down, a page of them."""
        add_tags(elevations_tag(country))
        before = (page - 1) * PAGE_SIZE
        found = self._select(
            "WHERE country = ? ORDER BY elevation DESC, icao LIMIT ? OFFSET ?", country, PAGE_SIZE, before
        )
        add_tags(*(airport_tag(airport.icao) for airport in found))  # their names are shown
        return found

    def peak(self, country: str) -> str:
        """The code of a country's highest airport. What is shown of the airport brings its own tag."""
        add_tags(elevations_tag(country))
        with self._connection() as connection:
            row = connection.execute(
                "SELECT icao FROM airports WHERE country = ? ORDER BY elevation DESC, icao LIMIT 1", (country,)
            ).fetchone()
        return str(row[0])

    def suspicious(self) -> tuple[Airport, ...]:
        """Airports whose elevation looks like nobody has entered it: exactly 0, in a city that is not known either."""
        add_tags(elevations_tag())
        found = self._select("WHERE elevation = 0 AND city = '' ORDER BY icao LIMIT ?", PAGE_SIZE)
        add_tags(*(airport_tag(airport.icao) for airport in found))
        return found

    def countries(self) -> tuple[tuple[str, int], ...]:
        """Every country and how many airports it has. No tag: no edit of this application changes that."""
        with self._connection() as connection:
            rows = connection.execute("SELECT country, count(*) FROM airports GROUP BY country ORDER BY country")
            return tuple(rows.fetchall())

    def around(self, airport: Airport, limit: int) -> tuple[str, ...]:
        """The codes of the nearest airports, whatever their country. No tag: airports do not move."""
        degrees = 3.0
        width = max(cos(radians(airport.latitude)), 0.01)  # a degree of longitude, in degrees of latitude
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT icao, latitude - :lat, (longitude - :lon) * :width FROM airports WHERE icao != :icao"
                " AND latitude BETWEEN :lat - :degrees AND :lat + :degrees"
                " AND longitude BETWEEN :lon - :degrees / :width AND :lon + :degrees / :width",
                {
                    "icao": airport.icao,
                    "lat": airport.latitude,
                    "lon": airport.longitude,
                    "width": width,
                    "degrees": degrees,
                },
            ).fetchall()
        rows.sort(key=lambda row: (row[1] ** 2 + row[2] ** 2, row[0]))
        return tuple(icao for icao, _, _ in rows[:limit])

    # --- writing -------------------------------------------------------------------------------------

    def update(self, icao: str, *, name: str, elevation: int) -> tuple[str, ...]:
        """Change a row, and commit. Returns the tags of what has changed, for the caller to invalidate.

        Whether the elevation has changed is asked of the database, in the same transaction. A comparison with
        what was read before would miss a change that someone else made meanwhile.
        """
        with self._connection() as connection:
            connection.execute("UPDATE airports SET name = ? WHERE icao = ?", (name, icao))
            moved = connection.execute(
                "UPDATE airports SET elevation = ? WHERE icao = ? AND elevation != ? RETURNING country",
                (elevation, icao, elevation),
            ).fetchall()
        changed = [airport_tag(icao)]
        for (country,) in moved:
            changed += [elevations_tag(country), elevations_tag()]
        return tuple(changed)

    # --- connections ---------------------------------------------------------------------------------

    def _select(self, rest: str, *parameters: str | int) -> tuple[Airport, ...]:
        with self._connection() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM airports {rest}", parameters)
            return tuple(Airport(*row) for row in rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile. Commits at the end, or rolls back on an error."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        try:
            with connection:
                yield connection
        finally:
            self._idle.append(connection)
