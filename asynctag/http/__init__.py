"""The response cache: ASGI middleware that caches whole responses by tag, and what a route says of its own."""

from asynctag.http.middleware import CacheMiddleware
from asynctag.http.request import RequestCache, cache_of
from asynctag.http.routes import cache_response
from asynctag.http.rules import Policy

__all__ = ["CacheMiddleware", "Policy", "RequestCache", "cache_of", "cache_response"]
