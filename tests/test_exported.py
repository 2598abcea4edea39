"""The public names are a list: what is exported is meant to be, is documented, and is at home in the package."""

import inspect

import pytest

import asynctag
import asynctag.testing

NAMES = [
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
TOOLS = ["BackendContract", "FakeClock", "assert_hit", "assert_miss", "assert_tags", "fake_clock", "memory_backend"]


def test_the_public_names() -> None:
    """A name that comes or goes is a decision, made here too."""
    assert asynctag.__all__ == NAMES
    assert asynctag.testing.__all__ == TOOLS


def test_nothing_else_looks_public() -> None:
    """Besides submodules, what stands in the root is in the list."""
    seen = {name for name, value in vars(asynctag).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert seen == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_documented(name: str) -> None:
    """With words of its own."""
    public = getattr(asynctag, name)
    assert public.__doc__
    assert not public.__doc__.startswith(f"{name}(")
    assert public.__module__.startswith("asynctag.")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("Error")])
def test_errors_are_one_tree(name: str) -> None:
    """One `except` catches all of them; the docstring of their module draws them all."""
    error = getattr(asynctag, name)
    assert issubclass(error, asynctag.AsynctagError)
    assert name in (asynctag.errors.__doc__ or "")


def test_what_the_cache_offers() -> None:
    """The methods of `Cache` and of a cached function, each documented."""
    methods = sorted(name for name in vars(asynctag.Cache) if not name.startswith("_"))
    assert methods == [
        "aclose",
        "after_invalidation",
        "bind",
        "cached",
        "clear",
        "delete",
        "disabled",
        "explain",
        "flush_invalidations",
        "get",
        "get_many",
        "get_or_set",
        "get_or_set_many",
        "invalidate",
        "lookup",
        "override",
        "queued_invalidations",
        "set",
        "sync",
        "transaction",
        "window",
    ]
    assert all(getattr(asynctag.Cache, name).__doc__ for name in methods)
    offered = sorted(name for name in vars(asynctag.Cached) if not name.startswith("_"))
    assert offered == ["explain", "invalidate", "invalidate_all", "key", "refresh", "sync", "uncached"]
    assert all(getattr(asynctag.Cached, name).__doc__ for name in offered)


def test_the_version_is_the_packages() -> None:
    """One number, in two places that agree."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert asynctag.__version__ == project["version"]
