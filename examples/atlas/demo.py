"""Drive the atlas over HTTP and show what its cache does: `python -m examples.atlas.demo`.

First in one process, on memory or, if it is set, on the server at REDIS_URL; then with several workers (`workers.py`).
The data is in SQLite, or in the PostgreSQL at ATLAS_DATABASE, in a schema that goes with the demo. It checks what it
shows. Whatever is not as it must be is printed at the end, and the exit code is 1.
"""

import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from redis import Redis

from examples.atlas import workers
from examples.atlas.app import create_app
from examples.atlas.connections import check, is_url, new_database
from examples.atlas.processes import answers
from examples.atlas.show import (
    EDITED,
    EDITOR,
    NEW_NAME,
    OLD_NAME,
    edit,
    expect,
    failures,
    get,
    line,
    line_of,
    title,
)

#: Path, what it is, and whether the edit has to drop it.
REQUESTS = [
    ("/", "every country and its highest airport", True),
    ("/countries/CH", "Switzerland, where it lies", True),
    ("/countries/CH?page=2", "Switzerland, the lower half", False),
    ("/countries/IT", "Italy", False),
    ("/airports/LSZS", "the airport that is edited", True),
    ("/airports/LILO", "its neighbour across the border", True),
    ("/airports/LIRF", "Rome, far away", False),
    ("/api/airports/LSZS", "JSON, by the policy of a router", True),
    ("/editors/suspicious", "behind a guard: a hit at the endpoint", False),
]

# --- what is shown -----------------------------------------------------------------------------------------


def some_of(tags: list[str]) -> str:
    """How many tags, and a few of them: first the one that the demo is about."""
    first = sorted(tags, key=lambda tag: (tag != f"airport:{EDITED}", tag.startswith("airport:"), tag))
    shown, rest = ", ".join(first[:2]), len(tags) - 2
    return f"{len(tags):>3}: {shown}" + (", ..." if rest > 0 else "")


def ask_twice(client: httpx.Client) -> None:
    title("Every page twice: computed and stored, then served from the cache")
    line("path", "status", "", "time", "tags")
    for path, _, _ in REQUESTS:
        for outcome in ("miss", "hit"):
            answer = get(client, path)
            note = some_of(answer.tags) if outcome == "miss" else ""
            line_of(path, answer, note)
            expect(answer.response.status_code == 200, f"{path} answers 200")
            expect(answer.outcome == outcome, f"{path} is a {outcome}: {answer.cache_status}")
            expect(bool(answer.tags) or outcome == "hit", f"{path} has tags")
    refused = client.get("/editors/suspicious")
    line("/editors/suspicious", refused.status_code, "", "", "without the editor's key: its hit is for editors")
    expect(refused.status_code == 403, "the guard runs before the hit")


def ask_after_edit(client: httpx.Client) -> None:
    title(f'The edit: POST /airports/{EDITED}/edit, "{OLD_NAME}" becomes "{NEW_NAME}". One tag is invalidated.')
    edit(client, NEW_NAME)
    for path, what, drops in REQUESTS:
        answer = get(client, path)
        note = f"{what}; {answer.because}" if answer.because else what
        line_of(path, answer, note)
        shows = any(name in answer.response.text for name in (NEW_NAME, escape(NEW_NAME)))
        expect(OLD_NAME not in answer.response.text, f"{path} does not show the old name")
        if drops:
            expect(answer.outcome == "miss", f"{path} was dropped: {answer.cache_status}")
            expect(answer.because == f"tag airport:{EDITED}", f"{path} names the tag: {answer.cache_status}")
            expect(shows, f"{path} shows the new name")
        else:
            expect(answer.outcome == "hit", f"{path} stayed: {answer.cache_status}")


def ask_if_changed(client: httpx.Client) -> None:
    title("A client that has the JSON already asks whether it has changed (If-None-Match)")
    path = f"/api/airports/{EDITED}"
    etag = get(client, path).response.headers.get("etag", "")
    before = get(client, path, {"If-None-Match": etag})
    line_of(path, before, "before another edit")
    expect(before.response.status_code == 304, "304 before the edit")
    expect(not before.response.content, "a 304 has no body")
    edit(client, OLD_NAME)
    after = get(client, path, {"If-None-Match": etag})
    line_of(path, after, "after it")
    expect(after.response.status_code == 200, "200 after the edit")
    expect(OLD_NAME in after.response.text, "the second edit shows")


