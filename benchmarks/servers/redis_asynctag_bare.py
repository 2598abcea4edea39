"""asynctag's middleware on Redis, around a bare ASGI callable: a public hit."""

import os

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from asynctag.http import CacheMiddleware
from benchmarks.servers import public

app = CacheMiddleware(public.app, cache=Cache(RedisBackend.from_url(os.environ["REDIS_URL"], timeout=30)))
