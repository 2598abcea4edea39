"""Jinja2: windows and cached fragments in templates, rendered with and without `await`."""

import os
import random
import threading
from collections.abc import Callable, Mapping
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
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

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
from asynctag.http import CacheMiddleware, cache_response, current_request
from asynctag.integrations.jinja2 import bodies, install
from asynctag.integrations.jinja2.bodies import Body, BodyWindow
from asynctag.placeholders import Place
from asynctag.scope import Scope, current_scope
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
    "in an inherited block": (
        '{% extends "base.html" %}{% block b %}[{{ super() }}]{% window "counter" %}{% endblock %}'
    ),
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
        assert as_text(page) == "|".join([escaped] * 4)


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


def serving(cache: Cache, endpoint: Callable[..., Any]) -> Starlette:
    """An application of one page."""
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


GREETING = (
    "{% window with currency, n=items|length %}"
    "{{ request.headers.user }}: {{ n }} in {{ currency }}{{ sign }}{% endwindow %}"
)


@pytest.mark.parametrize("kept", ["the page", "the response", "nothing"])
async def test_a_body_is_rendered_on_every_serve(site: Site, kept: str) -> None:
    """With the values of the names that it declares, the globals, and the request that is served now."""
    environment = site.environment({"page.html": "<p>{{ request.headers.user }}</p>" + GREETING})
    environment.globals["sign"] = "!"
    items = [1, 2]

    async def show(request: Request) -> HTMLResponse:
        render = site.page if kept == "the page" else site.render
        return HTMLResponse(await render(environment, "page.html", request=request, currency="EUR", items=items))

    app = serving(site.cache, cache_response(60, public=True)(show) if kept == "the response" else show)
    call = await ask(app, headers={"user": "<Ann>"})
    assert call.text == "<p>&lt;Ann&gt;</p>&lt;Ann&gt;: 2 in EUR!"
    environment.globals["sign"] = "?"
    items.append(3)
    call = await ask(app, headers={"user": "Bob"})
    if kept == "nothing":
        assert call.text == "<p>Bob</p>Bob: 3 in EUR?"
    else:
        assert call.text == "<p>&lt;Ann&gt;</p>Bob: 2 in EUR?"
    assert call.hit == (kept == "the response")
    assert call.header("cache-control") == "private, no-store"


async def test_a_body_in_a_response_has_what_requests_have(site: Site) -> None:
    """Routes and query; where it is rendered in place, too, and where a cached function was called."""
    templates = Jinja2Templates(env=site.environment({"page.html": "{% window %}{{ url_for('home') }}{% endwindow %}"}))

    async def home(request: Request) -> HTMLResponse:
        return HTMLResponse(await site.page(templates.env, request=None))

    app = Starlette(routes=[Route("/", home, name="home")])
    app.add_middleware(CacheMiddleware, cache=site.cache)
    for host in ("one", "two"):
        assert (await ask(app, host=host)).text == f"http://{host}/"


async def test_the_current_request_comes_before_that_of_the_template(site: Site) -> None:
    """Where a window is rendered in place: the template may have been given another."""
    environment = site.environment({"page.html": "{% window %}{{ request.headers.user }}{% endwindow %}"})
    shown: list[str] = []

    @site.cache.window(name="in place")
    async def in_place() -> str:
        other = {"headers": {"user": "nobody"}}
        shown.append(await site.render(environment, "page.html", request=other))
        return ""

    async def show(request: Request) -> HTMLResponse:
        return HTMLResponse(f"{in_place()}")

    await ask(serving(site.cache, show), headers={"user": "Ann"})
    assert shown == ["Ann"]


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
    "in a child": (
        '{% extends "base.html" %}{% block b %}{% set x = 5 %}{% window with x %}{{ x }}{% endwindow %}{% endblock %}'
    ),
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
    "below another that is nothing": (
        "{% if false %}{% window %}no{% endwindow %}{% endif %}{% window %}yes{% endwindow %}"
    ),
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
        ("{% window timeout=1, with x %}{% endwindow %}", "no comma stands before `with`"),
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


async def test_a_template_that_is_included_without_context_is_rendered_anew(site: Site) -> None:
    """Jinja2 keeps what such a template gives, or one that is imported: not where it has windows or fragments."""
    site.counter()
    environment = site.environment(
        {
            "page.html": (
                '{% include "part.html" without context %}{% include "plain.html" without context %}'
                '{% from "exports.html" import badge, row %}{{ badge }}{{ row }}'
            ),
            "part.html": "{% window 'counter' %}{% window %}body{% endwindow %}",
            "plain.html": "{{ rendered() }}",
            "exports.html": (
                "{% set badge %}<i>{% window 'counter' %}</i>{% endset %}"
                "{% set row %}{% cache 60, tags='row' %}{{ read() }}{% endcache %}{% endset %}"
            ),
        }
    )
    rendered, read = [], []
    environment.globals |= {"rendered": lambda: rendered.append(1) or "", "read": lambda: read.append(1) or len(read)}
    for number in range(1, 4):
        assert await site.page(environment) == f"n{number}body<i>n{number}</i>{1 if number < 3 else 2}"
        await site.cache.delete("jinja2/page.html")
        if number == 2:
            await site.cache.invalidate("row")
    assert rendered == [1]


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
    said = "a window of the template page.html failed: its fallback is served"
    assert all(record.getMessage().startswith(said) for record in caplog.records)
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]
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
        with pytest.raises(
            TimeoutError, match=r"a window of the template bad\.html took longer than its timeout of 0.001 s"
        ):
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
                "{% endwindow %}"
                "{% window with x %}{{ x }}{% window with y=x ~ '&' %}{{ y }}{% endwindow %}{% endwindow %}"
            ),
            "part.html": "{% window with x %}{{ x }}!{% endwindow %}",
        }
    )
    page = await site.page(environment, x="<")
    assert page == "[&lt;n1(&lt;&amp;)&lt;!]&lt;&lt;&amp;"
    page = await site.page(environment, x="another")
    assert page == "[&lt;n2(&lt;&amp;)&lt;!]&lt;&lt;&amp;"


@pytest.mark.parametrize(("escapes", "text"), [(True, "&lt;b&gt;"), (False, "<b>")])
async def test_a_window_within_a_window_escapes_as_that_does(site: Site, escapes: bool, text: str) -> None:
    """What is Markup stays as it is in either."""

    @site.cache.window(name="text")
    async def of_text() -> str:
        return "<b>"

    @site.cache.window(name="markup")
    async def of_markup() -> Markup:
        return Markup("<b>")

    source = "{% window %}{% window 'text' %}{% window 'markup' %}{% endwindow %}"
    environment = site.environment({"page.html": source}, autoescape=escapes)
    for _ in range(2):
        assert await site.page(environment) == f"{text}<b>"


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


