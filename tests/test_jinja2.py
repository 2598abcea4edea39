"""Jinja2: windows and cached fragments in templates, rendered with and without `await`."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pytest
from jinja2 import (
    ChoiceLoader,
    DictLoader,
    Environment,
    FileSystemBytecodeCache,
    FileSystemLoader,
    FunctionLoader,
    ModuleLoader,
    PrefixLoader,
    StrictUndefined,
    TemplateSyntaxError,
    UndefinedError,
    select_autoescape,
)
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

import asynctag.http
from asynctag import Cache, add_tags, no_store
from asynctag.backends.base import Entry, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.errors import (
    ConfigurationError,
    CorruptEntryError,
    InvalidTagError,
    UnstableArgumentError,
    WindowError,
)
from asynctag.http import CacheMiddleware, cache_response
from asynctag.integrations.jinja2 import CacheExtension, bodies, install
from asynctag.integrations.jinja2.bodies import Body, BodyWindow
from asynctag.placeholders import Place
from asynctag.testing import FakeClock, assert_hit, assert_miss, assert_tags
from tests.http.driver import ask

pytestmark = pytest.mark.anyio

#: What users write: to be shown as text, whatever stands around it.
HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="x" \'',
    "{{ 7 * 7 }}{% set x = 1 %}{# no #}",
    "{% window 'shop.secret' %}{% endwindow %}",
    "</p>&amp;<!--#include virtual='/etc/passwd'--><esi:include src='/'/>",
    "%(x)s {x} \\u003c %26 \x00\x7f",
]


@pytest.fixture
def cache() -> Cache:
    return Cache(default_ttl=60)


@pytest.fixture(params=[pytest.param(False, id="sync"), pytest.param(True, id="async")])
def is_async(request: pytest.FixtureRequest) -> bool:
    """Whether templates are rendered with `await`."""
    return bool(request.param)


class Site:
    """Templates over a cache, and pages of it."""

    def __init__(self, cache: Cache, is_async: bool) -> None:
        self.cache = cache
        self.is_async = is_async
        self.served = 0

    def environment(self, templates: Mapping[str, str], *, name: str = "jinja2", **options: Any) -> Environment:
        options = {"autoescape": True, "loader": DictLoader(dict(templates)), **options}
        environment = Environment(enable_async=self.is_async, **options)
        install(environment, self.cache, name=name)
        return environment

    async def render(self, environment: Environment, template: str, **values: Any) -> str:
        found = environment.get_template(template)
        return await found.render_async(values) if self.is_async else found.render(values)

    async def page(self, environment: Environment, template: str = "page.html", **values: Any) -> str:
        """A cached page: stored the first time, and the same for everybody but for its windows."""
        key = f"{environment.asynctag.window.name}/{template}"
        return await self.cache.get_or_set(key, lambda: self.render(environment, template, **values), returns=str)

    def counter(self, name: str = "shop.counter") -> None:
        """A window that counts how often it was filled."""

        @self.cache.window(name=name)
        async def counter(label: str = "n") -> str:
            self.served += 1
            return f"{label}{self.served}"


@pytest.fixture
def site(cache: Cache, is_async: bool) -> Site:
    return Site(cache, is_async)


# --- registered windows --------------------------------------------------------------------------------


async def test_a_window_is_filled_on_every_serve(site: Site) -> None:
    """A page is rendered once, and its windows are called for every reader."""
    site.counter()
    environment = site.environment({"page.html": '<p>{{ title }}</p>{% window "counter", label="#" %}.'})
    assert await site.page(environment, title="A & B") == "<p>A &amp; B</p>#1."
    assert await site.page(environment, title="another") == "<p>A &amp; B</p>#2."


PLACES = {
    "twice": '{% window "counter" %} {% window "counter" %}',
    "in a loop": '{% for i in [1, 2] %}{{ loop.index }}{% window "counter" %}{% endfor %}',
    "with an expression": '{% set l = "<" %}{% window "counter", l ~ "a" %}',
    "by position": '{% window "counter", "p" %}',
    "by the whole name": '{% window "shop.counter" %}',
    "in an include": '{% include "part.html" %}',
    "in an inherited block": '{% extends "base.html" %}{% block b %}[{{ super() }}]{% window "counter" %}{% endblock %}',
    "in a macro": '{% macro m(x) %}({{ x }}{% window "counter" %}){% endmacro %}{{ m(1) }}{{ m(2) }}',
    "in an imported macro": '{% from "macros.html" import m %}{{ m("&") }}',
    "in a call block": '{% macro m() %}({{ caller() }}){% endmacro %}{% call m() %}{% window "counter" %}{% endcall %}',
    "in a filter block": '{% filter upper %}x{% window "counter" %}{% endfilter %}',
    "in a captured text": '{% set t %}<i>{% window "counter" %}</i>{% endset %}{{ t }}{{ t|upper }}',
    "in a block that is called by name": '{% block b %}{% window "counter" %}{% endblock %}{{ self.b() }}',
    "in a recursive loop": (
        "{% for x in [{'y': [{'y': []}]}] recursive %}{% window \"counter\" %}{{ loop(x.y) }}{% endfor %}"
    ),
    "in a with block": '{% with l="w" %}{% window "counter", label=l %}{% endwith %}',
}
GIVES = {
    "twice": "n1 n1",
    "in a loop": "1n12n1",
    "with an expression": "&lt;a1",
    "by position": "p1",
    "by the whole name": "n1",
    "in an include": "n1",
    "in an inherited block": "base[n1]n1",
    "in a macro": "(1n1)(2n1)",
    "in an imported macro": "&amp;n1",
    "in a call block": "(n1)",
    "in a filter block": "Xn1",
    "in a captured text": "<i>n1</i><I>n1</I>",
    "in a block that is called by name": "n1n1",
    "in a recursive loop": "n1n1",
    "in a with block": "w1",
}
OTHERS = {
    "part.html": '{% window "counter" %}',
    "base.html": 'base{% block b %}{% window "counter" %}{% endblock %}',
    "macros.html": '{% macro m(x) %}{{ x }}{% window "counter" %}{% endmacro %}',
}


@pytest.mark.parametrize("where", PLACES)
async def test_a_window_stands_wherever_text_does(site: Site, where: str) -> None:
    """On the miss as on the hit."""
    site.counter()
    environment = site.environment({"page.html": PLACES[where], **OTHERS})
    first = await site.page(environment)
    site.served = 0
    assert first == GIVES[where]
    assert await site.page(environment) == GIVES[where]


async def test_each_stands_in_its_place(site: Site) -> None:
    """With what it was placed with, in a loop."""

    @site.cache.window(name="echo")
    async def echo(said: str) -> str:
        return said

    environment = site.environment(
        {"page.html": '{% for x in "abc" %}{{ loop.index }}{% window "echo", x %}{% endfor %}'}
    )
    for _ in range(2):
        assert await site.page(environment) == "1a2b3c"


@pytest.mark.parametrize(
    ("template", "options", "text", "markup"),
    [
        ('{% window "text" %}{% window "markup" %}', {}, "&lt;b&gt;", "<b>"),
        ('{% window "text" %}{% window "markup" %}', {"autoescape": False}, "<b>", "<b>"),
        ('{% autoescape false %}{% window "text" %}{% window "markup" %}{% endautoescape %}', {}, "<b>", "<b>"),
        ('{% autoescape on %}{% window "text" %}{% window "markup" %}{% endautoescape %}', {}, "&lt;b&gt;", "<b>"),
    ],
    ids=["on", "off", "off in a block", "by a variable"],
)
async def test_what_a_window_returns_is_escaped_as_the_template_escapes(
    site: Site, template: str, options: dict[str, Any], text: str, markup: str
) -> None:
    """Unless it is Markup."""

    @site.cache.window(name="text")
    async def of_text() -> str:
        return "<b>"

    @site.cache.window(name="markup")
    async def of_markup() -> Markup:
        return Markup("<b>")

    environment = site.environment({"page.html": template}, **options)
    for _ in range(2):
        assert await site.page(environment, on=True) == text + markup


async def test_autoescape_may_go_by_the_name_of_the_template(site: Site) -> None:
    @site.cache.window(name="text")
    async def of_text() -> str:
        return "<b>"

    source = '{% window "text" %}{% window with x %}{{ x }}{% endwindow %}'
    environment = site.environment({"a.html": source, "a.txt": source}, autoescape=select_autoescape())
    for _ in range(2):
        assert await site.page(environment, "a.html", x="<i>") == "&lt;b&gt;&lt;i&gt;"
        assert await site.page(environment, "a.txt", x="<i>") == "<b><i>"


async def test_a_macro_that_is_called_where_nothing_is_escaped_escapes_as_ever(site: Site) -> None:
    """As Jinja2 does it: by where the macro stands."""

    @site.cache.window(name="text")
    async def of_text() -> str:
        return "<b>"

    source = (
        '{% macro m(x) %}{{ x }}{% window "text" %}{% window with x %}{{ x }}{% endwindow %}{% endmacro %}'
        "{% autoescape false %}{{ m('<i>') }}{% endautoescape %}"
    )
    environment = site.environment({"page.html": source})
    for _ in range(2):
        assert await site.page(environment) == "&lt;i&gt;&lt;b&gt;&lt;i&gt;"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("escapes", [True, False])
async def test_what_users_write_stays_text(site: Site, text: str, escapes: bool) -> None:
    """In what a window returns, in what it is placed with, in declared names, in a fragment: nothing is evaluated."""

    @site.cache.window(name="echo")
    async def echo(said: str) -> str:
        return said

    source = (
        '{% window "echo", text %}|{% window with text %}{{ text }}{% endwindow %}|'
        "{% cache 60, vary=[text] %}{{ text }}{% endcache %}|{{ text }}"
    )
    environment = site.environment({"page.html": source}, autoescape=escapes)
    escaped = str(Markup.escape(text)) if escapes else text
    for _ in range(2):
        page = await site.page(environment, text=text)
        assert page.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") == "|".join([escaped] * 4)


# names


async def test_an_unknown_window_is_an_error_of_the_template(site: Site) -> None:
    """With the name that was meant, and the line."""
    site.counter()
    with pytest.raises(TemplateSyntaxError, match="Did you mean 'counter'") as caught:
        site.environment({"page.html": '\n{% window "conter" %}'}).get_template("page.html")
    assert caught.value.lineno == 2
    assert caught.value.name == "page.html"


async def test_without_windows_it_says_what_is_missing(site: Site) -> None:
    with pytest.raises(TemplateSyntaxError, match="import the module that defines it"):
        site.environment({"page.html": '{% window "conter" %}'}).get_template("page.html")


async def test_an_ambiguous_name_is_an_error_of_the_template(site: Site) -> None:
    """The whole name of either is not."""
    site.counter("shop.counter")
    site.counter("blog.counter")
    environment = site.environment({"page.html": '{% window "counter" %}', "b.html": '{% window "blog.counter" %}'})
    with pytest.raises(TemplateSyntaxError, match=r"shop\.counter, blog\.counter"):
        environment.get_template("page.html")
    assert await site.page(environment, "b.html") == "n1"


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ('{% window "counter", lable="x" %}', "lable"),
        ('{% window "counter", "x", "y" %}', "too many positional"),
        ('{% window "counter", label="x", label="y" %}', "given twice"),
        ('{% window "counter", label="x", "y" %}', "by position stands before"),
        ('{% window "counter" ~ suffix %}', "text, and nothing else"),
        ("{% window counter %}", r'window "counter"'),
    ],
)
async def test_what_a_window_does_not_take_is_an_error_of_the_template(site: Site, tag: str, says: str) -> None:
    site.counter()
    with pytest.raises(TemplateSyntaxError, match=says):
        site.environment({"page.html": tag}).get_template("page.html")


async def test_the_environments_own_window_has_no_name_in_templates(site: Site) -> None:
    """What stands for bodies in templates cannot be placed by hand."""
    site.counter()
    with pytest.raises(TemplateSyntaxError, match="no window"):
        site.environment({"page.html": '{% window "jinja2" %}'}).get_template("page.html")


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ('{% window "counter", label=missing %}', "label is undefined"),
        ('{% window "counter", missing %}', "argument 0 is undefined"),
        ('{% window "counter", label=thing %}', "label is of type object"),
        ('{% window "counter", label=5 %}', "Expected `str`"),
        ("{% window with missing %}{{ missing }}{% endwindow %}", "missing is undefined"),
        ("{% window with thing %}{{ thing }}{% endwindow %}", "object"),
        ("{% window with x=thing.__class__ %}{{ x }}{% endwindow %}", "type"),
        ("{% set m %}<b>{% endset %}{% window with m %}{{ m }}{% endwindow %}", "Markup"),
    ],
)
async def test_what_is_not_json_is_refused_where_it_is_placed(site: Site, tag: str, says: str) -> None:
    """With or without something cached around it."""
    site.counter()
    environment = site.environment({"page.html": tag})
    with pytest.raises(WindowError, match=says):
        await site.page(environment, thing=object())
    if site.is_async or "counter" not in tag:
        with pytest.raises(WindowError, match=says):
            await site.render(environment, "page.html", thing=object())


# where nothing is cached


async def test_where_nothing_is_cached_a_window_is_awaited(cache: Cache) -> None:
    """As it would be filled: escaped, with its timeout and its fallback."""
    site = Site(cache, True)

    @cache.window(name="slow", timeout=0.001, fallback="<late>")
    async def slow() -> str:
        await anyio.sleep_forever()
        return ""

    @cache.window(name="text")
    async def of_text(value: int) -> Any:
        return value if value else "<b>"

    environment = site.environment(
        {"page.html": '{% window "slow" %}{% window "text", 0 %}', "n.html": PLACES["twice"]}
    )
    assert await site.render(environment, "page.html") == "&lt;late&gt;&lt;b&gt;"
    bad = site.environment({"page.html": '{% window "text", value=1 %}'}, name="other")
    with pytest.raises(WindowError, match="return str"):
        await site.render(bad, "page.html")


async def test_where_nothing_is_cached_and_nothing_awaited_it_says_what_to_do(cache: Cache) -> None:
    site = Site(cache, False)
    site.counter()
    environment = site.environment({"page.html": '{% window "counter" %}'})
    with pytest.raises(WindowError, match="render_async"):
        await site.render(environment, "page.html")


# --- windows whose bodies stand in templates -----------------------------------------------------------


@contextmanager
def current_request(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Says which request is served."""
    served: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(asynctag.http, "current_request", lambda: served[-1], raising=False)
        yield served.append


