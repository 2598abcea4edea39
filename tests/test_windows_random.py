"""Random pages with windows, in random nestings of cached functions, held against plain Python.

In plain Python a window is called where it is placed, and a cached function is a function. What is cached, and filled
for each user, has to be the same: on a miss, on a hit, and wherever some of the parts were there before.
"""

import html
import urllib.parse
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import anyio
import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup, escape

from asynctag import Cache, Window
from asynctag.backends.base import Backend
from asynctag.backends.memory import MemoryBackend
from tests.test_cache import Remote

user: ContextVar[str] = ContextVar("user", default="nobody")
jinja = jinja2.Environment(autoescape=True)


class World:
    """Where a page is evaluated: with a cache, or in plain Python."""

    async def window(self, name: str, argument: str) -> Any:
        raise NotImplementedError

    async def cached(self, node: "Cached") -> Any:
        raise NotImplementedError


class Plain(World):
    async def window(self, name: str, argument: str) -> Any:
        return await WINDOWS[name](argument)

    async def cached(self, node: "Cached") -> Any:
        value = await node.inner.value(self)
        return str(value) if node.returns is str else value


class Real(World):
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.windows: dict[str, Window[[str], Any]] = {
            name: cache.window(name=name)(function) for name, function in WINDOWS.items()
        }
        self.functions: dict[int, Callable[[], Awaitable[Any]]] = {}

    async def window(self, name: str, argument: str) -> Any:
        return self.windows[name](argument)

    async def cached(self, node: "Cached") -> Any:
        async def compute() -> Any:
            value = await node.inner.value(self)
            return str(value) if node.returns is str and type(value) is Markup else value

        if node.number not in self.functions:
            define = self.cache.cached(name=f"part {node.number}", returns=node.returns)
            self.functions[node.number] = define(compute)
        return await self.functions[node.number]()


async def greeting(argument: str) -> str:
    return f"{argument} <{user.get()}> &'\""


async def bold(argument: str) -> str:
    return Markup("<b>%s %s</b>") % (user.get(), argument)


async def cart(argument: str) -> Any:
    return {"of": user.get(), "items": [argument, 1, None, {"<": 1.5}]}


WINDOWS: dict[str, Callable[[str], Any]] = {"greeting": greeting, "bold": bold, "cart": cart}


# --- pages


class Node:
    async def value(self, world: World) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Literal(Node):
    text: str

    async def value(self, world: World) -> Any:
        return self.text


@dataclass(frozen=True)
class Placed(Node):
    name: str
    argument: str

    async def value(self, world: World) -> Any:
        return await world.window(self.name, self.argument)


@dataclass(frozen=True)
class Woven(Node):
    """Text made of several by one of the ways of `str`."""

    way: Callable[[list[Any]], str]
    parts: tuple[Node, ...]

    async def value(self, world: World) -> Any:
        return self.way([await part.value(world) for part in self.parts])


@dataclass(frozen=True)
class Changed(Node):
    """Text that something was done to."""

    way: Callable[[Any], str]
    inner: Node

    async def value(self, world: World) -> Any:
        return self.way(await self.inner.value(world))


@dataclass(frozen=True)
class Value(Node):
    """A dict or list, by names or by a number."""

    parts: tuple[tuple[str | int | None, Node], ...]

    async def value(self, world: World) -> Any:
        values = [(key, await part.value(world)) for key, part in self.parts]
        if any(key is None for key, _ in values):
            return [value for _, value in values]
        return dict(values)


numbers = count()


@dataclass(frozen=True)
class Cached(Node):
    """What a cached function returns."""

    returns: Any
    inner: Node
    number: int = field(default_factory=lambda: next(numbers))

    async def value(self, world: World) -> Any:
        return await world.cached(self)


def html_escape(value: Any) -> str:
    return html.escape(value if type(value) is not Markup else str(value))


def quote(value: Any) -> str:
    return urllib.parse.quote(value if type(value) is not Markup else str(value), safe="")


WAYS: list[Callable[[list[Any]], str]] = [
    lambda parts: "".join(["- ", *map(str, parts)]),
    lambda parts: f"[{parts[0]}]" + "".join(f"({part})" for part in parts[1:]),
    lambda parts: "<p>" + str.join(", ", [str(part) for part in parts]),
    lambda parts: "%s %s".__mod__(("x", str(parts[0]))) + "&",
    lambda parts: str.format("{}{}", "'", parts[0]),
    lambda parts: "a " + f"{parts[0]!s:>5}" * 2,
]

TEMPLATE = jinja.from_string(
    "<p>{{ parts[0] }}{% for part in parts %}<i title='{{ part|e }}'>{{ part }}</i>{% endfor %}"
)

