"""asynctag's middleware on Redis, around a whole FastAPI application: a public hit."""

import os

from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from asynctag.http import CacheMiddleware
from benchmarks.servers.asynctag_around import application

app = CacheMiddleware(application, cache=Cache(RedisBackend.from_url(os.environ["REDIS_URL"], timeout=30)))
