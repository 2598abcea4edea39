"""Redis and Valkey as a backend: several processes and machines share one cache."""

from asynctag.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
