"""A bare ASGI callable that reads the body from Redis with redis-py for each request: no tags, nothing checked."""

import os

from redis.asyncio import Redis

from benchmarks.servers.asgi import Receive, Scope, Send
from benchmarks.servers.bare import START
from benchmarks.servers.body import BODY

redis = Redis.from_url(os.environ["REDIS_URL"])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body = await redis.get(scope["path"])
    if body is None:
        body = BODY
        await redis.set(scope["path"], body)
    await send(START)
    await send({"type": "http.response.body", "body": body})