GREETING = (
    "{% window with currency, n=items|length %}{{ request.user }}: {{ n }} in {{ currency }}{{ sign }}{% endwindow %}"
)


async def test_a_body_is_rendered_on_every_serve(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the values of the names that it declares, the globals, and the request that is served now."""
    environment = site.environment({"page.html": "<p>{{ request.user }}</p>" + GREETING})
    environment.globals["sign"] = "!"
    with current_request(monkeypatch) as serve:
        serve({"user": "Ann"})
        page = await site.page(environment, request={"user": "<Ann>"}, currency="EUR", items=[1, 2])
        assert page == "<p>&lt;Ann&gt;</p>Ann: 2 in EUR!"
        serve({"user": "Bob <&>"})
        environment.globals["sign"] = "?"
        page = await site.page(environment, request={"user": "none"}, currency="USD", items=[])
        assert page == "<p>&lt;Ann&gt;</p>Bob &lt;&amp;&gt;: 2 in EUR?"


async def test_where_no_request_is_served_there_is_none(site: Site) -> None:
    """Never that of the computation which filled the cache."""
    source = "{{ request.user }}{% window %}{{ request is defined }}{% endwindow %}"
    environment = site.environment({"page.html": source})
    for _ in range(2):
        assert await site.page(environment, request={"user": "Ann"}) == "AnnFalse"


async def test_nothing_else_of_the_context_is_there(site: Site) -> None:
    """Neither in what it includes, nor what its template was loaded with: the environment's globals alone."""
    environment = site.environment(
        {
            "page.html": '{% set mine = 1 %}{% window with name %}{{ name }}{% include "part.html" %}{% endwindow %}',
            "part.html": "[{{ name }}{{ secret }}{{ mine }}]",
            "globals.html": "{% window %}{{ secret }}{% endwindow %}",
        }
    )
    for _ in range(2):
        assert await site.page(environment, name="x", secret="s") == "x[x]"
    environment.globals["secret"] = "everybody's"
    environment.get_template("globals.html", globals={"secret": "of one"})
    for _ in range(2):
        assert await site.page(environment, "globals.html") == "everybody&#39;s"


async def test_where_nothing_is_cached_a_body_is_rendered_where_it_stands(site: Site) -> None:
    """With the request of the template, and with the values as they would be stored."""
    environment = site.environment({"page.html": "{% window with x %}{{ request.user }}{{ x }}{% endwindow %}"})
    assert (
        await site.render(environment, "page.html", request={"user": "<A>"}, x=[1, "a"]) == "&lt;A&gt;[1, &#39;a&#39;]"
    )


@pytest.mark.parametrize("escapes", [True, False])
async def test_a_body_escapes_as_where_it_stands(site: Site, escapes: bool) -> None:
    """Its constants, too, which are put together when the template is compiled."""
    inner = "{% window with x %}<i>{{ x }}{{ '<b>' ~ '&' }}{{ '<u>'|safe }}{{ [x]|join('<') }}{% endwindow %}"
    expected = "<i>&lt;x&gt;&lt;b&gt;&amp;<u>&lt;x&gt;" if escapes else "<i><x><b>&<u><x>"
    environment = site.environment({"page.html": inner}, autoescape=escapes)
    for _ in range(2):
        assert await site.page(environment, x="<x>") == expected
    assert await site.render(environment, "page.html", x="<x>") == expected
    block = f"{{% autoescape {str(escapes).lower()} %}}{inner}{{% endautoescape %}}"
    environment = site.environment({"block.html": block}, name="other", autoescape=not escapes)
    for _ in range(2):
        assert await site.page(environment, "block.html", x="<x>") == expected


BODIES = {
    "in a loop": "{% for x in 'ab' %}{% window with x, i=loop.index %}{{ x }}{{ i }}{% endwindow %}{% endfor %}",
    "in an include": '{% set x = 1 %}{% include "with_body.html" %}',
    "in a base": '{% extends "base.html" %}{% set x = 1 %}{% block b %}{{ super() }}+{% endblock %}',
    "in a child": '{% extends "base.html" %}{% block b %}{% set x = 5 %}{% window with x %}{{ x }}{% endwindow %}{% endblock %}',
    "in a macro": "{% macro m(x) %}{% window with x %}{{ x }}{% endwindow %}{% endmacro %}{{ m(1) }}{{ m(2) }}",
    "in an imported macro": '{% from "macros.html" import m %}{{ m("&") }}{{ m(2) }}',
    "in a call block": (
        "{% macro m() %}({{ caller(3) }}){% endmacro %}"
        "{% call(x) m() %}{% window with x %}{{ x }}{% endwindow %}{% endcall %}"
    ),
    "in a captured text": "{% set t %}<i>{% window with x=4 %}{{ x }}{% endwindow %}</i>{% endset %}{{ t }}",
    "the same twice": "{% window with x=1 %}{{ x }}{% endwindow %}{% window with x=2 %}{{ x }}{% endwindow %}",
    "with statements of its own": (
        '{% window with x=2 %}{% from "plain.html" import twice %}{% set y = x * 2 %}'
        "{% for i in range(y) %}{{ loop.index }}{% if loop.last %}.{% endif %}{% endfor %}{{ twice(y) }}"
        "{% macro own(z) %}<{{ z }}>{% endmacro %}{{ own('&') }}{% endwindow %}"
    ),
    "with nothing declared": "{% window %}{{ range(3)|list }}{% endwindow %}",
    "below another that is nothing": "{% if false %}{% window %}no{% endwindow %}{% endif %}{% window %}yes{% endwindow %}",
}
BODIES_GIVE = {
    "in a loop": "a1b2",
    "in an include": "1",
    "in a base": "base<1>+",
    "in a child": "base5",
    "in a macro": "12",
    "in an imported macro": "&amp;2",
    "in a call block": "(3)",
    "in a captured text": "<i>4</i>",
    "the same twice": "12",
    "with statements of its own": "1234.8<&amp;>",
    "with nothing declared": "[0, 1, 2]",
    "below another that is nothing": "yes",
}
WITH_BODIES = {
    "with_body.html": "{% window with x %}{{ x }}{% endwindow %}",
    "base.html": "base{% block b scoped %}{% window with x %}<{{ x }}>{% endwindow %}{% endblock %}",
    "macros.html": "{% macro m(x) %}{% window with x %}{{ x }}{% endwindow %}{% endmacro %}",
    "plain.html": "{% macro twice(x) %}{{ 2 * x }}{% endmacro %}",
}


@pytest.mark.parametrize("where", BODIES)
async def test_a_body_stands_wherever_text_does(site: Site, where: str) -> None:
    """It is found again in the template that it stands in, whichever was rendered."""
    environment = site.environment({"page.html": BODIES[where], **WITH_BODIES})
    for _ in range(2):
        assert await site.page(environment) == BODIES_GIVE[where]
    assert await site.render(environment, "page.html") == BODIES_GIVE[where]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% window %}{{ name }}{% endwindow %}", "'name' is not there .* {% window with name %}"),
        ("{% window with name %}{{ name }}{{ user.id }}{% endwindow %}", "'user' is not there"),
        ("{% macro m() %}{% endmacro %}{% window %}{{ m() }}{% endwindow %}", "'m' is not there .* import within"),
        ("{% for x in [] %}{% window %}{{ loop.index }}{% endwindow %}{% endfor %}", "'loop' is not there"),
        ("{% macro m() %}{% window %}{{ caller() }}{% endwindow %}{% endmacro %}", "'caller' is not there"),
        ("{% block b %}{% window %}{{ super() }}{% endwindow %}{% endblock %}", "'super' is not there"),
        ("{% block b %}{% endblock %}{% window %}{{ self.b() }}{% endwindow %}", "self is not there"),
        ("{% window %}{% block b %}{% endblock %}{% endwindow %}", "block b may be another"),
        ("{% window with request %}{{ request }}{% endwindow %}", "need not declare request"),
        ("{% window with x, x %}{{ x }}{% endwindow %}", "'x' is given twice"),
        ("{% window timeout=limit %}{% endwindow %}", "give a literal"),
        ("{% window timeout=0 %}{% endwindow %}", "above 0"),
        ("{% window timeout='1' %}{% endwindow %}", "timeout='1'"),
        ("{% window fallback=1 %}{% endwindow %}", "fallback=1"),
        ("{% window timeout=1, timeout=2 %}{% endwindow %}", "given twice"),
        ("{% window with x timeout=1 %}{% endwindow %}", "expected token ','"),
        ("{% window %}", "endwindow"),
        ("{% window %}{{ x|nonsense }}{% endwindow %}", "No filter named 'nonsense'"),
    ],
)
async def test_what_cannot_be_rendered_later_is_an_error_of_the_template(site: Site, source: str, says: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=says) as caught:
        site.environment({"page.html": "\n" + source}).get_template("page.html")
    assert caught.value.name == "page.html"
    assert caught.value.lineno == 2