# random templates


class Grown:
    """A random template, and what it is without windows and fragments: the same names, shown in the same places."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = 0
        self.tagged, self.plain = self.several(["title", "n"], 4)

    def several(self, names: list[str], depth: int) -> tuple[str, str]:
        parts = [self.one(names, depth) for _ in range(self.random.randint(1, 3))]
        return "".join(one for one, _ in parts), "".join(one for _, one in parts)

    def one(self, names: list[str], depth: int) -> tuple[str, str]:
        name, fresh = self.random.choice(names), f"v{self.names}"
        self.names += 1
        leaves = {
            "<p>": "<p>",
            f"{{{{ {name} }}}}": f"{{{{ {name} }}}}",
            f"{{{{ '<b>' ~ {name} }}}}": f"{{{{ '<b>' ~ {name} }}}}",
            f"{{% window 'echo', said={name} %}}": f"{{{{ {name} }}}}",
            f"{{% window %}}{{% window 'echo', 7 %}}{{% endwindow %}}{self.names}": f"7{self.names}",
        }
        if depth == 0 or self.random.random() < 0.3:
            return self.random.choice(list(leaves.items()))
        inside, plainly = self.several([fresh, *names], depth - 1)
        alone, plain_alone = self.several([fresh], depth - 1)
        flag = self.random.choice(["true", "false"])
        loop = f"{{% for {fresh} in [1, '<{fresh}>'] %}}", "{% endfor %}"
        escape = f"{{% set {fresh} = 2 %}}{{% autoescape {flag} %}}", "{% endautoescape %}"
        with_it = f"{{% with {fresh}={name} %}}", "{% endwith %}"
        return self.random.choice(
            [
                (f"{{% window with {fresh}={name} %}}{alone}{{% endwindow %}}", plain_alone.join(with_it)),
                (
                    f"{{% window fallback='no' with {fresh}={name} %}}{alone}{{% endwindow %}}",
                    plain_alone.join(with_it),
                ),
                (
                    f"{with_it[0]}{{% cache vary=[{fresh}, {', '.join(names)}] %}}{inside}{{% endcache %}}{with_it[1]}",
                    plainly.join(with_it),
                ),
                (inside.join(loop), plainly.join(loop)),
                (inside.join(escape), plainly.join(escape)),
                (
                    f"{{% macro m{fresh}({fresh}) %}}{alone}{{% endmacro %}}{{{{ m{fresh}({name}) }}}}",
                    f"{{% macro m{fresh}({fresh}) %}}{plain_alone}{{% endmacro %}}{{{{ m{fresh}({name}) }}}}",
                ),
            ]
        )


@pytest.mark.parametrize("first", range(0, 120, 10))
async def test_random_templates_are_what_they_are_without_windows(site: Site, first: int) -> None:
    """On the miss and on the hit, as a fragment's neighbour and within it; and in place, where windows are awaited."""

    @site.cache.window(name="echo")
    async def echo(said: Any) -> str:
        return str(said)

    grown = {f"{seed}.html": Grown(seed) for seed in range(first, first + 10)}
    environment = site.environment({name: one.tagged for name, one in grown.items()}, autoescape=first % 20 == 0)
    values = {"title": "<i>{{ n }}'\"&amp;", "n": 3}
    for name, one in grown.items():
        plain = Environment(autoescape=first % 20 == 0).from_string(one.plain).render(values)
        shown = [await site.page(environment, name, **values) for _ in range(2)]
        if site.is_async:
            shown.append(await site.render(environment, name, **values))
        for text in shown:
            assert as_text(text) == as_text(plain), one.tagged


def as_text(page: str) -> str:
    """There are two ways to escape quotes."""
    return page.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


# --- found again -----------------------------------------------------------------------------------------


def placed(environment: Environment, template: str = "page.html", **values: Any) -> Body:
    """The window that a template places, as it would be stored."""
    window: BodyWindow = environment.asynctag.window
    stored: list[Body] = []
    scope = Scope("a page", None, "")
    token = current_scope.set(scope)
    try:
        text = environment.get_template(template).render(values)
    finally:
        current_scope.reset(token)
    segments = scope.places.split(text, lambda: "a page")
    for place in segments.places:
        assert place.name == window.key
        stored.append(Body(**msgspec.msgpack.decode(place.params)))
    return stored[0]


def check(environment: Environment, body: Any, *, how: str = "check") -> None:
    """Whether a stored body would be served: raises `CorruptEntryError` where the entry is a miss."""
    installed = environment.asynctag
    place = Place(installed.window.key, msgspec.msgpack.encode(body._asdict() if isinstance(body, Body) else body))
    windows = installed.cache._filling().windows
    windows.check([place]) if how == "check" else windows.find(place)


BODY = "{% window with name %}Hello {{ name }}{% endwindow %}"


@pytest.fixture
def sync_site(cache: Cache) -> Site:
    return Site(cache, False)


def test_another_process_finds_it(sync_site: Site) -> None:
    """By the template's name and a hash: with the same template, in another environment, of a cache of its own."""
    stored = placed(sync_site.environment({"page.html": BODY}), name="Ann")
    elsewhere = Site(Cache(default_ttl=60), True).environment({"page.html": f"<title>moved</title>{BODY}"})
    check(elsewhere, stored)


