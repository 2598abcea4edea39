"""asynctag's middleware in memory, around a bare ASGI callable: a public hit."""

from asynctag import Cache
from asynctag.http import CacheMiddleware
from benchmarks.servers import public

app = CacheMiddleware(public.app, cache=Cache())
