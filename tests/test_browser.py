"""The atlas in a browser, as two people see it: one page in the cache, and each one's own on it.

It needs a Chromium on the PATH, and drives it with Playwright's Python package, which brings no browser.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from asynctag.backends.memory import MemoryBackend
from examples.atlas import pages
from examples.atlas.app import create_app
from examples.atlas.catalogue import cache
from examples.atlas.demo import running

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
expect = playwright.expect

#: How long a step may take before its test fails, in milliseconds.
PATIENCE = 30_000

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: No sandbox, for tests that run as root; and nothing that asks the network for anything but the pages.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

#: A name that runs a script where it is taken for markup.
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium with an empty profile of its own, which goes when it is closed."""
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"there is no browser on the PATH: {', '.join(CHROMIUMS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, headless=True, args=list(OPTIONS), timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


class Site(NamedTuple):
    address: str
    #: The airports whose pages were computed, in order.
    computed: list[str]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The atlas on a port of its own, with data of its own and an empty cache."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("ATLAS_DATABASE", str(tmp_path / "airports.sqlite3"))
    computed: list[str] = []
    render = pages.airport

    def counted(shown: Any, nearby: Any) -> Any:
        computed.append(shown.icao)
        return render(shown, nearby)

    monkeypatch.setattr(pages, "airport", counted)
    with cache.override(MemoryBackend()), running(create_app()) as address:
        yield Site(address, computed)


class Visitor:
    """Somebody with a browser that shares nothing with another's."""

    def __init__(self, context: Any) -> None:
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        #: What scripts have said.
        self.alerts: list[str] = []
        #: The paths that were asked for.
        self.paths: list[str] = []
        self.page.on("dialog", self._hear)
        self.page.on("request", lambda request: self.paths.append(httpx.URL(request.url).path))

    def _hear(self, dialog: Any) -> None:
        self.alerts.append(dialog.message)
        dialog.dismiss()

    def introduce(self, name: str) -> None:
        """Type a name into the form, and send it."""
        self.page.goto("/")
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="That is me").click()
        self.is_greeted_as(name)

    def is_greeted_as(self, name: str) -> None:
        expect(self.page.locator("#hello")).to_have_text(f"Hello, {name}!", timeout=PATIENCE)

    def status_of(self, path: str) -> str:
        """Go there, and give what the cache says of it."""
        return str(self.page.goto(path).header_value("cache-status"))


@pytest.fixture
def visit(browser: Any, site: Site) -> Iterator[Callable[[], Visitor]]:
    """Brings another visitor of the site."""
    contexts: list[Any] = []

    def visitor() -> Visitor:
        contexts.append(browser.new_context(base_url=site.address))
        return Visitor(contexts[-1])

    yield visitor
    for context in contexts:
        context.close()


def test_two_visitors_one_page_two_greetings(site: Site, visit: Callable[[], Visitor]) -> None:
    """The page is computed once, by a third one's request. Both get it from the cache, each with their own greeting."""
    with httpx.Client(base_url=site.address, timeout=PATIENCE / 1000, trust_env=False) as third:
        assert "stored" in third.get("/airports/LSZS").headers["cache-status"]
    ann, bob = visit(), visit()
    ann.introduce("Ann")
    bob.introduce("Bob")
    for visitor, name in ((ann, "Ann"), (bob, "Bob"), (ann, "Ann")):
        assert "; hit" in visitor.status_of("/airports/LSZS")
        visitor.is_greeted_as(name)
        expect(visitor.page.locator("h1")).to_have_text("Samedan Airport", timeout=PATIENCE)
    assert site.computed == ["LSZS"]


def test_an_edit_drops_the_page_for_both(site: Site, visit: Callable[[], Visitor]) -> None:
    """Made in one browser, by the form: it shows in the other at once, and in windows on pages that stay."""
    ann, bob = visit(), visit()
    ann.introduce("Ann")
    ann.status_of("/airports/LSZS")
    ann.page.get_by_role("link", name="My favourite").click()
    expect(ann.page.locator("#favourite")).to_have_text("★ Samedan Airport", timeout=PATIENCE)
    assert "; hit" in bob.status_of("/airports/LSZS")
    ann.status_of("/airports/LIRF")

    bob.page.goto("/airports/LSZS/edit")
    bob.page.get_by_label("Name", exact=True).fill("Engadin")
    bob.page.get_by_role("button", name="Save").click()
    expect(bob.page.locator("h1")).to_have_text("Engadin", timeout=PATIENCE)
    assert site.computed == ["LSZS", "LIRF", "LSZS"]

    assert "; hit" in ann.status_of("/airports/LSZS")
    expect(ann.page.locator("h1")).to_have_text("Engadin", timeout=PATIENCE)
    assert "; hit" in ann.status_of("/airports/LIRF")
    expect(ann.page.locator("#favourite")).to_have_text("★ Engadin", timeout=PATIENCE)
    ann.is_greeted_as("Ann")
    expect(bob.page.locator("#favourite")).to_have_count(0, timeout=PATIENCE)
    assert len(site.computed) == 3


def test_a_name_is_never_markup(site: Site, visit: Callable[[], Visitor]) -> None:
    """It is shown as it was typed, on a miss and on a hit: there is no element, and no script has run."""
    visitor = visit()
    visitor.introduce(HOSTILE)
    for expected in ("stored", "; hit"):
        assert expected in visitor.status_of("/airports/LSZS")  # once it is loaded, with all that it asks for
        visitor.is_greeted_as(HOSTILE)
        expect(visitor.page.locator("img")).to_have_count(0, timeout=PATIENCE)
    assert visitor.alerts == []
    assert "/airports/x" not in visitor.paths

    # As markup, it would have been seen here.
    visitor.page.set_content(f"<p>{HOSTILE}</p>")
    expect(visitor.page.locator("img")).to_have_count(1, timeout=PATIENCE)
    assert visitor.alerts == ["1"]
