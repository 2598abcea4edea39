"""Templates over a real server: what is stored of windows in them, and fragments where nothing can be awaited."""

import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from jinja2 import DictLoader, Environment

from asynctag import Cache, WindowError, add_tags
from asynctag.backends.redis import RedisBackend
from asynctag.integrations.jinja2 import install
from asynctag.testing import assert_hit, assert_tags
from tests.redis.servers import Server
from tests.redis.test_transactions import outside
from tests.redis.watching import watching

pytestmark = pytest.mark.anyio

BODY = "{% window with name %}Hello {{ name }}{% endwindow %}"
FRAGMENT = "{% cache 60, tags=['list'], vary=[key] %}<i>{{ row(key) }}</i>{% endcache %}"


@pytest.fixture
async def new_cache(redis_server: Server) -> AsyncIterator[Callable[[], Cache]]:
    """Makes caches of one journal, each as another process has it."""
    caches: list[Cache] = []

    def make() -> Cache:
        caches.append(Cache(RedisBackend.from_url(redis_server.url), default_ttl=60))
        return caches[-1]

    yield make
    for cache in caches:
        await cache.aclose()


@pytest.fixture
def cache(new_cache: Callable[[], Cache]) -> Cache:
    return new_cache()


def environment(cache: Cache, *, enable_async: bool = False, **templates: str) -> Environment:
    sources = {f"{name}.html": source for name, source in templates.items()}
    made = Environment(loader=DictLoader(sources), autoescape=True, enable_async=enable_async)
    install(made, cache)
    return made


async def page(cache: Cache, templates: Environment, **values: Any) -> str:
    async def render() -> str:
        template = templates.get_template("page.html")
        return await template.render_async(values) if templates.is_async else template.render(values)

    return await cache.get_or_set("page", render, returns=str)


# --- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enable_async", [False, True])
async def test_a_body_is_rendered_by_any_process_that_has_the_template(
    new_cache: Callable[[], Cache], enable_async: bool
) -> None:
    """With its own globals, and what was declared where the page was computed."""
    shown = BODY.replace("{{ name }}", "{{ name }} from {{ host }}")
    for host in ("one", "two"):
        cache = new_cache()
        templates = environment(cache, page=shown, enable_async=enable_async)
        templates.globals["host"] = host
        for name in ("<Ann>", "Bob"):
            assert await page(cache, templates, name=name) == f"Hello &lt;Ann&gt; from {host}"


async def test_after_a_deploy_the_page_is_computed_anew(new_cache: Callable[[], Cache]) -> None:
    """By whoever has another body there; it never gets the values that were meant for the one before."""
    before, after = new_cache(), new_cache()
    assert await page(before, environment(before, page=BODY), name="Ann") == "Hello Ann"
    templates = environment(after, page=BODY.replace("Hello", "Bye"))
    assert await page(after, templates, name="Bob") == "Bye Bob"
    assert await page(after, templates, name="Cid") == "Bye Bob"


async def test_an_edit_in_a_running_process_counts_at_once(cache: Cache) -> None:
    """What is read from a server is held against the template as it is."""
    sources = {"page.html": BODY}
    templates = Environment(loader=DictLoader(sources), autoescape=True)
    install(templates, cache)
    for name in ("Ann", "Bob"):
        assert await page(cache, templates, name=name) == "Hello Ann"
    sources["page.html"] = BODY.replace("Hello", "Bye")
    assert await page(cache, templates, name="Bob") == "Bye Bob"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"page.html", b"evil.html"),
        (b"page.html", b"./../page"),
        (b"page.html", b"none.html"),
        (b"\xa4name\xa3Ann", b"\xa4nome\xa3Ann"),
        (b"|jinja2", b"|jinja3"),
        (b"digest", b"digext"),
        (b"escapes\xc3", b"escapes\xc0"),
    ],
)
async def test_a_page_that_was_tampered_with_is_a_miss(
    new_cache: Callable[[], Cache], redis_server: Server, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes
) -> None:
    """Before anything of it is served: the page is computed, and nothing else is run."""
    writer, reader = new_cache(), new_cache()
    evil = "{% window with name %}{{ run(name) }}{% endwindow %}{% block content %}{% endblock %}"
    run: list[str] = []

    def templates(cache: Cache) -> Environment:
        made = environment(cache, page=BODY, evil=evil)
        made.globals["run"] = run.append
        return made

    assert await page(writer, templates(writer), name="Ann") == "Hello Ann"
    (key,) = (one for one in redis_server.run("KEYS", "*") if one.endswith(b"|k|page"))
    stored = redis_server.run("GET", key)
    assert old in stored
    redis_server.run("SET", key, stored.replace(old, new), "KEEPTTL")
    assert await page(reader, templates(reader), name="Bob") == "Hello Bob"
    assert not run
    assert "is taken for a miss" in caplog.text


# --- fragments -------------------------------------------------------------------------------------------