@pytest.mark.parametrize(
    "now",
    [
        "{% window with name %}Bye {{ name }}{% endwindow %}",
        "{% window with name, title %}Hello {{ name }}{% endwindow %}",
        "{% window timeout=1 with name %}Hello {{ name }}{% endwindow %}",
        "{% window fallback='' with name %}Hello {{ name }}{% endwindow %}",
        "Hello {{ name }}",
        "{% window with name %}Hello {{ name }",
    ],
)
def test_after_a_deploy_with_another_body_it_is_a_miss(sync_site: Site, now: str) -> None:
    """What was stored before never gets what stands there now."""
    stored = placed(sync_site.environment({"page.html": BODY}), name="Ann")
    with pytest.raises(CorruptEntryError, match=r"page\.html"):
        check(Site(Cache(default_ttl=60), False).environment({"page.html": now}), stored)


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a path": lambda body: body | {"template": "../../etc/passwd"},
    "an absolute path": lambda body: body | {"template": "/page.html"},
    "a path of Windows": lambda body: body | {"template": "C:page.html"},
    "backslashes": lambda body: body | {"template": "a\\..\\page.html"},
    "control characters": lambda body: body | {"template": "page.html\n"},
    "another template": lambda body: body | {"template": "other.html"},
    "no template": lambda body: body | {"template": "none.html"},
    "a broken template": lambda body: body | {"template": "broken.html"},
    "one that no loader can load": lambda body: body | {"template": "raises.html"},
    "the part of another": lambda body: body | {"digest": "0" * 32},
    "a block": lambda body: body | {"digest": "content"},
    "another name": lambda body: body | {"values": {"nome": "Ann"}},
    "one name more": lambda body: body | {"values": {"name": "Ann", "request": {}}},
    "no name": lambda body: body | {"values": {}},
    "values that are none": lambda body: body | {"values": ["Ann"]},
    "keys that are no names": lambda body: body | {"values": {1: "Ann"}},
    "another timeout": lambda body: body | {"timeout": 3600.0},
    "another fallback": lambda body: body | {"fallback": "<script>"},
    "a type that is not": lambda body: body | {"escapes": "yes"},
    "one field more": lambda body: body | {"more": 1},
    "one field less": lambda body: {name: one for name, one in body.items() if name != "timeout"},
    "nothing": lambda body: {},
    "no fields": lambda body: [1, 2],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_a_miss(cache: Cache, how: str) -> None:
    """Nothing but a window of a template of the environment's own loader is found, with what is declared for it."""
    loaded: list[str] = []
    templates = {
        "page.html": BODY + "{% block content %}{% endblock %}",
        "other.html": "{% block content %}{% endblock %}{% window with x %}{{ x }}{% endwindow %}",
        "broken.html": "{% window %}",
        "/page.html": BODY,
        "C:page.html": BODY,
        "a\\..\\page.html": BODY,
        "page.html\n": BODY,
        "../../etc/passwd": BODY,
    }

    def load(name: str) -> str | None:
        loaded.append(name)
        if name == "raises.html":
            raise RuntimeError("no such database")
        return templates.get(name)

    environment = Environment(loader=FunctionLoader(load), autoescape=True)
    install(environment, cache)
    stored = placed(environment, name="Ann")
    check(environment, stored)
    loaded.clear()
    for step in ("check", "find"):
        with pytest.raises(CorruptEntryError):
            check(environment, TAMPERED[how](stored._asdict()), how=step)
    assert set(loaded) <= {"page.html", "other.html", "none.html", "broken.html", "raises.html"}


@pytest.mark.parametrize("value", [b"Ann", float("nan"), [b""], {"x": float("inf")}])
def test_values_that_are_not_json_were_never_stored(sync_site: Site, value: Any) -> None:
    environment = sync_site.environment({"page.html": BODY})
    stored = placed(environment, name="Ann")
    with pytest.raises(CorruptEntryError, match="not JSON"):
        check(environment, stored._replace(values={"name": value}))


def test_the_block_of_another_kind_is_none_of_a_window(cache: Cache) -> None:
    """A digest cannot name a block of the template's own."""
    environment = Environment(loader=DictLoader({"page.html": BODY + "{% block content %}{% endblock %}"}))
    install(environment, cache)
    stored = placed(environment, name="Ann")
    assert stored.block in environment.get_template("page.html").blocks
    for digest in ("content", "", "../content", stored.block, stored.block.removeprefix("asynctag_window_")):
        with pytest.raises(CorruptEntryError):
            check(environment, stored._replace(digest=digest))


async def test_in_a_running_process_an_edited_body_makes_the_page_a_miss(site: Site) -> None:
    """At once, in memory too; edits beside it wait for the page's end, as ever."""
    templates = {"page.html": BODY}
    environment = site.environment({}, loader=DictLoader(templates))
    for name in ("Ann", "Bob"):
        assert await site.page(environment, name=name) == "Hello Ann"
    templates["page.html"] = "edited" + BODY
    assert await site.page(environment, name="Cid") == "Hello Ann"
    templates["page.html"] = BODY.replace("Hello", "Bye")
    for name in ("Dan", "Eve"):
        assert await site.page(environment, name=name) == "Bye Dan"


async def test_what_is_served_already_has_the_body_that_it_was_made_with(sync_site: Site) -> None:
    """Whatever becomes of the template while it is: what was found whole when it was looked up is not given up."""
    templates = {"page.html": BODY}
    environment = sync_site.environment({}, loader=DictLoader(templates))
    window: BodyWindow = environment.asynctag.window
    params = msgspec.msgpack.encode(placed(environment, name="Ann")._asdict())
    assert await window.fill(window.arguments(params)) == "Hello Ann"
    templates["page.html"] = BODY.replace("Hello", "Bye")
    assert await window.fill(window.arguments(params)) == "Hello Ann"
    with pytest.raises(CorruptEntryError):
        window.check(params)

    async def show(request: Request) -> HTMLResponse:
        return HTMLResponse(await sync_site.render(environment, "page.html", name=request.headers["user"]))

    app = serving(sync_site.cache, cache_response(60, public=True)(show))
    assert (await ask(app, headers={"user": "Bob"})).text == "Bye Bob"
    assert (await ask(app, headers={"user": "Cid"})).text == "Bye Bob"
    templates["page.html"] = BODY
    assert (await ask(app, headers={"user": "Dan"})).text in ("Bye Bob", "Hello Dan")


