"""The response cache: ASGI middleware that caches whole responses by tag, and what a route says of its own."""

from asynctag.errors import PurgeError
from asynctag.http.middleware import CacheMiddleware
from asynctag.http.request import RequestCache, cache_of
from asynctag.http.routes import cache_response
from asynctag.http.rules import Policy
from asynctag.http.serving import current_request
from asynctag.http.surrogates import Purge, Purger, Surrogates

__all__ = [
    "CacheMiddleware",
    "Policy",
    "Purge",
    "PurgeError",
    "Purger",
    "RequestCache",
    "Surrogates",
    "cache_of",
    "cache_response",
    "current_request",
]
