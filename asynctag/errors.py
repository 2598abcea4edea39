"""Everything that asynctag raises, in one tree.

AsynctagError
├── ConfigurationError      the set-up is wrong: said when the code is imported or the application starts
│   ├── TagTemplateError    a template of tags names what is not there, or what has no safe text
│   └── UnsupportedTypeError  a type whose values cannot be kept and given back the same
├── InvalidTagError         a tag that is empty, or not a string
│   └── TagTooLongError     a tag above 1 KiB
├── InvalidKeyError         a key that is empty, not a string, too long
├── UnstableArgumentError   an argument that has no stable key
├── WindowError             a window placed where it cannot stand, what cannot stand where it was placed,
│                           or one that failed in a response, by its __cause__
├── ValueNotCacheableError  a value that would not come back the same
├── CorruptEntryError       bytes in a backend that are not an entry of ours (always a miss, never seen by callers)
├── BackendError            the backend did not answer, or not as it should
│   └── InvalidationError   an invalidation that may not have been written, with the tags
├── PurgeError              a CDN that may serve what was invalidated, with the tags
└── LifecycleError          a cache used unbound, bound twice, opened twice; one that would block an event loop

The exception of a computation is never wrapped: it reaches the caller as it was raised.
"""

from collections.abc import Iterable


class AsynctagError(Exception):
    """Base of every error that asynctag raises."""


class ConfigurationError(AsynctagError):
    """The set-up is wrong; the message says what to change."""


class TagTemplateError(ConfigurationError):
    """A template of tags names what is not a parameter, or a parameter whose text is a trap."""


class UnsupportedTypeError(ConfigurationError):
    """A type whose values cannot be kept and given back the same."""


class InvalidTagError(AsynctagError, ValueError):
    """A tag that is empty, not a string, or longer than the limit (`TagTooLongError`)."""


class TagTooLongError(InvalidTagError):
    """A tag above 1 KiB. One made of what a client sent keeps a response out of the cache, instead of failing it."""


class InvalidKeyError(AsynctagError, ValueError):
    """A key that is empty, not a string, or longer than the limit."""


class UnstableArgumentError(AsynctagError, TypeError):
    """An argument from which no key can be made that is the same in every process."""


class ValueNotCacheableError(AsynctagError, TypeError):
    """A value that would not come back from the cache as it went in. `path` names the place."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class WindowError(AsynctagError):
    """A window that cannot be where it is: awaited in what is cached, put into text outside of it, cut, or not text.

    Where a window in a response fails and has no fallback, what it raised is the `__cause__`.
    """


class CorruptEntryError(AsynctagError):
    """Bytes that are not an entry of ours. The cache takes them for a miss."""


class BackendError(AsynctagError):
    """The backend did not answer, or not as it should. Reads then compute."""


class InvalidationError(BackendError):
    """An invalidation that may not have been written: `tags` are those that may still be served old.

    They are as the caller wrote them; keys, functions and namespaces as in `Explanation.invalidated_by`.
    """

    def __init__(self, message: str, tags: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.tags = tuple(tags)


class PurgeError(AsynctagError):
    """A purge that may not have reached the CDN: `tags` are those that it may still serve old, as they were given.

    The first exception of the user's own `send`, if there was one, is its cause.
    """

    def __init__(self, message: str, tags: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.tags = tuple(tags)


class LifecycleError(AsynctagError):
    """A cache that is used unbound, bound twice, opened twice, or by `Cache.sync` where an event loop runs."""
