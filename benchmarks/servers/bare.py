"""An ASGI callable that sends ready bytes: what the server itself can do."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from benchmarks.servers.body import BODY

HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BYTES = {"type": "http.response.body", "body": BODY}


async def app(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    assert scope["type"] == "http"
    await send(START)
    await send(BYTES)
