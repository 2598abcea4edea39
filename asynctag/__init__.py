"""Async-first caching with tags: never stale after an invalidation.

`Cache` is what a program holds; `add_tags`, `no_store` and `tag` are used inside what is cached.
"""

from asynctag.backends.base import Cause
from asynctag.cache import Cache, Hit, Miss
from asynctag.cached import Cached
from asynctag.errors import (
    AsynctagError,
    BackendError,
    ConfigurationError,
    CorruptEntryError,
    InvalidationError,
    InvalidKeyError,
    InvalidTagError,
    LifecycleError,
    TagTemplateError,
    TagTooLongError,
    UnstableArgumentError,
    UnsupportedTypeError,
    ValueNotCacheableError,
    WindowError,
)
from asynctag.explain import Explanation
from asynctag.leased import Held, Wait, WhileLeased
from asynctag.scope import add_tags, no_store
from asynctag.tags import tag
from asynctag.windows import Window

__all__ = [
    "AsynctagError",
    "BackendError",
    "Cache",
    "Cached",
    "Cause",
    "ConfigurationError",
    "CorruptEntryError",
    "Explanation",
    "Held",
    "Hit",
    "InvalidKeyError",
    "InvalidTagError",
    "InvalidationError",
    "LifecycleError",
    "Miss",
    "TagTemplateError",
    "TagTooLongError",
    "UnstableArgumentError",
    "UnsupportedTypeError",
    "ValueNotCacheableError",
    "Wait",
    "WhileLeased",
    "Window",
    "WindowError",
    "add_tags",
    "no_store",
    "tag",
]
__version__ = "0.1.0"
