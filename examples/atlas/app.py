"""The application: pages and JSON, cached as whole responses, and the form that edits an airport.

What runs on a hit differs, and is said per route:

    public=True   the middleware answers before routing: nothing of the route runs
    otherwise     dependencies run first (who is asking?), then the hit takes the endpoint's place

It takes two settings from the environment:

    REDIS_URL        the cache is in this Redis or Valkey, for all workers that have the same one; without it, in memory
    ATLAS_DATABASE   the data: a PostgreSQL by its URL (postgresql://...), or a file for SQLite, filled if it is new.
                     Without it: on Redis, a file beside this module, which all workers share; in memory, one that goes
                     with the process
"""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated
from urllib.parse import parse_qs

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asynctag import InvalidationError
from asynctag.backends.redis import RedisBackend
from asynctag.http import CacheMiddleware, cache_response
from asynctag.integrations.fastapi import CacheDep, cache_policy
from examples.atlas import pages
from examples.atlas.catalogue import Catalogue, CatalogueDep, cache
from examples.atlas.connections import connections_to
from examples.atlas.data import ICAO, Airport, Database, Writing
from examples.atlas.visitors import as_cookie, is_name

EDITOR_KEY = "only for the demo"

# --- what the routes depend on ---------------------------------------------------------------------------


def require_editor(x_editor_key: Annotated[str | None, Header()] = None) -> None:
    if x_editor_key != EDITOR_KEY:
        raise HTTPException(403, "For editors: send the header X-Editor-Key")


Icao = Annotated[str, Path(pattern=f"^{ICAO}$")]
CountryCode = Annotated[str, Path(pattern="^[A-Z]{2}$")]
PageNumber = Annotated[int, Query(ge=1, le=1000)]


async def existing_airport(icao: Icao, catalogue: CatalogueDep) -> Airport:
    airport = await catalogue.airport(icao)
    if airport is None:
        raise HTTPException(404, f"no airport {icao}")
    return airport


ExistingAirport = Annotated[Airport, Depends(existing_airport)]


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a posted form, trimmed."""
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[-1].strip() for name, values in parse_qs(body).items()}


async def unit_of_work(catalogue: CatalogueDep, tagged: CacheDep) -> AsyncIterator[Writing]:
    """A transaction of the database, within one of the cache: what is invalidated in it is held till after the commit.

    Until then nobody is served what is about to change, and what is computed meanwhile, from the old row, is not
    stored. After the commit it is invalidated, whatever the request has come to.
    """
    async with tagged.transaction(), contextmanager_in_threadpool(catalogue.database.transaction()) as writing:
        yield writing


# `scope="function"`: it ends as the endpoint returns, before the response goes out. Without that it would end after it:
# a client would have its answer, ask again, and get the old row, since nothing is committed yet.
UnitOfWork = Annotated[Writing, Depends(unit_of_work, scope="function")]

# --- pages for everyone ------------------------------------------------------------------------------------

site = APIRouter(default_response_class=HTMLResponse)

# `cookies=()`: no cookie changes these pages. Without it, a browser that sends any would get nothing from the
# cache. `query=`: the parameters that count; with the others ignored, nobody fills the cache with `/?1`, `/?2`.
# No `tags=`: the responses get theirs from the cached functions that they were rendered with.
# What is the visitor's own on these pages is in windows (`visitors.py`): what is cached is the page around them.


@site.get("/")
@cache_response(ttl=600, public=True, cookies=(), query=())
async def home(catalogue: CatalogueDep) -> str:
    return pages.home(await catalogue.overview())


@site.get("/countries/{code}")
@cache_response(ttl=600, public=True, cookies=(), query=["page"])
async def country(code: CountryCode, catalogue: CatalogueDep, page: PageNumber = 1) -> str:
    shown = await catalogue.country(code)
    airports = await catalogue.highest(code, page)
    if shown is None or not airports:
        raise HTTPException(404, f"no page {page} of the country {code}")
    return pages.country(shown, airports, page)


@site.get("/airports/{icao}")
@cache_response(ttl=600, public=True, cookies=(), query=())
async def airport(shown: ExistingAirport, catalogue: CatalogueDep) -> str:
    return pages.airport(shown, await catalogue.nearby(shown.icao))


# --- visitors ----------------------------------------------------------------------------------------------

# They write a cookie and change nothing for others, hence GET: the page that a POST redirects to has changed, as caches
# understand it (RFC 9111 §4.4), and would go for everybody.


@site.get("/hello")
async def hello(name: str = "") -> Response:
    """Remember the visitor's name, or forget it if it is none."""
    answer = RedirectResponse("/", 303)
    answer.set_cookie("name", as_cookie(name) if is_name(name) else "", httponly=True, samesite="lax")
    return answer


@site.get("/airports/{icao}/favourite")
async def set_favourite(shown: ExistingAirport) -> Response:
    answer = RedirectResponse(f"/airports/{shown.icao}", 303)
    answer.set_cookie("favourite", shown.icao, httponly=True, samesite="lax")
    return answer


# --- editing -----------------------------------------------------------------------------------------------


