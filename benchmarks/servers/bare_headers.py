"""The bare callable with as many headers as a cached response has: the server checks and joins each of them."""

from benchmarks.servers import bare
from benchmarks.servers.asgi import Receive, Scope, Send

HEADERS = [
    *bare.HEADERS,
    (b"cache-control", b"no-cache"),
    (b"etag", b'"ee66ea21b5983fea37a0dd98f09c43c1"'),
    (b"age", b"0"),
    (b"cache-status", b"asynctag; hit; ttl=3599"),
]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send(START)
    await send(bare.BYTES)
