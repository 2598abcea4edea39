"""A bare ASGI callable whose responses say that they are public: what a middleware may keep without asking more."""

from benchmarks.servers import bare, body
from benchmarks.servers.asgi import Receive, Scope, Send

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [*bare.HEADERS, (b"cache-control", b"public, max-age=3600")],
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/computed":
        said = str(body.computed).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said})
        return
    body.compute()
    await send(START)
    await send(bare.BYTES)