@site.get("/airports/{icao}/edit")
async def edit_form(shown: ExistingAirport) -> str:
    return pages.edit(shown, {"name": shown.name, "elevation": str(shown.elevation)}, {})


@site.post("/airports/{icao}/edit")
async def edit(
    shown: ExistingAirport,
    values: Annotated[dict[str, str], Depends(form_of)],
    tagged: CacheDep,
    writing: UnitOfWork,  # last: it begins when all that was sent is there, and keeps no rows locked while it waits
) -> Response:
    errors = check(values)
    if errors:
        return HTMLResponse(pages.edit(shown, values, errors), 422)
    update = partial(writing.update, shown.icao, name=values["name"], elevation=int(values["elevation"]))
    changed = await anyio.to_thread.run_sync(update)
    # Held from here on, before the commit. If the server of the cache can't be told now, that is queued, and the edit
    # is done all the same.
    if not await tagged.invalidate(*changed, queue=True):
        return HTMLResponse(pages.saved(shown.icao), 202)

    # See Other: the browser fetches the page, which is new by then, and a reload does not post again.
    return RedirectResponse(f"/airports/{shown.icao}", 303)


def check(values: dict[str, str]) -> dict[str, str]:
    """What is wrong with the fields of the form, by field."""
    errors = {}
    name, elevation = values.get("name", ""), values.get("elevation", "")
    if not name:
        errors["name"] = "An airport has a name."
    elif len(name) > 100 or not name.isprintable():
        errors["name"] = "At most 100 characters, in one line."
    digits = elevation.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and -2000 <= int(elevation) <= 30000):
        errors["elevation"] = "A whole number of feet, from -2000 to 30000."
    return errors


# --- for editors -------------------------------------------------------------------------------------------

editors = APIRouter(prefix="/editors", dependencies=[Depends(require_editor)])


@editors.get("/suspicious", response_class=HTMLResponse)
@cache_response(ttl=600, query=())  # not public: `require_editor` runs on hits too
async def suspicious(catalogue: CatalogueDep) -> str:
    return pages.suspicious(await catalogue.suspicious())


@editors.post("/clear", status_code=204)
async def clear(tagged: CacheDep) -> None:
    """Drop all that is cached: for when the data has changed behind the application's back."""
    await tagged.cache.clear()  # not queued: where the server of the cache can't be told, it raises


# --- JSON --------------------------------------------------------------------------------------------------

# One policy for the router: every GET is cached, under the tag "api" beside those of its data.
api = APIRouter(prefix="/api", dependencies=[Depends(cache_policy(ttl=600, tags=["api"]))])


@api.get("/airports/{icao}")
async def airport_json(shown: ExistingAirport) -> Airport:
    return shown


@api.get("/countries/{code}")
async def country_json(code: CountryCode, catalogue: CatalogueDep, page: PageNumber = 1) -> tuple[Airport, ...]:
    return await catalogue.highest(code, page)


# --- all together ------------------------------------------------------------------------------------------


@contextmanager
def place_of_data() -> Iterator[str]:
    """Where the data is: workers that share a cache share it, too."""
    if given := os.environ.get("ATLAS_DATABASE"):
        yield given
    elif os.environ.get("REDIS_URL"):
        yield str(FilePath(__file__).with_name("airports.sqlite3"))
    else:
        with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
            yield str(FilePath(folder) / "airports.sqlite3")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with place_of_data() as place:
        database = Database(connections_to(place))
        is_new = await anyio.to_thread.run_sync(database.load)
        if is_new:  # what is in Redis was made from data that was here before
            await cache.clear(queue=True)
        app.state.catalogue = Catalogue(database)
        try:
            yield
        finally:
            database.close()


class SayWhichWorker:
    """Names the process that answers in a header, on hits too: it stands around the cache. To see what that does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-worker", b"%d" % os.getpid())]}
            await send(message)

        await self.app(scope, receive, send_with_name)


async def not_found(request: Request, error: Exception) -> Response:
    """A page for whoever asked for one. It is not cached: `cache_response` stores 200 unless `statuses=` lists more."""
    assert isinstance(error, StarletteHTTPException)  # FastAPI's is one, and so is that of a path without a route
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(pages.not_found(), 404)
    return await http_exception_handler(request, error)


async def not_invalidated(request: Request, error: Exception) -> Response:
    return PlainTextResponse("The server of the cache does not answer. Try again.\n", 503, {"Retry-After": "1"})


def create_app() -> FastAPI:
    if url := os.environ.get("REDIS_URL"):
        cache.bind(RedisBackend.from_url(url))  # it connects when it is first asked
    app = FastAPI(title="The atlas of airports", lifespan=lifespan)
    # First, so that it is innermost: whatever is added later (sessions, compression) stands before the cache.
    # It opens the cache at startup and closes it at shutdown. `expose_tags` is for looking at what it does.
    app.add_middleware(CacheMiddleware, cache=cache, expose_tags="X-Tags")
    app.add_middleware(SayWhichWorker)
    app.add_exception_handler(404, not_found)
    app.add_exception_handler(InvalidationError, not_invalidated)
    app.include_router(site)
    app.include_router(editors)
    app.include_router(api)
    return app