async def test_a_template_without_a_name_cannot_be_found_again(site: Site) -> None:
    environment = site.environment({})
    for source, error in [
        ("{% window %}{% endwindow %}", WindowError),
        ("{% cache 5 %}{% endcache %}", ConfigurationError),
    ]:
        template = environment.from_string(source)
        with pytest.raises(error, match="from_string"):
            await (template.render_async() if site.is_async else anyio.to_thread.run_sync(template.render))


# timeout and fallback


@pytest.mark.parametrize(("escapes", "shown"), [(True, "&lt;gone&gt;"), (False, "<gone>")])
async def test_the_fallback_of_a_body_that_fails(
    site: Site, escapes: bool, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is text of the template: escaped as that is. The error is logged."""
    source = "{% window fallback='<gone>' with x %}{{ 1 // x }}{% endwindow %}"
    environment = site.environment({"page.html": source}, autoescape=escapes)
    for _ in range(2):
        assert await site.page(environment, x=0) == shown
    assert await site.render(environment, "page.html", x=0) == shown
    assert [record.getMessage() for record in caplog.records] == [
        "a window of the template page.html failed: its fallback is served"
    ] * 3
    assert all(record.exc_info for record in caplog.records)
    environment = site.environment({"bad.html": "{% window with x %}{{ 1 // x }}{% endwindow %}"}, name="other")
    with pytest.raises(ZeroDivisionError):
        await site.page(environment, "bad.html", x=0)
    with pytest.raises(ZeroDivisionError):
        await site.render(environment, "bad.html", x=0)


async def test_the_timeout_of_a_body(cache: Cache) -> None:
    """Without a fallback it is the page's."""
    site = Site(cache, True)
    sources = {
        "page.html": "{% window timeout=0.001, fallback='late' %}{{ forever() }}{% endwindow %}",
        "bad.html": "{% window timeout=0.001 %}{{ forever() }}{% endwindow %}",
        "none.html": "{% window timeout=none %}{{ moment() }}{% endwindow %}",
    }
    environment = site.environment(sources)
    environment.globals |= {"forever": anyio.sleep_forever, "moment": anyio.lowlevel.checkpoint}
    for _ in range(2):
        assert await site.page(environment) == "late"
        assert await site.page(environment, "none.html") == "None"
        with pytest.raises(TimeoutError):
            await site.page(environment, "bad.html")
    assert await site.render(environment, "page.html") == "late"


# windows within windows


async def test_a_window_within_a_window_is_filled_with_it(site: Site) -> None:
    """Registered ones, bodies in bodies, what is included; side by side, on every serve."""
    site.counter()
    environment = site.environment(
        {
            "page.html": (
                "{% window with x %}[{{ x }}{% window 'counter' %}"
                "{% window with y=x ~ '&' %}({{ y }}){% endwindow %}{% include 'part.html' %}]"
                "{% endwindow %}{% window with x %}{{ x }}{% window with y=x ~ '&' %}{{ y }}{% endwindow %}{% endwindow %}"
            ),
            "part.html": "{% window with x %}{{ x }}!{% endwindow %}",
        }
    )
    page = await site.page(environment, x="<")
    assert page == "[&lt;n1(&lt;&amp;)&lt;!]&lt;&lt;&amp;"
    page = await site.page(environment, x="another")
    assert page == "[&lt;n2(&lt;&amp;)&lt;!]&lt;&lt;&amp;"


async def test_in_a_body_windows_may_be_awaited_and_called(cache: Cache) -> None:
    """As anywhere in a response; what it reads through the cache does not count for the page."""
    site = Site(cache, True)
    site.counter()

    @cache.cached(name="row", tags=["row"])
    async def row() -> str:
        site.served += 10
        return "row"

    @cache.window(name="plain")
    async def plain() -> str:
        return "<b>"

    environment = site.environment({"page.html": "{% window %}{{ plain() }}{{ row() }}{% endwindow %}"})
    environment.globals |= {"plain": plain, "row": row}
    for _ in range(2):
        assert await site.page(environment) == "&lt;b&gt;row"
    assert site.served == 10
    await cache.invalidate("row")
    await assert_hit(cache, "jinja2/page.html")
    assert await site.page(environment) == "&lt;b&gt;row"
    assert site.served == 20


async def test_a_placeholder_that_was_cut_in_a_body_is_an_error(site: Site) -> None:
    """That says where."""
    site.counter()
    source = "{% window %}{% set t %}{% window 'counter' %}{% endset %}{{ t|truncate(20, true, '') }}{% endwindow %}"
    environment = site.environment({"page.html": source})
    with pytest.raises(WindowError, match=r"a window of the template page\.html"):
        await site.page(environment)
