"""An ASGI callable that sends ready bytes: what the server itself can do."""

from benchmarks.servers.asgi import Receive, Scope, Send
from benchmarks.servers.body import BODY

HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BYTES = {"type": "http.response.body", "body": BODY}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send(START)
    await send(BYTES)
