"""Who is looking: windows, the places in cached pages that are filled on every serve, for the request that is served.

A page is cached once, for everybody. What visitors have said of themselves is in their cookies. No cached function may
read those, since what it returns would be everybody's; a window may.
"""

import re
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import Cookie, Depends

import asynctag.integrations.fastapi  # noqa: F401 - it gives windows their dependencies
from asynctag.http import current_request
from examples.atlas.catalogue import CatalogueDep, cache
from examples.atlas.data import ICAO, Airport
from examples.atlas.markup import html

MAX_NAME = 40


@cache.window
async def visitor() -> str:
    """The visitor's name, as text: it is escaped where it stands, as any other value of a page."""
    name = unquote(current_request().cookies.get("name", ""))
    return name if is_name(name) else "stranger"


async def favourite_airport(catalogue: CatalogueDep, favourite: Annotated[str, Cookie()] = "") -> Airport | None:
    """What the cookie names, if that can be an airport: clients write into cookies what they like."""
    return await catalogue.airport(favourite) if re.fullmatch(ICAO, favourite) else None


@cache.window(timeout=2, fallback="")
async def favourite(shown: Airport | None = Depends(favourite_airport)) -> str:  # noqa: B008 - as FastAPI has it
    """A link to the visitor's favourite airport, as HTML.

    The airport comes from the cache as well, by its own tag. That stays out of the page: an edit of it shows here at
    once, and drops no page for having this window.
    """
    if shown is None:
        return ""
    return html('<a id="favourite" href="/airports/{icao}">★ {name}</a>', icao=shown.icao, name=shown.name)


def is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def as_cookie(name: str) -> str:
    """A name in the few characters that every client sends back as they are."""
    return quote(name, safe="")
