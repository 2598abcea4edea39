"""Imports point one way, and the core imports no framework and no server's client."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "asynctag"

#: From the ground up. A module imports from its own layer and from those below it, never from one above.
LAYERS = [
    {"errors"},
    {"names", "signatures", "functions", "stable", "tags", "keys", "thaw", "expiry", "backends.base", "scope"},
    {"placeholders", "same", "skeleton", "codec"},
    {"failures", "running", "windows", "explain"},
    {"background", "flight", "lag", "leased", "outage", "pending", "fill"},
    {"transaction"},
    {"sync", "inline"},
    {"cached"},
    {"cache"},
    {"backends", "http"},
    {"testing"},
    {"integrations"},
]
#: What the core may not even know by name.
FOREIGN = {"fastapi", "starlette", "redis", "sqlalchemy", "pydantic", "jinja2", "pytest", "opentelemetry"}
#: Where each of those is at home. Pydantic's types are looked at where values are encoded, if it is there.
AT_HOME = {
    "pydantic": {"codec", "thaw"},
    "pytest": {"testing"},
    "starlette": {"http", "integrations"},
    "redis": {"backends"},
    "fastapi": {"integrations"},
    "sqlalchemy": {"integrations"},
    "jinja2": {"integrations"},
    "opentelemetry": {"integrations"},
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """What is imported as the module is; with `lazy`, inside of functions too. Types alone do not count."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names)
            case ast.ImportFrom(module=module, level=0, names=names) if module:
                yield from (f"{module}.{one.name}" for one in names)
            case ast.ImportFrom():
                raise AssertionError("a relative import")
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not lazy:
                continue
            case _:
                yield from imports(node, lazy=lazy)


def layer(name: str) -> int:
    """The layer of a module of the package, or of something in it."""
    inner = name
    while inner:
        for number, names in enumerate(LAYERS):
            if inner in names:
                return number
        inner = inner.rpartition(".")[0]
    raise LookupError(f"asynctag.{name} has no place in LAYERS: give it one")


MODULES = modules()
INNER = sorted(name for name in MODULES if name != "__init__")


def test_every_module_has_a_layer() -> None:
    """A new file is given its place in `LAYERS`."""
    for name in INNER:
        layer(name)


@pytest.mark.parametrize("name", INNER)
def test_imports_point_one_way(name: str) -> None:
    """Nothing imports from a layer above its own."""
    for imported in imports(MODULES[name], lazy=False):
        top, _, inner = imported.partition(".")
        if top == "asynctag":
            assert layer(inner) <= layer(name), f"{name} imports {imported}, which stands above it"


@pytest.mark.parametrize("name", INNER)
def test_nothing_imports_the_root(name: str) -> None:
    """Not lazily either: the root imports everything else."""
    for imported in imports(MODULES[name], lazy=True):
        assert imported != "asynctag"
        top, _, inner = imported.partition(".")
        if top == "asynctag":
            assert inner in MODULES or inner.rpartition(".")[0] in MODULES, f"{name} imports {imported} from the root"


def test_no_circle() -> None:
    """Within a layer neither."""
    graph: dict[str, set[str]] = {name: set() for name in INNER}
    for name in INNER:
        for imported in imports(MODULES[name], lazy=False):
            inner = imported.removeprefix("asynctag.")
            while inner and inner not in graph:
                inner = inner.rpartition(".")[0]
            if imported.startswith("asynctag.") and inner and inner != name:
                graph[name].add(inner)
    done: set[str] = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert done == set(INNER), f"a circle among {sorted(set(INNER) - done)}"


@pytest.mark.parametrize("name", INNER)
def test_others_are_imported_where_they_are_at_home(name: str) -> None:
    """The core knows no framework and no server."""
    for imported in imports(MODULES[name], lazy=True):
        top = imported.partition(".")[0]
        if top in FOREIGN:
            homes = AT_HOME[top]
            assert name in homes or name.partition(".")[0] in homes, f"{name} imports {top}"
            assert name not in ("backends.base", "backends.memory")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_it_imports_no_framework() -> None:
    """`import asynctag`, a cache and a decorated function load none of them."""
    loaded = loaded_after(
        "from asynctag import Cache\n"
        "import anyio\n"
        "cache = Cache(default_ttl=60)\n"
        "async def f() -> int: return 1\n"
        "anyio.run(cache.cached(name='f')(f))\n"
    )
    assert "asynctag" in loaded
    assert not loaded & FOREIGN


def test_without_pytest_the_tools_say_what_to_install() -> None:
    """The name of the extra, instead of a bare "no module"."""
    code = "import sys\nsys.modules['pytest'] = None\nimport asynctag.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode
    assert "pip install asynctag[testing]" in done.stderr
