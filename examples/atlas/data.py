"""The airports in SQLite or PostgreSQL: plain blocking functions that say what they read, and what they changed.

Nothing here knows what is cached. Tags name data, so they are added where the data is read; whatever
is being computed at that moment gets them, also from a worker thread. Outside of any cached computation
`add_tags` does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, radians

import airportsdata

from asynctag import add_tags, tag
from examples.atlas.connections import Connection, Connections

PAGE_SIZE = 50

#: What the code of an airport looks like.
ICAO = "[A-Z0-9_]{4}"


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

    def __init__(self, connections: Connections) -> None:
        self.name = connections.name
        self._connections = connections

    def load(self) -> bool:
        """Fill the table with the public data that the package `airportsdata` ships, if it is not there. Whether so.

        Of workers that start at once, the first one does it. The others wait for that, and find the table.
        """
        with self._connections.one() as connection, connection.transaction():
            connection.execute(connection.alone)
            text = connection.text
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS airports (icao {text} PRIMARY KEY, iata {text}, name {text}, city {text}, "
                f"subdivision {text}, country {text}, elevation INTEGER, latitude DOUBLE PRECISION, "
                f"longitude DOUBLE PRECISION, timezone {text})"
            )
            if connection.execute("SELECT 1 FROM airports LIMIT 1"):
                return False
            rows = [
                (
                    *(row[name] for name in ("icao", "iata", "name", "city", "subd", "country")),
                    round(row["elevation"]),
                    *(row[name] for name in ("lat", "lon", "tz")),
                )
                for row in airportsdata.load("ICAO").values()
            ]
            connection.execute_many("INSERT INTO airports VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", rows)
            connection.execute("CREATE INDEX airports_by_elevation ON airports (country, elevation DESC, icao)")
            connection.execute("CREATE INDEX airports_by_latitude ON airports (latitude)")
        return True

    def close(self) -> None:
        self._connections.close()

    # --- reading -------------------------------------------------------------------------------------

    def airport(self, icao: str) -> Airport | None:
        add_tags(airport_tag(icao))  # also where there is none: "not found" depends on the row, too
        found = self._select("WHERE icao = $1", icao)
        return found[0] if found else None

    def highest(self, country: str, page: int) -> tuple[Airport, ...]:
        """A country's airports from the highest down, a page of them."""
        add_tags(elevations_tag(country))
        before = (page - 1) * PAGE_SIZE
        found = self._select(
            "WHERE country = $1 ORDER BY elevation DESC, icao LIMIT $2 OFFSET $3", country, PAGE_SIZE, before
        )
        add_tags(*(airport_tag(airport.icao) for airport in found))  # their names are shown
        return found

    def peak(self, country: str) -> str:
        """The code of a country's highest airport. What is shown of the airport brings its own tag."""
        add_tags(elevations_tag(country))
        with self._connections.one() as connection:
            [(icao,)] = connection.execute(
                "SELECT icao FROM airports WHERE country = $1 ORDER BY elevation DESC, icao LIMIT 1", country
            )
        return str(icao)

    def suspicious(self) -> tuple[Airport, ...]:
        """Airports whose elevation looks like nobody has entered it: exactly 0, in a city that is not known either."""
        add_tags(elevations_tag())
        found = self._select("WHERE elevation = 0 AND city = '' ORDER BY icao LIMIT $1", PAGE_SIZE)
        add_tags(*(airport_tag(airport.icao) for airport in found))
        return found

    def countries(self) -> tuple[tuple[str, int], ...]:
        """Every country and how many airports it has. No tag: no edit of this application changes that."""
        with self._connections.one() as connection:
            rows = connection.execute("SELECT country, count(*) FROM airports GROUP BY country ORDER BY country")
        return tuple((country, count) for country, count in rows)

    def around(self, airport: Airport, limit: int) -> tuple[str, ...]:
        """The codes of the nearest airports, whatever their country. No tag: airports do not move."""
        degrees = 3.0
        width = max(cos(radians(airport.latitude)), 0.01)  # a degree of longitude, in degrees of latitude
        with self._connections.one() as connection:
            rows = connection.execute(
                "SELECT icao, latitude - $2, (longitude - $3) * $4 FROM airports WHERE icao != $1"
                " AND latitude BETWEEN $2 - $5 AND $2 + $5 AND longitude BETWEEN $3 - $5 / $4 AND $3 + $5 / $4",
                *(airport.icao, airport.latitude, airport.longitude, width, degrees),
            )
        rows.sort(key=lambda row: (row[1] ** 2 + row[2] ** 2, row[0]))
        return tuple(icao for icao, _, _ in rows[:limit])

    def _select(self, rest: str, *parameters: str | int) -> tuple[Airport, ...]:
        with self._connections.one() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM airports {rest}", *parameters)
        return tuple(Airport(*row) for row in rows)

    # --- writing -------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator["Writing"]:
        """Commits at the end of the block, or rolls back on an error."""
        with self._connections.one() as connection, connection.transaction():
            yield Writing(connection)


class Writing:
    """What a transaction of the database changes. Whoever commits it invalidates the tags of that, too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def update(self, icao: str, *, name: str, elevation: int) -> tuple[str, ...]:
        """Change a row. Returns the tags of what has changed, for the caller to invalidate.

        Whether the elevation has changed is asked of the database, in the same transaction. A comparison with
        what was read before would miss a change that someone else made meanwhile.
        """
        self._connection.execute("UPDATE airports SET name = $1 WHERE icao = $2", name, icao)
        moved = self._connection.execute(
            "UPDATE airports SET elevation = $1 WHERE icao = $2 AND elevation != $1 RETURNING country",
            *(elevation, icao),
        )
        changed = [airport_tag(icao)]
        for (country,) in moved:
            changed += [elevations_tag(country), elevations_tag()]
        return tuple(changed)
