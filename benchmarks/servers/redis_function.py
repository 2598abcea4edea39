"""A bare ASGI callable that awaits a function cached on Redis for each request: a hit, without the HTTP cache."""

import os

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from benchmarks.servers import body
from benchmarks.servers.asgi import Receive, Scope, Send
from benchmarks.servers.bare import START

cache = Cache(RedisBackend.from_url(os.environ["REDIS_URL"], timeout=30))


@cache.cached(ttl=3600, tags=["product:{path}"])
async def product(path: str) -> bytes:
    body.compute()
    return body.BODY


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    found = await product(scope["path"])
    await send(START)
    await send({"type": "http.response.body", "body": found})