def test_bodies_that_nobody_needs_are_let_go_of(sync_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_KEPT", 3)
    templates = {"page.html": ""}
    environment = sync_site.environment({}, loader=DictLoader(templates))
    window: BodyWindow = environment.asynctag.window
    for number in range(10):
        templates["page.html"] = f"{{% window with name %}}{number}{{% endwindow %}}"
        params = msgspec.msgpack.encode(placed(environment, name="Ann")._asdict())
        window.arguments(params)
        templates["page.html"] = ""
        window.arguments(params)
        assert len(window._kept) == min(number + 1, 3)


@pytest.mark.parametrize(
    "loader",
    [
        lambda templates: PrefixLoader({"shop": DictLoader(templates)}),
        lambda templates: PrefixLoader({"blog": DictLoader({}), "shop": DictLoader(templates)}, delimiter="::"),
        lambda templates: ChoiceLoader(
            [DictLoader({"page.html": "another"}), PrefixLoader({"shop": ChoiceLoader([DictLoader(templates)])})]
        ),
    ],
    ids=["prefix", "another delimiter", "within others"],
)
async def test_templates_below_a_prefix(site: Site, loader: Callable[[dict[str, str]], Any]) -> None:
    """They do not know the prefix that they are loaded by."""
    environment = site.environment({}, loader=loader({"page.html": BODY}))
    name = "shop::page.html" if getattr(environment.loader, "delimiter", "/") == "::" else "shop/page.html"
    for _ in range(2):
        assert await site.page(environment, name, name="Ann") == "Hello Ann"


async def test_a_template_that_is_not_found_by_its_name_is_an_error_where_it_is_placed(site: Site) -> None:
    """Not a page that is a miss each time."""
    environment = site.environment({}, loader=FunctionLoader({"page.html": BODY, "../page.html": BODY}.get))
    assert await site.page(environment, name="Ann") == "Hello Ann"
    with pytest.raises(WindowError, match="relative paths"):
        await site.page(environment, "../page.html", name="Ann")


# environments


@pytest.mark.parametrize("is_async", [False, True])
async def test_templates_that_were_compiled_before(cache: Cache, is_async: bool, tmp_path: Path) -> None:
    """By a bytecode cache or ahead of time: nothing in them belongs to the process that has compiled them."""
    sources = {"page.html": BODY + "{% window 'counter' %}{% cache 60, vary=[name] %}[{{ name }}]{% endcache %}"}
    for number in range(2):
        site = Site(Cache(default_ttl=60), is_async)
        site.counter()
        bytecode = FileSystemBytecodeCache(str(tmp_path))
        environment = site.environment(sources, bytecode_cache=bytecode)
        for _ in range(2):
            assert (await site.page(environment, name="Ann")).startswith("Hello Annn")
        assert len(os.listdir(tmp_path)) == 1, number
    environment.compile_templates(tmp_path / "compiled", zip=None, ignore_errors=False)
    site = Site(cache, is_async)
    site.counter()
    environment = site.environment({}, loader=ModuleLoader(tmp_path / "compiled"))
    assert await site.page(environment, name="Ann") == "Hello Annn1[Ann]"
    assert await site.page(environment, name="Bob") == "Hello Annn2[Ann]"


async def test_a_window_that_is_gone_since_the_template_was_compiled(site: Site, tmp_path: Path) -> None:
    """Is an error when it is placed."""
    site.counter()
    bytecode = FileSystemBytecodeCache(str(tmp_path))
    site.environment({"page.html": '{% window "counter" %}'}, bytecode_cache=bytecode).get_template("page.html")
    site = Site(Cache(default_ttl=60), site.is_async)
    site.counter("count")
    environment = site.environment({"page.html": '{% window "counter" %}'}, bytecode_cache=bytecode)
    with pytest.raises(WindowError, match="Did you mean 'count'"):
        await site.page(environment)


async def test_an_overlay_places_bodies_under_a_name_of_its_own(site: Site) -> None:
    """It may load other templates; registered windows and fragments it has as they are."""
    site.counter()
    source = "{% window 'counter' %}{% cache 60 %}!{% endcache %}"
    environment = site.environment({"page.html": BODY})
    overlay = environment.overlay(loader=DictLoader({"page.html": BODY.replace("Hello", "Bye"), "other.html": source}))
    for number in (1, 2):
        assert await site.page(overlay, "other.html") == f"n{number}!"
    with pytest.raises(WindowError, match=r"install\(overlay, cache, name=...\)"):
        await site.page(overlay, name="Ann")
    install(overlay, site.cache, name="overlay")
    for _ in range(2):
        assert await site.page(overlay, name="Ann") == "Bye Ann"
        assert await site.page(environment, name="Ann") == "Hello Ann"


async def test_of_two_environments_of_one_name_the_second_counts(site: Site) -> None:
    """As where an application is made anew by each test. The first says so, instead of filling another's windows."""
    first = site.environment({"page.html": BODY})
    second = site.environment({"page.html": BODY.replace("Hello", "Bye")})
    with pytest.raises(WindowError, match="another environment was installed under the name 'jinja2'"):
        await site.page(first, name="Ann")
    assert await site.page(second, name="Ann") == "Bye Ann"
    third = site.environment({"page.html": BODY}, name="mails")
    assert await site.page(third, name="Ann") == "Hello Ann"
    assert await site.page(second, name="Ann") == "Bye Ann"


def test_installing(cache: Cache) -> None:
    """Once more is no harm; another cache or name is."""
    environment = Environment()
    install(environment, cache, name="site")
    install(environment, cache, name="site")
    with pytest.raises(ConfigurationError, match="has one cache"):
        install(environment, Cache(), name="site")
    with pytest.raises(ConfigurationError, match="under the name 'site'"):
        install(environment, cache)
    with pytest.raises(ConfigurationError, match=r"templates\.env"):
        install(Jinja2Templates("templates"), cache)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"asynctag\.Cache"):
        install(Environment(), cache.sync)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot name a function"):
        install(Environment(), cache, name="a|b")

    @cache.window(name="mine")
    async def mine() -> str:
        return ""

    with pytest.raises(ConfigurationError, match="another name="):
        install(Environment(), cache, name="mine")


async def test_without_a_cache_templates_are_parsed_and_not_rendered() -> None:
    """Tools that read templates need the tags alone."""
    environment = Environment(extensions=["asynctag.integrations.jinja2.CacheExtension"])
    sources = ['{% window "x" %}', "{% window %}{{ _('y') }}{% endwindow %}", "{% cache 60 %}{% endcache %}"]
    for source in sources:
        environment.parse(source)
    for source in (sources[0], sources[2]):
        with pytest.raises(ConfigurationError, match=r"install\(environment, cache\)|from_string"):
            environment.from_string(source).render()
    environment.loader = DictLoader({"page.html": sources[2]})
    with pytest.raises(ConfigurationError, match=r"install\(environment, cache\)"):
        environment.get_template("page.html").render()


