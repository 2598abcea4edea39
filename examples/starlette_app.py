"""Starlette without FastAPI: `uvicorn starlette_app:app`."""

from html import escape

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_of, cache_response

cache = Cache(default_ttl=300)
NOTES = {1: "Water the plants", 2: "Feed the cat"}  # stands for a database


@cache.cached(tags=["note:{note_id}"])
async def note(note_id: int) -> str:
    return NOTES[note_id]


# Templates take the path parameters as the route has converted them: `/notes/01` is tagged `note:1` as well.
@cache_response(tags=["note:{note_id}"], public=True)
async def show(request: Request) -> Response:
    note_id: int = request.path_params["note_id"]
    if note_id not in NOTES:
        return Response("no such note", 404)  # not stored: `statuses=` would have to list it
    return HTMLResponse(f"<p>{escape(await note(note_id))}</p>")


@cache_response(public=True)
async def everything(request: Request) -> Response:
    # NOTES never grows here, so the notes' own tags say all that the list depends on.
    return HTMLResponse("".join([f"<li>{escape(await note(note_id))}</li>" for note_id in NOTES]))


async def change(request: Request) -> Response:
    note_id: int = request.path_params["note_id"]
    NOTES[note_id] = (await request.body()).decode()
    await cache_of(request).invalidate(f"note:{note_id}")
    return RedirectResponse(f"/notes/{note_id}", 303)


app = Starlette(
    routes=[
        Route("/notes", everything),
        Route("/notes/{note_id:int}", show),
        Route("/notes/{note_id:int}", change, methods=["PUT"]),
    ],
    middleware=[Middleware(CacheMiddleware, cache=cache)],  # the last in the list is innermost
)