def ask_as_visitors(client: httpx.Client, address: str) -> None:
    title("Two visitors, one page in the cache: what is theirs stands in windows, which are filled on every serve")
    page, far = f"/airports/{EDITED}", "/airports/LIRF"
    names = "Ann", "<script>alert(1)</script>"
    with ExitStack() as stack:
        visitors = [stack.enter_context(httpx.Client(base_url=address, timeout=10, trust_env=False)) for _ in names]
        for visitor, name in zip(visitors, names, strict=True):
            visitor.get("/hello", params={"name": name})
        visitors[0].get(f"{page}/favourite")

        def look(path: str, number: int, outcome: str, favourite: str = "") -> None:
            answer = get(visitors[number], path)
            shown = windows_of(answer.response.text)
            line_of(path, answer, f"{shown}  {answer.because}")
            expect(answer.outcome == outcome, f"{path} is a {outcome}: {answer.cache_status}")
            expect(
                shown == f"Hello, {escape(names[number])}!{escape(favourite)}", f"{path} for {names[number]}: {shown}"
            )
            expect("<script" not in answer.response.text, f"{path} takes no name for markup")

        look(page, 0, "miss", f" ★ {OLD_NAME}")  # dropped by the last edit
        look(page, 1, "hit")
        edit(client, NEW_NAME)
        look(page, 0, "miss", f" ★ {NEW_NAME}")
        look(page, 1, "hit")
        look(far, 0, "hit", f" ★ {NEW_NAME}")  # it shows her favourite, and does not depend on it
        edit(client, OLD_NAME)


def windows_of(page: str) -> str:
    """What stands in the windows of a page, as it was sent."""
    found = re.search('<span id="hello">(.*)</span>\n(?:<a id="favourite".*>(.*)</a>)?', page)
    return " ".join(found.groups("")).strip() if found is not None else ""


def measure(client: httpx.Client) -> None:
    title("The home page, by how much of it is cached (medians)")

    def median(times: int, prepare: int) -> float:
        """The median time of a hit, after an edit, or with nothing cached (`prepare` 0, 1, 2)."""
        taken = []
        for number in range(times):
            if prepare == 1:
                edit(client, f"{OLD_NAME} {number}")
            elif prepare == 2:
                client.post("/editors/clear", headers=EDITOR).raise_for_status()
            answer = get(client, "/")
            expect(answer.outcome == ("miss" if prepare else "hit"), f"/ while measuring: {answer.cache_status}")
            taken.append(answer.milliseconds)
        return statistics.median(taken)

    get(client, "/")  # dropped by the last edit
    hit, edited, cold = median(100, 0), median(11, 1), median(3, 2)
    for milliseconds, what in (
        (hit, "a hit: the response as it was stored, and its windows"),
        (edited, "a miss after an edit: one country is computed, and 233 summaries are hits"),
        (cold, "a miss with nothing cached: every query runs"),
    ):
        print(f"  {milliseconds:8.2f} ms  {milliseconds / hit:5.0f}×  {what}")
    expect(hit < edited < cold, f"the more is cached the faster: {hit:.2f}, {edited:.2f}, {cold:.2f} ms")


# --- the server --------------------------------------------------------------------------------------------


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """An application on a free port, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="on", log_level="warning"))
    thread = threading.Thread(target=server.run, name="atlas")
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@contextmanager
def with_new_database(given: str | None) -> Iterator[None]:
    """The atlas takes data of its own meanwhile."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder, new_database(Path(folder), given) as database:
        os.environ["ATLAS_DATABASE"] = database
        try:
            yield
        finally:
            del os.environ["ATLAS_DATABASE"]
            if given is not None:
                os.environ["ATLAS_DATABASE"] = given


def show_one_process() -> None:
    given = os.environ.get("ATLAS_DATABASE")
    data = "PostgreSQL" if given and is_url(given) else "SQLite"
    where = "the server at REDIS_URL" if os.environ.get("REDIS_URL") else "memory"
    print(f"Loading the world's airports into {data}, and starting one process on {where} ...", end=" ", flush=True)
    before = time.perf_counter()
    with with_new_database(given), running(create_app()) as address:
        print(f"{time.perf_counter() - before:.1f} s, at {address}")
        with httpx.Client(base_url=address, timeout=10, trust_env=False) as client:
            ask_twice(client)
            ask_after_edit(client)
            ask_if_changed(client)
            ask_as_visitors(client, address)
            measure(client)


def check_redis(url: str) -> str | None:
    """What is wrong with the server that is to be used, if something is."""
    try:
        with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            return None if answers(client) else "REDIS_URL: no server answers there"
    except ValueError as error:
        return f"REDIS_URL: {error}"


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C does: so that all it has started ends with it
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)
    if (url := os.environ.get("REDIS_URL")) and (wrong := check_redis(url)):
        print(wrong, file=sys.stderr)
        return 1
    if (given := os.environ.get("ATLAS_DATABASE")) and is_url(given) and (wrong := check(given)):
        print(wrong, file=sys.stderr)
        return 1
    try:
        show_one_process()
        workers.show()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    if failures:
        print("\nNot as it must be:", *failures, sep="\n  ", file=sys.stderr)
        return 1
    print("\nAll as it must be: no page was served with an old name, and no page was dropped without a cause.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