async def test_a_sandbox_and_strict_names(site: Site) -> None:
    """What is declared is given, what a body uses beyond is an error of the sandbox, and of strict names."""
    sources = {
        "page.html": BODY + '{% window "counter" %}{% cache 60 %}{{ name }}{% endcache %}',
        "bad.html": "{% window with name %}{{ name.__class__.__mro__ }}{% endwindow %}",
        "strict.html": "{% window %}{% include 'part.html' %}{% endwindow %}",
        "part.html": "{{ name }}",
    }
    site.counter()
    environment = SandboxedEnvironment(
        loader=DictLoader(sources), enable_async=site.is_async, undefined=StrictUndefined
    )
    install(environment, site.cache)
    assert await site.page(environment, name="Ann") == "Hello Annn1Ann"
    assert await site.page(environment, name="Bob") == "Hello Annn2Ann"
    with pytest.raises(Exception, match="access to attribute '__class__'"):
        await site.page(environment, "bad.html", name="Ann")
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        await site.page(environment, "strict.html", name="Ann")


async def test_what_an_environment_makes_of_values_goes_for_them_too(site: Site) -> None:
    """`finalize` is called in bodies and fragments, and leaves placeholders alone."""
    site.counter()
    source = "{% window with x %}{{ x }}{% endwindow %}{% window 'counter' %}{% cache 60 %}{{ x }}{% endcache %}"
    environment = site.environment({"page.html": source}, finalize=lambda value: "-" if value is None else value)
    for number in (1, 2):
        assert await site.page(environment, x=None) == f"-n{number}-"


# --- fragments -------------------------------------------------------------------------------------------


class Rows:
    """Data that templates show, and how often it was read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.rows = {"1": "one", "2": "two"}

    def __call__(self, key: str) -> str:
        self.read.append(key)
        add_tags(f"row:{key}")
        return self.rows[key]


FRAGMENT = "{% cache 60, tags=['list'], vary=[key] %}<i>{{ row(key) }}</i>{% endcache %}"


async def test_a_fragment_is_rendered_once(site: Site) -> None:
    """For each value that it varies by, until one of its tags is invalidated: declared, or gathered in it."""
    rows = Rows()
    environment = site.environment({"page.html": "{{ key }}" + FRAGMENT})
    for _ in range(2):
        assert await site.render(environment, "page.html", key="1", row=rows) == "1<i>one</i>"
        assert await site.render(environment, "page.html", key="2", row=rows) == "2<i>two</i>"
    assert rows.read == ["1", "2"]
    rows.rows |= {"1": "<new>", "2": "newer"}
    await site.cache.invalidate("row:1")
    assert await site.render(environment, "page.html", key="1", row=rows) == "1<i>&lt;new&gt;</i>"
    assert await site.render(environment, "page.html", key="2", row=rows) == "2<i>two</i>"
    await site.cache.invalidate("list")
    assert await site.render(environment, "page.html", key="2", row=rows) == "2<i>newer</i>"


async def test_the_tags_of_a_fragment_are_the_pages_too(site: Site) -> None:
    """On its miss and on its hit."""
    rows = Rows()
    environment = site.environment({"page.html": FRAGMENT, "other.html": FRAGMENT + FRAGMENT, "third.html": FRAGMENT})
    await site.page(environment, key="1", row=rows)
    await assert_tags(site.cache, "jinja2/page.html", tags={"list", "row:1"})
    await site.cache.delete("jinja2/page.html")
    await site.page(environment, key="1", row=rows)
    assert rows.read == ["1"]
    await assert_tags(site.cache, "jinja2/page.html", tags={"list", "row:1"})
    await site.cache.invalidate("row:1")
    await assert_miss(site.cache, "jinja2/page.html")


async def test_a_fragment_may_be_a_task_of_another(site: Site) -> None:
    """Fragments in fragments: the outer one has the tags of the inner one."""
    rows = Rows()
    source = "{% cache 60, vary=key %}[{% cache 60, tags='in', vary=key %}{{ row(key) }}{% endcache %}]{% endcache %}"
    environment = site.environment({"page.html": source})
    for _ in range(2):
        assert await site.render(environment, "page.html", key="1", row=rows) == "[one]"
    assert rows.read == ["1"]
    await site.cache.invalidate("in")
    assert await site.render(environment, "page.html", key="1", row=rows) == "[one]"
    assert rows.read == ["1", "1"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", 1),
        (True, 1),
        (["a", "b"], ["a,b"]),
        ({"a": 1}, {"a": "1"}),
        (None, "None"),
        ("x" * 300, "x" * 299 + "y"),
    ],
)
async def test_values_and_types_that_differ_are_fragments_that_differ(site: Site, first: Any, second: Any) -> None:
    environment = site.environment({"page.html": "{% cache 60, vary=key %}{{ shown }}{% endcache %}"})
    for _ in range(2):
        assert await site.render(environment, "page.html", key=first, shown=1) == "1"
        assert await site.render(environment, "page.html", key=second, shown=2) == "2"


async def test_an_edited_fragment_is_another(site: Site) -> None:
    """And one that has other tags, or stands in another template, or a second time in the same."""
    templates = {"page.html": "{% cache 60 %}{{ x }}{% endcache %}"}
    environment = site.environment({}, loader=DictLoader(templates))
    assert await site.render(environment, "page.html", x=1) == "1"
    templates["page.html"] = "{% cache 60 %}{{ x }}!{% endcache %}"
    assert await site.render(environment, "page.html", x=2) == "2!"
    templates["page.html"] = "{% cache 60, tags='a' %}{{ x }}{% endcache %}"
    assert await site.render(environment, "page.html", x=3) == "3"
    templates["other.html"] = "{% for x in [1, 2] %}{% cache 60, vary=x %}{{ x }}{% endcache %}{% endfor %}" + (
        "{% for x in 'ab' %}{% cache 60, vary=loop.index %}{{ x }}{% endcache %}{% endfor %}"
        "{% for x in 'AB' %}{% cache 60, vary=loop.index %}{{ x }}{% endcache %}{% endfor %}"
    )
    for _ in range(2):
        assert await site.render(environment, "other.html") == "12abAB"
    templates["page.html"] = "{% cache 60 %}{{ x }}{% endcache %}"
    assert await site.render(environment, "page.html", x=4) == "1"
    templates["third.html"] = templates["page.html"]
    assert await site.render(environment, "third.html", x=5) == "5"


async def test_a_fragment_is_text_as_its_template_is(site: Site) -> None:
    """Not escaped again where the template escapes; one of each kind."""
    inner = "{% cache 60 %}<b>{{ x }}</b>{% endcache %}"
    source = (
        f"{{% macro m(x) %}}{inner}{{% endmacro %}}{{{{ m(x) }}}}{{% set t %}}{inner}{{% endset %}}{{{{ t }}}}"
        f"{{% autoescape false %}}{inner}{{% endautoescape %}}{{% filter upper %}}{inner}{{% endfilter %}}"
    )
    environment = site.environment({"page.html": source})
    for _ in range(2):
        page = await site.render(environment, "page.html", x="<")
        assert page == "<b>&lt;</b><b>&lt;</b><b><</b><B>&LT;</B>"


async def test_a_fragment_where_a_variable_says_whether_it_escapes(site: Site) -> None:
    """Is another for each."""
    source = "{% autoescape on %}{% cache 60 %}{{ x }}{% endcache %}{% endautoescape %}"
    environment = site.environment({"page.html": source})
    for _ in range(2):
        assert await site.render(environment, "page.html", x="<", on=True) == "&lt;"
        assert await site.render(environment, "page.html", x="<", on=False) == "<"


async def test_a_stale_fragment_is_renewed_by_whoever_renders_it(is_async: bool) -> None:
    """Never later, by a template whose rendering is over."""
    clock = FakeClock()
    site = Site(Cache(MemoryBackend(clock=clock), stale_while_revalidate=60), is_async)
    environment = site.environment({"page.html": "{% cache 10 %}{{ x }}{% endcache %}"})
    async with site.cache:
        assert await site.render(environment, "page.html", x=1) == "1"
        clock.advance(11)
        assert await site.render(environment, "page.html", x=2) == "2"


async def test_the_time_of_a_fragment(is_async: bool) -> None:
    """By position, by name, or the cache's; a page is no fresher than its fragments."""
    clock = FakeClock()
    site = Site(Cache(MemoryBackend(clock=clock), default_ttl=1000), is_async)
    environment = site.environment(
        {
            "page.html": "{% cache 10 %}{{ x }}{% endcache %}{% cache ttl=20 %}{{ x }}{% endcache %}"
            "{% cache %}{{ x }}{% endcache %}{% cache inherit_ttl=false %}{{ x }}{% endcache %}"
        }
    )
    assert await site.page(environment, x=1) == "1111"
    clock.advance(9)
    assert await site.page(environment, x=2) == "1111"
    clock.advance(2)
    assert await site.page(environment, x=3) == "3111"
    clock.advance(10)
    assert await site.page(environment, x=4) == "4411"