TEMPLATES: list[Callable[[list[Any]], str]] = [
    lambda parts: Markup("<p title='%s'>") % parts[0],
    lambda parts: Markup("<i>{}</i>").format(parts[0]),
    lambda parts: Markup("<br>").join(parts),
    lambda parts: Markup("<p>") + parts[0],
    lambda parts: Markup(TEMPLATE.render(parts=parts)),
    lambda parts: escape(parts[0]),
]

texts = st.text(alphabet="ab 01&<>'\"%{}\\é€\n", max_size=6)
literals = st.builds(Literal, texts)
placed = st.builds(Placed, st.sampled_from(["greeting", "bold"]), texts)


def some(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[tuple[Node, ...]]:
    return st.lists(nodes, min_size=1, max_size=3).map(tuple)


#: Text that nothing was done to yet, so that it may become a part of a URL.
plain_texts: st.SearchStrategy[Node] = st.recursive(
    literals | placed,
    lambda inner: st.builds(Woven, st.sampled_from(WAYS), some(inner)) | st.builds(Cached, st.just(str), inner),
    max_leaves=5,
)

changed_texts = st.builds(Changed, st.sampled_from([quote, html_escape]), plain_texts)

pages: st.SearchStrategy[Node] = st.recursive(
    plain_texts | changed_texts | st.builds(Changed, st.just(quote), changed_texts),
    lambda inner: st.one_of(
        st.builds(Woven, st.sampled_from(WAYS), some(inner)),
        st.builds(Cached, st.just(str), inner),
        st.builds(Changed, st.just(html_escape), inner),
        st.builds(Woven, st.sampled_from(TEMPLATES), some(inner)),
        st.builds(Cached, st.just(Markup), st.builds(Woven, st.sampled_from(TEMPLATES), some(inner))),
    ),
    max_leaves=8,
)

#: Text as a value: Markup would have to be annotated.
as_text = st.builds(Cached, st.just(str), pages) | st.builds(Woven, st.sampled_from(WAYS), some(pages)) | placed

values: st.SearchStrategy[Node] = st.recursive(
    as_text | literals | st.builds(Placed, st.just("cart"), texts),
    lambda inner: st.one_of(
        st.builds(Value, st.lists(st.tuples(st.none(), inner), max_size=3).map(tuple)),
        st.builds(Value, st.lists(st.tuples(texts | st.integers(-3, 3), inner), max_size=3).map(tuple)),
        st.builds(Cached, st.just(Any), inner),
    ),
    max_leaves=6,
)

roots = st.builds(Cached, st.just(str), pages) | st.builds(Cached, st.just(Any), values)


def parts_of(node: Node) -> list[Cached]:
    """The cached functions in a page, the outer ones first."""
    inner: list[Node] = []
    if isinstance(node, Woven):
        inner = list(node.parts)
    elif isinstance(node, Value):
        inner = [part for _, part in node.parts]
    elif isinstance(node, Changed | Cached):
        inner = [node.inner]
    found = [node] if isinstance(node, Cached) else []
    return found + [part for one in inner for part in parts_of(one)]


def alike(value: Any) -> Any:
    """Quotes are escaped in two ways, which mean the same."""
    if isinstance(value, str):
        return value.replace("#34;", "quot;").replace("#39;", "#x27;")
    if isinstance(value, dict):
        return {key: alike(one) for key, one in value.items()}
    return [alike(one) for one in value] if isinstance(value, list) else value


async def hold_against_plain_python(backend: Backend, root: Cached, warm: list[Cached], *, namespace: str = "") -> None:
    """Some of the parts are there before; then it is asked for by several, computed and found."""
    real, plain = Real(Cache(backend, default_ttl=60, namespace=namespace)), Plain()
    user.set("carol")
    for part in warm:
        await part.value(real)
    for name in ("alice", "bob", "alice"):
        user.set(name)
        assert alike(await root.value(real)) == alike(await root.value(plain))
        for part in warm:
            assert alike(await part.value(real)) == alike(await part.value(plain))


@pytest.mark.parametrize("backend", [MemoryBackend, Remote])
@settings(deadline=None)
@given(data=st.data())
def test_pages_are_what_plain_python_makes(backend: type[MemoryBackend], data: st.DataObject) -> None:
    """On the backend that keeps values, and on one that keeps bytes."""
    root = data.draw(roots)
    parts = parts_of(root)
    warm = data.draw(st.lists(st.sampled_from(parts), max_size=3, unique=True)) if parts else []
    loop = data.draw(st.sampled_from(["asyncio", "trio"]))
    anyio.run(hold_against_plain_python, backend(), root, warm, backend=loop)
