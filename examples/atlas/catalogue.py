"""What the application asks of its data, cached: functions that are built from each other.

    airport           one row
    highest           a list, of rows that one query reads
    nearby, summary   built from cached airports
    overview          built from the cached summaries of all countries

The pages are built from these, and cached in turn. No function names the caches that depend on it: each
gets the tags of all that it was built from, and goes when any of them is invalidated.
"""

from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Request

from asynctag import Cache
from examples.atlas.data import Airport, Database

# Made at import, since the decorators need it. In memory, unless the application binds it to a server.
cache = Cache(namespace="atlas", default_ttl=3600)

NEIGHBOURS = 8


@dataclass(frozen=True, slots=True)
class Country:
    code: str
    airports: int


@dataclass(frozen=True, slots=True)
class Summary:
    country: Country
    highest: Airport


class Catalogue:
    """The cached queries over one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __cache_key__(self) -> str:
        # `self` is part of the key of a cached method: this says what of it counts.
        return self.database.name

    @cache.cached
    async def airport(self, icao: str) -> Airport | None:
        # The query adds the tag, in the worker thread. `tags=["airport:{icao}"]` would do as well here.
        return await anyio.to_thread.run_sync(self.database.airport, icao)

    @cache.cached
    async def highest(self, country: str, page: int) -> tuple[Airport, ...]:
        return await anyio.to_thread.run_sync(self.database.highest, country, page)

    @cache.cached
    async def nearby(self, icao: str) -> tuple[Airport, ...]:
        """The nearest airports. An edit of any of them drops this list, in whatever country it is shown."""
        airport = await self.airport(icao)
        if airport is None:
            return ()
        codes = await anyio.to_thread.run_sync(self.database.around, airport, NEIGHBOURS)
        found = [await self.airport(code) for code in codes]
        return tuple(neighbour for neighbour in found if neighbour is not None)

    @cache.cached
    async def countries(self) -> tuple[Country, ...]:
        rows = await anyio.to_thread.run_sync(self.database.countries)
        return tuple(Country(code, count) for code, count in rows)

    async def country(self, code: str) -> Country | None:
        # Not worth an entry of its own: it is one look at a cached list.
        return next((country for country in await self.countries() if country.code == code), None)

    @cache.cached
    async def summary(self, country: Country) -> Summary:
        # Not from `highest`, though it is cached: that would bring the tags of a page of airports,
        # and an edit of any of them would drop what shows only the first.
        icao = await anyio.to_thread.run_sync(self.database.peak, country.code)
        highest = await self.airport(icao)
        assert highest is not None
        return Summary(country, highest)

    @cache.cached
    async def overview(self) -> tuple[Summary, ...]:
        """Every country. After an edit, one summary is computed again, and the others are hits."""
        return tuple([await self.summary(country) for country in await self.countries()])

    @cache.cached
    async def suspicious(self) -> tuple[Airport, ...]:
        return await anyio.to_thread.run_sync(self.database.suspicious)


async def get_catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue


CatalogueDep = Annotated[Catalogue, Depends(get_catalogue)]