async def test_a_fragment_whose_data_fails_is_what_it_was(is_async: bool) -> None:
    """With `stale_if_error`; else the error is raised as it was."""
    clock = FakeClock()
    site = Site(Cache(MemoryBackend(clock=clock)), is_async)
    sources = {
        "page.html": "{% cache 10, stale_if_error=60 %}{{ 1 // x }}{% endcache %}",
        "bad.html": "{% cache 10 %}{{ 1 // x }}{% endcache %}",
    }
    environment = site.environment(sources)
    assert await site.render(environment, "page.html", x=1) == "1"
    clock.advance(11)
    assert await site.render(environment, "page.html", x=0) == "1"
    with pytest.raises(ZeroDivisionError):
        await site.render(environment, "bad.html", x=0)
    assert await site.render(environment, "bad.html", x=1) == "1"


async def test_what_is_not_to_be_stored_is_not(site: Site) -> None:
    """Neither while the cache is disabled."""
    environment = site.environment(
        {
            "page.html": "{% cache 60 %}{{ x }}{{ keep_out() }}{% endcache %}",
            "b.html": "{% cache 60 %}{{ x }}{% endcache %}",
        }
    )
    environment.globals["keep_out"] = lambda: no_store() or ""
    for x in range(2):
        assert await site.render(environment, "page.html", x=x) == str(x)
        with site.cache.disabled():
            assert await site.render(environment, "b.html", x=x) == str(x)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% cache 60, 70 %}{% endcache %}", "one ttl"),
        ("{% cache 60, ttl=70 %}{% endcache %}", "one ttl"),
        ("{% cache 60, tag='a' %}{% endcache %}", "'tag' is no option .* Did you mean 'tags'"),
        ("{% cache 60 %}{% block b %}{% endblock %}{% endcache %}", "block b may be another"),
        ("{% block b %}{% endblock %}{% cache 60 %}{{ self.b() }}{% endcache %}", "blocks of self may be others"),
        ("{% macro m() %}{% cache 60 %}{{ caller() }}{% endcache %}{% endmacro %}", "set given = caller"),
        ("{% macro m() %}{% cache 60 %}{{ kwargs }}{% endcache %}{% endmacro %}", "set given = kwargs"),
        (
            "{% block b %}{% cache 60 %}{{ super() }}{% endcache %}{% endblock %}",
            "extends another template by a variable",
        ),
        ("{% cache 60 %}", "endcache"),
    ],
)
async def test_what_would_be_served_where_it_does_not_belong_is_an_error(site: Site, source: str, says: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=says) as caught:
        site.environment({"page.html": "\n" + source}).get_template("page.html")
    assert caught.value.lineno == 2


async def test_macros_within_a_fragment_have_callers(site: Site) -> None:
    source = (
        "{% cache 60 %}{% macro m(x) %}{{ x }}{{ caller() }}{{ kwargs }}{% endmacro %}"
        "{% call m(1, y=2) %}!{% endcall %}{% endcache %}"
    )
    environment = site.environment({"page.html": source})
    for _ in range(2):
        assert await site.render(environment, "page.html") == "1!{&#39;y&#39;: 2}"


@pytest.mark.parametrize(
    ("tag", "error", "says"),
    [
        ("{% cache tags='a' %}", ConfigurationError, "no ttl"),
        ("{% cache missing %}", WindowError, "ttl is undefined"),
        ("{% cache 60, tags=missing %}", WindowError, "tags is undefined"),
        ("{% cache 60, tags=[missing] %}", InvalidTagError, "Undefined"),
        ("{% cache 60, tags=[5] %}", InvalidTagError, "a tag is a str"),
        ("{% cache 60, vary=missing %}", WindowError, "vary is undefined"),
        ("{% cache 60, vary=[missing] %}", UnstableArgumentError, r"page\.html: .*Undefined"),
        ("{% cache 60, vary=thing %}", UnstableArgumentError, "Vary by text and numbers"),
        ("{% cache -1 %}", ConfigurationError, "ttl=-1"),
        ("{% cache 60, jitter=2 %}", ConfigurationError, "jitter=2"),
    ],
)
async def test_what_a_fragment_cannot_be_given(is_async: bool, tag: str, error: type[Exception], says: str) -> None:
    site = Site(Cache(), is_async)
    environment = site.environment({"page.html": tag + "{% endcache %}"})
    with pytest.raises(error, match=says):
        await site.render(environment, "page.html", thing=object())