class Rows:
    """Data that templates show, and in which threads it was read."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self, key: str) -> str:
        self.threads.append(threading.get_ident())
        add_tags(f"row:{key}")
        return f"row {key}"


async def test_a_fragment_that_is_awaited_is_shared_by_processes(new_cache: Callable[[], Cache]) -> None:
    rows = Rows()
    for _ in range(2):
        cache = new_cache()
        template = environment(cache, page=FRAGMENT, enable_async=True).get_template("page.html")
        for _ in range(2):
            assert await template.render_async(key="1", row=rows) == "<i>row 1</i>"
    assert len(rows.threads) == 1
    await cache.invalidate("row:1")
    await template.render_async(key="1", row=rows)
    assert len(rows.threads) == 2


async def test_in_the_thread_of_an_event_loop_it_is_rendered_without_the_cache(
    cache: Cache, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent, it is said once, and the page around has its tags all the same."""
    rows = Rows()
    template = environment(cache, page=FRAGMENT).get_template("page.html")
    with watching(redis_server) as seen:
        for _ in range(2):
            assert template.render(key="1", row=rows) == "<i>row 1</i>"
    assert seen.commands == []
    assert len(rows.threads) == 2
    assert caplog.text.count("its fragments are rendered each time") == 1

    async def render() -> str:
        return template.render(key="1", row=rows)

    for _ in range(2):
        assert await cache.get_or_set("page", render) == "<i>row 1</i>"
    assert len(rows.threads) == 3
    await assert_tags(cache, "page", tags={"list", "row:1"})


async def test_a_thread_that_anyio_does_not_know_renders_without_the_cache(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows()
    template = environment(cache, page=FRAGMENT).get_template("page.html")
    for _ in range(2):
        thread = threading.Thread(target=lambda: template.render(key="1", row=rows))
        thread.start()
        thread.join()
    assert len(rows.threads) == 2
    assert caplog.text.count("AnyIO does not know") == 1


async def test_a_worker_thread_asks_the_event_loop(cache: Cache, redis_server: Server) -> None:
    """Two round trips for a miss, one for a hit; what it shows is read in the thread that renders it."""
    rows = Rows()
    template = environment(cache, page=FRAGMENT).get_template("page.html")

    def render() -> int:
        assert template.render(key="1", row=rows) == "<i>row 1</i>"
        return threading.get_ident()

    await cache.lookup("connected")
    first = await anyio.to_thread.run_sync(render)
    assert rows.threads == [first]
    assert first != threading.get_ident()
    await anyio.to_thread.run_sync(render)
    with watching(redis_server) as seen:
        await anyio.to_thread.run_sync(render)
    assert seen.reads == 1
    assert len(rows.threads) == 1
    await cache.invalidate("row:1")
    await anyio.to_thread.run_sync(render)
    assert len(rows.threads) == 2


async def test_in_a_worker_thread_a_page_has_the_tags_of_its_fragments(cache: Cache) -> None:
    """A cached function that renders in a thread; and in a transaction it is stored at the end."""
    rows = Rows()
    template = environment(cache, page=FRAGMENT).get_template("page.html")

    async def render() -> str:
        return await anyio.to_thread.run_sync(lambda: template.render(key="1", row=rows))

    await cache.lookup("page")  # without a stamp of the journal a block stores nothing
    async with cache.transaction():
        for _ in range(2):
            await cache.get_or_set("page", render)
    assert len(rows.threads) == 2
    await assert_hit(cache, "page")
    await assert_tags(cache, "page", tags={"list", "row:1"})
    await render()
    assert len(rows.threads) == 2


async def test_in_a_transaction_a_worker_thread_is_served_what_agrees_with_it(
    cache: Cache, new_cache: Callable[[], Cache]
) -> None:
    """What another process has stored since it began, if nothing of it has changed: the journal is asked."""
    rows, other = Rows(), new_cache()

    async def render(cache: Cache) -> str:
        template = environment(cache, page=FRAGMENT).get_template("page.html")
        return await anyio.to_thread.run_sync(lambda: template.render(key="1", row=rows))

    await cache.lookup("connected")
    async with cache.transaction():
        await outside(other.invalidate, "something else")
        await outside(render, other)
        assert await render(cache) == "<i>row 1</i>"
        assert len(rows.threads) == 1
        await outside(other.invalidate, "row:1")
        await outside(render, other)
        await render(cache)
        assert len(rows.threads) == 3


async def test_worker_threads_wait_for_each_other(cache: Cache) -> None:
    """One of them renders, and the others get it."""
    template = environment(cache, page="{% cache 60 %}{{ slow() }}{% endcache %}").get_template("page.html")
    begun, may_end, rendered = anyio.Event(), threading.Event(), []

    def slow() -> str:
        anyio.from_thread.run_sync(begun.set)
        assert may_end.wait(10)
        rendered.append(threading.get_ident())
        return "slow"

    seen: list[str] = []

    def render() -> None:
        seen.append(template.render(slow=slow))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, render)
        await begun.wait()
        for _ in range(3):
            group.start_soon(anyio.to_thread.run_sync, render)
        (flight,) = cache._filling().flights._open.values()
        while len(flight._waiting) < 3:
            await anyio.lowlevel.checkpoint()
        may_end.set()
    assert seen == ["slow"] * 4
    assert len(rendered) == 1


async def test_windows_in_a_fragment_are_filled_by_the_event_loop(new_cache: Callable[[], Cache]) -> None:
    """In a worker thread, on the miss and on the hit of another process; not in the event loop's own."""
    source = "{% cache 60 %}{{ x }}{% window 'counter' %}{% endcache %}"
    calls = 0

    async def counter() -> str:
        nonlocal calls
        calls += 1
        return f"<{calls}>"

    def render() -> str:
        return template.render(x=calls)

    for _ in range(2):
        cache = new_cache()
        cache.window(name="counter")(counter)
        template = environment(cache, page=source).get_template("page.html")
        for _ in range(2):
            assert await anyio.to_thread.run_sync(render) == f"0&lt;{calls}&gt;"
    assert calls == 4
    with pytest.raises(WindowError, match="counter"):
        render()
