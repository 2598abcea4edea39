"""The pages run, agree with the examples, name every public name, and link to what exists."""

import ast
import asyncio
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import asynctag
import asynctag.backends.memory
import asynctag.http
import asynctag.integrations.fastapi
import asynctag.integrations.jinja2
import asynctag.integrations.outbox
import asynctag.integrations.sqlalchemy
import asynctag.testing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = {DOCS / "benchmarks.md"}
TUTORIAL = DOCS / "tutorial.md"
HOW_TO = DOCS / "how-to.md"
PAGES = sorted({ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")} - GENERATED)
DRAWINGS = sorted(DOCS.glob("*.svg"))

#: Hosts that a page may name. Everything else is `pip install` and links within the project.
HOSTS = {
    "127.0.0.1",
    "docs.pytest.org",
    "doi.org",
    "keepachangelog.com",
    "semver.org",
    "www.rfc-editor.org",
    "www.usenix.org",
    "www.w3.org",
}


class Block(NamedTuple):
    """A fenced block of a page: what is said of it, its text, and the line on which it starts."""

    info: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    info, start, lines = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if info is None:
                info, start, lines = line.removeprefix("```").strip(), number + 1, []
            else:
                yield Block(info, "\n".join(lines) + "\n", start)
                info = None
        elif info is not None:
            lines.append(line)
    assert info is None, f"{page.name}:{start}: a block that is not closed"


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.info == "python"]


def prose(page: Path) -> str:
    """What is outside of blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


every_page = pytest.mark.parametrize("page", named(PAGES))


# --- the code ------------------------------------------------------------------------------------------


def compiled(block: Block, page: Path) -> types.CodeType:
    """The block as a module whose top level may await; a traceback names the line of the page."""
    source = "\n" * (block.line - 1) + block.text
    return compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def awaits(code: types.CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)


async def run(blocks: list[Block], page: Path, module: types.ModuleType) -> None:
    """Blocks of a page, one after the other, as one module."""
    for block in blocks:
        code = compiled(block, page)
        result = eval(code, vars(module))
        if awaits(code):
            await result


def run_afresh(blocks: list[Block], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page, in a fresh namespace, with the assertions that they make."""
    module = types.ModuleType(f"page_{re.sub(r'[^a-z]', '_', page.stem.lower())}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look up their annotations
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    asyncio.run(run(blocks, page, module))


IN_SEQUENCE = [page for page in PAGES if python_blocks(page) and page not in (TUTORIAL, HOW_TO)]


@pytest.mark.parametrize("page", named(IN_SEQUENCE))
def test_the_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sequence: the blocks of these pages go on from each other."""
    run_afresh(python_blocks(page), page, monkeypatch)


def recipes() -> dict[str, list[Block]]:
    """The blocks of the how-to by the heading under which they stand; those before the first heading under ""."""
    headings = {n: line for n, line in enumerate(HOW_TO.read_text().splitlines(), 1) if line.startswith("## ")}
    found: dict[str, list[Block]] = {}
    for block in python_blocks(HOW_TO):
        before = [line for number, line in headings.items() if number < block.line]
        found.setdefault(before[-1].removeprefix("## ") if before else "", []).append(block)
    return found


@pytest.mark.parametrize("title", [title for title in recipes() if title])
def test_each_recipe_stands_by_itself(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the lines with which the page begins, and on no other recipe."""
    run_afresh(recipes()[""] + recipes()[title], HOW_TO, monkeypatch)


def pieces(source: str) -> Iterator[tuple[str, str]]:
    """The statements of a file, each with the name that it defines, or "", and with the lines before it."""
    lines, start = source.splitlines(keepends=True), 0
    for node in ast.parse(source).body:
        assert node.end_lineno is not None
        end = node.end_lineno
        yield getattr(node, "name", ""), "".join(lines[start:end])
        start = end


def edited(file: str, block: str) -> str:
    """The file, with what a block gives: what has a name that is there takes its place, all else is added."""
    kept = list(pieces(file))
    for name, text in pieces(block):
        place = next((place for place, (there, _) in enumerate(kept) if name and there == name), len(kept))
        kept[place : place + 1] = [(name, f"\n\n{text}")]
    return "".join(text for _, text in kept)


def test_the_tutorial_is_followed_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader does: the file grows, and after each change the interactive mode starts anew with what is in it."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the file changes faster than its time tells
    shop, tests = tmp_path / "shop.py", tmp_path / "test_shop.py"
    shop.write_text("")
    session: types.ModuleType | None = None
    sessions = 0
    for block in python_blocks(TUTORIAL):
        if "def test_" in block.text:
            tests.write_text(block.text)
        elif not awaits(compiled(block, TUTORIAL)):
            shop.write_text(edited(shop.read_text(), block.text))
            session = None
        else:  # what awaits outside of functions is for the interactive mode
            if session is None:
                monkeypatch.delitem(sys.modules, "shop", raising=False)
                session = importlib.import_module("shop")
                monkeypatch.setitem(sys.modules, "shop", session)
                sessions += 1
            asyncio.run(run([block], TUTORIAL, session))
    assert sessions == 5

    command = [sys.executable, "-m", "pytest", "-W", "error", "--rootdir", str(tmp_path), str(tests)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@every_page
def test_the_kinds_of_blocks(page: Path) -> None:
    """A misspelt kind would be a block that never runs."""
    known = {"python", "python no-run", "console", "text", "http", "toml", "html"}
    for block in blocks(page):
        assert block.info in known, f"{page.name}:{block.line}: a block of {block.info!r}"
        if block.info == "python no-run":
            ast.parse(block.text)


def test_most_code_runs() -> None:
    """What does not run is an exception, and says so."""
    for page in PAGES:
        kinds = [block.info for block in blocks(page)]
        assert kinds.count("python no-run") <= 2, page.name


# --- agreement -------------------------------------------------------------------------------------------


def without_docstring(source: str) -> str:
    first = ast.parse(source).body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    kept = source.splitlines()[first.end_lineno :] if is_docstring else source.splitlines()
    return "\n".join(kept).strip("\n") + "\n"


def test_the_readme_shows_the_quickstart() -> None:
    """What is read is what runs: the example of the README is the file, but for its docstring."""
    example = without_docstring((ROOT / "examples" / "quickstart.py").read_text())
    assert [block.text for block in python_blocks(ROOT / "README.md")][:1] == [example]


def test_the_recipe_for_executors_is_the_examples() -> None:
    """The lines of the how-to stand in the example that shows what they do."""
    example = (ROOT / "examples" / "worker_threads.py").read_text()
    page = HOW_TO.read_text()
    for line in ("context = contextvars.copy_context()", "run_in_executor(None, partial(context.run, read_row, row))"):
        assert line in example
        assert line in page


PUBLIC = [
    *asynctag.__all__,
    *asynctag.http.__all__,
    *asynctag.integrations.fastapi.__all__,
    *asynctag.integrations.jinja2.__all__,
    *asynctag.integrations.outbox.__all__,
    *asynctag.integrations.sqlalchemy.__all__,
    *asynctag.testing.__all__,
]


@pytest.mark.parametrize("name", sorted(set(PUBLIC)))
def test_the_reference_has_every_public_name(name: str) -> None:
    """In a heading, in a table's first column, or in the tree of errors."""
    page = (DOCS / "reference.md").read_text()
    as_heading = re.search(rf"(?m)^#+ .*`[^`]*\b{name}\b", page)
    in_table = re.search(rf"(?m)^\| `{name}\b[^|]*\|", page)
    in_tree = name.endswith("Error") and re.search(rf"(?m)^[│├└─ ]*{name}\b", page)
    assert as_heading or in_table or in_tree


def methods(owner: type) -> list[Any]:
    return [member for name, member in inspect.getmembers(owner, callable) if not name.startswith("_")]


def parameters() -> Iterator[object]:
    """The parameters of what users call, each with its owner."""
    owners = [
        asynctag.Cache,
        asynctag.backends.memory.MemoryBackend,
        asynctag.http.CacheMiddleware,
        asynctag.http.cache_response,
        asynctag.integrations.fastapi.cache_policy,
        asynctag.integrations.jinja2.install,
        *(asynctag.integrations.outbox.Outbox, *methods(asynctag.integrations.outbox.Outbox)),
        *methods(asynctag.Cache),
    ]
    for owner in owners:
        for name, parameter in inspect.signature(owner).parameters.items():
            if name not in ("self", "app", "function") and parameter.kind is not parameter.VAR_KEYWORD:
                yield pytest.param(name, id=f"{owner.__qualname__}-{name}")


@pytest.mark.parametrize("name", list(parameters()))
def test_the_reference_has_every_parameter(name: str) -> None:
    """Spelt as the code spells it."""
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`|(?m:^.*\b{name}\b.*[:=])", (DOCS / "reference.md").read_text())


@pytest.mark.parametrize("member", [*vars(asynctag.Cache), *vars(asynctag.Cached), *vars(asynctag.http.RequestCache)])
def test_the_reference_has_every_method(member: str) -> None:
    """Of the cache, of cached functions and of the cache in a request."""
    if not member.startswith("_"):
        assert re.search(rf"`(?:await )?(?:\w+\.)?{member}\b", (DOCS / "reference.md").read_text())


def test_the_reference_has_every_reason() -> None:
    """Why a response is not stored, or a request goes past the cache, as `Cache-Status` says it."""
    http, page = ROOT / "asynctag" / "http", (DOCS / "reference.md").read_text()
    said = re.findall(r'return "([a-z*-]+)"', (http / "rules.py").read_text())
    said += re.findall(r'_stop_recording\("([a-z-]+)"\)', (http / "outgoing.py").read_text())
    assert len(said) > 20
    for reason in said:
        assert f"`{reason}`" in page, reason


def test_the_changelog_has_the_version() -> None:
    """The one that the package says it is."""
    assert f"## [{asynctag.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# --- links, and what does not belong here --------------------------------------------------------------


def anchors(page: Path, level: str = "#+") -> set[str]:
    """The anchors of a page's headings, as renderers of Markdown make them."""
    headings = re.findall(rf"(?m)^{level} (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Files exist, anchors too, and pictures have a text for those who don't see them."""
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert found.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"
    assert "![](" not in text


@pytest.mark.parametrize("page", named([HOW_TO, DOCS / "reference.md"]))
def test_the_head_of_a_long_page_links_to_every_section(page: Path) -> None:
    """What is not in the list there is found by nobody who does not search."""
    head = prose(page).partition("\n## ")[0]
    assert set(re.findall(r"\(#([\w-]+)\)", head)) >= anchors(page, "##")


@every_page
def test_every_page_is_found(page: Path) -> None:
    """The index links to all pages, the README to the index."""
    if page.parent == DOCS and page.name != "index.md":
        assert f"({page.name})" in (DOCS / "index.md").read_text()
    assert "(docs/index.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", named([*PAGES, *DRAWINGS]))
def test_pages_speak_of_the_project_alone(page: Path) -> None:
    """No paths of one machine, no hosts of somebody's network, no numbers of tickets."""
    text = page.read_text()
    assert not re.search(r"(?<![\w.:/}*-])/(?:home|root|tmp|work|mnt|opt|usr|var|Users)/", text)
    assert not re.search(r"(?<![\w&])#\d+\b(?! |;|\")", text)
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= HOSTS, hosts - HOSTS


@pytest.mark.parametrize("drawing", named(DRAWINGS))
def test_drawings_are_for_light_and_dark(drawing: Path) -> None:
    """Well-formed, with a title for screen readers, colours for both schemes, and nothing fetched from elsewhere."""
    root = ElementTree.parse(drawing).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    text = drawing.read_text()
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"\b(?:href|src)=", text)
    assert any(drawing.name in page.read_text() for page in PAGES)