# with windows


async def test_windows_in_a_fragment_of_a_page_are_filled_with_the_page(site: Site) -> None:
    """However often the fragment and the page are served."""
    site.counter()
    source = "{% cache 60 %}{{ x }}{% window 'counter' %}{% window with x %}[{{ x }}]{% endwindow %}{% endcache %}"
    environment = site.environment({"page.html": source})
    assert await site.page(environment, x="<") == "&lt;n1[&lt;]"
    assert await site.page(environment, x=2) == "&lt;n2[&lt;]"
    await site.cache.delete("jinja2/page.html")
    assert await site.page(environment, x=3) == "&lt;n3[&lt;]"


async def test_windows_in_a_fragment_of_its_own_are_filled_where_it_is_awaited(cache: Cache) -> None:
    """Where nothing waits for them, in the thread of an event loop, that is an error: on the miss and on the hit."""
    site = Site(cache, True)
    site.counter()
    source = {"page.html": "{% cache 60 %}{{ x }}{% window 'counter' %}{% endcache %}"}
    environment = site.environment(source)
    for number in (1, 2):
        assert await site.render(environment, "page.html", x=0) == f"0n{number}"
    plain = Environment(loader=DictLoader(source), autoescape=True)
    install(plain, cache, name="plain")
    template = plain.get_template("page.html")
    for _ in range(2):
        with pytest.raises(WindowError, match=r"shop\.counter cannot be waited for here"):
            template.render(x=1)
        assert await anyio.to_thread.run_sync(lambda: template.render(x=1)) == f"0n{site.served}"
    assert site.served == 4


async def test_a_fragment_in_a_window(site: Site) -> None:
    """What is cached of a window is not the page's."""
    rows = Rows()
    source = "{% window with key %}{% cache 60, tags='in', vary=key %}{{ row(key) }}{% endcache %}{% endwindow %}"
    environment = site.environment({"page.html": source})
    environment.globals["row"] = rows
    for _ in range(2):
        assert await site.page(environment, key="1") == "one"
    assert rows.read == ["1"]
    rows.rows["1"] = "<new>"
    await site.cache.invalidate("in")
    await assert_hit(site.cache, "jinja2/page.html")
    assert await site.page(environment, key="1") == "&lt;new&gt;"


# --- without `await` -------------------------------------------------------------------------------------


async def test_a_fragment_that_another_computes_is_rendered_without_waiting(cache: Cache) -> None:
    """In the thread of an event loop nothing can wait. It is stored."""
    site = Site(cache, True)
    sources = {"page.html": "{% cache 60 %}{{ x() }}{% endcache %}"}
    waiting, plain = site.environment(sources), Environment(loader=DictLoader(sources), autoescape=True)
    install(plain, cache, name="plain")
    begun, may_end = anyio.Event(), anyio.Event()

    async def slow() -> str:
        begun.set()
        await may_end.wait()
        return "slow"

    seen: list[str] = []

    async def first() -> None:
        seen.append(await site.render(waiting, "page.html", x=slow))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await begun.wait()
        assert len(cache._filling().flights._open) == 1
        for text in ("at once", "not computed again"):
            seen.append(plain.get_template("page.html").render(x=lambda text=text: text))
        may_end.set()
    assert seen == ["at once", "at once", "slow"]


async def test_worker_threads_wait_for_each_other(cache: Cache) -> None:
    """One of them renders the fragment, in its own thread, and the others get it."""
    environment = Environment(loader=DictLoader({"page.html": "{% cache 60 %}{{ x() }}{% endcache %}"}))
    install(environment, cache)
    begun, may_end = anyio.Event(), threading.Event()
    rendering: list[int] = []

    def slow() -> str:
        rendering.append(threading.get_ident())
        anyio.from_thread.run_sync(begun.set)
        assert may_end.wait(10)
        return "slow"

    seen: list[tuple[str, int]] = []

    def render() -> None:
        seen.append((environment.get_template("page.html").render(x=slow), threading.get_ident()))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, render)
        await begun.wait()
        for _ in range(3):
            group.start_soon(anyio.to_thread.run_sync, render)
        (flight,) = cache._filling().flights._open.values()
        while len(flight._waiting) < 3:
            await anyio.lowlevel.checkpoint()
        may_end.set()
    assert [text for text, _ in seen] == ["slow"] * 4
    assert rendering == [seen_by for _, seen_by in seen if seen_by in rendering]
    assert len(rendering) == 1


def test_a_thread_without_an_event_loop(cache: Cache) -> None:
    """Is served from memory, too."""
    environment = Environment(loader=DictLoader({"page.html": FRAGMENT}))
    install(environment, cache)
    rows = Rows()
    for _ in range(2):
        assert environment.get_template("page.html").render(key="1", row=rows) == "<i>one</i>"
    assert rows.read == ["1"]
    cache.sync.invalidate("row:1")
    assert environment.get_template("page.html").render(key="1", row=rows) == "<i>one</i>"
    assert rows.read == ["1", "1"]


class Hesitant(MemoryBackend):
    """A backend in this process that waits, at a moment that the test chooses."""

    waits_at = ""

    async def read(self, key: str) -> Any:
        if self.waits_at == "read":
            await anyio.lowlevel.checkpoint()
        return await super().read(key)

    async def write(self, entry: Entry) -> Written:
        if self.waits_at == "write":
            await anyio.lowlevel.checkpoint()
        return await super().write(entry)


@pytest.mark.parametrize("waits_at", ["read", "write"])
async def test_a_backend_that_waits_is_given_up(waits_at: str) -> None:
    """What was rendered by then is used, and nothing is rendered twice. Its tags are those of the page all the same."""
    backend = Hesitant()
    cache, rows = Cache(backend, default_ttl=60), Rows()
    environment = Environment(loader=DictLoader({"page.html": FRAGMENT}), autoescape=True)
    install(environment, cache)

    async def page() -> str:
        try:
            backend.waits_at = waits_at
            return environment.get_template("page.html").render(key="1", row=rows)
        finally:
            backend.waits_at = ""

    assert await page() == "<i>one</i>"
    assert rows.read == ["1"]
    assert await cache.get_or_set("page", page) == "<i>one</i>"
    assert rows.read == ["1", "1"]
    await assert_tags(cache, "page", tags={"list", "row:1"})
    assert not cache._filling().flights._open


async def test_windows_in_what_was_rendered_when_a_backend_waits() -> None:
    """Go to the page, and without a page it is an error: no placeholder gets out."""
    backend = Hesitant()
    cache = Cache(backend, default_ttl=60)
    site = Site(cache, False)
    site.counter()
    environment = site.environment({"page.html": "{% cache 60 %}{% window 'counter' %}{% endcache %}"})

    async def page() -> str:
        try:
            backend.waits_at = "write"
            return environment.get_template("page.html").render()
        finally:
            backend.waits_at = ""

    for number in (1, 2):
        assert await cache.get_or_set("page", page) == f"n{number}"
    with pytest.raises(WindowError, match="cannot be waited for"):
        await page()


async def test_in_a_transaction_a_fragment_is_held_back(site: Site) -> None:
    """Stored at its end, not at all where something was invalidated in it."""
    rows = Rows()
    environment = site.environment({"page.html": FRAGMENT})
    for invalidated in (True, False):
        async with site.cache.transaction():
            if invalidated:
                await site.cache.invalidate("row:1")
            assert await site.render(environment, "page.html", key="1", row=rows) == "<i>one</i>"
    assert rows.read == ["1", "1"]
    assert await site.render(environment, "page.html", key="1", row=rows) == "<i>one</i>"
    assert rows.read == ["1", "1"]


class Elsewhere:
    """Does things in a task that was begun before, so that it is not in a transaction that the caller is in."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[tuple[Callable[[], Any], anyio.Event]]()

    async def __aenter__(self) -> "Elsewhere":
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._run)
        return self

    async def __aexit__(self, *args: Any) -> None:
        self._send.close()
        await self._group.__aexit__(*args)

    async def _run(self) -> None:
        with self._receive:
            async for work, done in self._receive:
                await work()
                done.set()

    async def do(self, work: Callable[[], Any]) -> None:
        done = anyio.Event()
        await self._send.send((work, done))
        await done.wait()


async def test_a_window_that_is_filled_in_a_transaction_sees_what_that_sees(site: Site) -> None:
    """What others have stored since it began, from what has changed, is not for it."""
    rows = Rows()
    environment = site.environment({"page.html": "{% window with key %}" + FRAGMENT + "{% endwindow %}"})
    environment.globals["row"] = rows

    async def show() -> str:
        return await site.page(environment, key="1")

    async with Elsewhere() as elsewhere:
        await show()
        async with site.cache.transaction():
            rows.rows["1"] = "newer"
            await elsewhere.do(lambda: site.cache.invalidate("row:1"))
            await elsewhere.do(show)
            rows.rows["1"] = "as of the transaction"
            assert await show() == "<i>as of the transaction</i>"
        assert await show() == "<i>newer</i>"


async def test_while_a_transaction_holds_a_tag_of_it(is_async: bool) -> None:
    """A fragment that is awaited is what the cache says; one that is not is computed."""
    site, rows = Site(Cache(default_ttl=60, while_leased="serve_stale"), is_async), Rows()
    environment = site.environment({"page.html": FRAGMENT})
    shown: list[str] = []

    async def show() -> None:
        shown.append(await site.render(environment, "page.html", key="1", row=rows))

    async with Elsewhere() as elsewhere:
        await show()
        async with site.cache.transaction():
            await site.cache.invalidate("row:1")
            rows.rows["1"] = "new"
            await elsewhere.do(show)
    assert shown == ["<i>one</i>", "<i>one</i>" if is_async else "<i>new</i>"]


# --- responses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_template_response_has_the_tags_of_its_fragments(cache: Cache, kind: str) -> None:
    """Rendered by Starlette, in the event loop or in a worker thread, and dropped with what it shows."""
    rows = Rows()
    templates = Jinja2Templates(env=Environment(loader=DictLoader({"page.html": FRAGMENT}), autoescape=True))
    install(templates.env, cache)

    def show(request: Request) -> Response:
        return templates.TemplateResponse(request, "page.html", {"key": "1", "row": rows})

    async def show_async(request: Request) -> Response:
        return show(request)

    endpoint = cache_response(60, public=True)(show_async if kind == "async" else show)
    app = serving(cache, endpoint)
    await ask(app)
    assert (await ask(app)).hit
    rows.rows["1"] = "new"
    await cache.invalidate("row:1")
    call = await ask(app)
    assert (call.hit, call.text) == (False, "<i>new</i>")


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_template_response_has_its_windows_filled(cache: Cache, kind: str) -> None:
    """On the miss and on the hit, for the request that is served; those in fragments with the response."""

    @cache.window(name="badge")
    async def badge() -> str:
        return f"<{current_request().headers['user']}>"

    source = (
        "{% cache 60 %}<p>{% window 'badge' %}</p>{% endcache %}"
        "{% window with x %}{{ x }}{{ request.headers.user }}{% window 'badge' %}{% endwindow %}"
    )
    templates = Jinja2Templates(env=Environment(loader=DictLoader({"page.html": source}), autoescape=True))
    install(templates.env, cache)

    def show(request: Request) -> Response:
        return templates.TemplateResponse(request, "page.html", {"x": 1})

    async def show_async(request: Request) -> Response:
        return show(request)

    app = serving(cache, cache_response(60, public=True)(show_async if kind == "async" else show))
    for number, user in enumerate(("Ann", "Bob")):
        call = await ask(app, headers={"user": user})
        assert call.text == f"<p>&lt;{user}&gt;</p>1{user}&lt;{user}&gt;"
        assert call.hit == bool(number)


async def test_of_a_body_that_fails_the_response_has_the_fallback(site: Site) -> None:
    """Late ones, too, in a response that streams around them; without one it fails."""
    sources = {
        "page.html": "a{% window fallback='<late>', timeout=0.001 %}{{ slow() }}{% endwindow %}b",
        "bad.html": "a{% window %}{{ 1 // 0 }}{% endwindow %}b",
    }
    environment = site.environment(sources)
    environment.globals["slow"] = anyio.sleep_forever if site.is_async else lambda: 1 // 0

    async def show(request: Request) -> HTMLResponse:
        return HTMLResponse(await site.render(environment, request.query_params["page"]))

    app = serving(site.cache, cache_response(60, public=True)(show))
    for _ in range(2):
        assert (await ask(app, "/?page=page.html")).text == "a&lt;late&gt;b"
        error = (await ask(app, "/?page=bad.html")).error
        assert isinstance(error, WindowError)
        assert isinstance(error.__cause__, ZeroDivisionError)
