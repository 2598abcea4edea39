"""Requests over kept connections, each sent when the answer to the one before it is whole."""

import asyncio
import time
from collections.abc import Iterator
from itertools import count, repeat
from typing import Any, cast

import uvloop

from benchmarks.workers.line import serve

#: Ends a body in chunks. What is measured has no line breaks in it.
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Client(asyncio.Protocol):
    """One connection. Counts the whole 200 answers."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.done = 0
        self.stopped = False
        self.failure: str | None = None
        self._begun = b""
        self._missing = 0
        self._end: bytes | None = None  # the last bytes of a body in chunks, while it comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(next(self.requests))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.stopped:
            self.failure = self.failure or f"the server closed the connection: {exc}"

    def data_received(self, data: bytes) -> None:
        if self._end is not None:
            self._end = (self._end + data)[-len(LAST_CHUNK) :]
        elif self._missing:
            self._missing -= len(data)
        else:
            data = self._begun + data
            head = data.find(b"\r\n\r\n")
            if head < 0:
                self._begun = data
                return
            self._begun = b""
            if not data.startswith(b"HTTP/1.1 200"):
                self.failure = data[:60].decode(errors="replace")
                self.transport.close()
                return
            if is_chunked(data, head):
                self._end = data[head + 2 :][-len(LAST_CHUNK) :]
            else:
                self._missing = head + 4 + content_length(data, head) - len(data)
        if self._end == LAST_CHUNK or (self._end is None and not self._missing):
            self._end = None
            self.done += 1
            if not self.stopped:
                self.transport.write(next(self.requests))


def is_chunked(data: bytes, head: int) -> bool:
    return data.find(b"transfer-encoding: chunked", 0, head) >= 0


def content_length(data: bytes, head: int) -> int:
    """The length that the header says. Raises `ValueError` where it says none."""
    at = data.find(b"content-length: ", 0, head)
    if at < 0:
        at = data.lower().index(b"content-length: ", 0, head)
    return int(data[at + 16 : data.index(b"\r\n", at)])


class Load:
    def __init__(self) -> None:
        self._numbers = count(1)

    async def run(self, port: int, path: str, seconds: float, connections: int) -> dict[str, Any]:
        """Requests a second, and the share of its time that this process itself was busy.

        `{}` in the path stands for a number that no request had before.
        """
        requests = self._requests(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: */*\r\n\r\n".encode())
        loop = asyncio.get_running_loop()
        clients = [Client(requests) for _ in range(connections)]
        for client in clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.sleep(min(0.1, seconds / 4))
        before, busy, started = sum(one.done for one in clients), time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - started
        done, busy = sum(one.done for one in clients) - before, time.process_time() - busy
        for client in clients:
            client.stopped = True
            client.transport.close()
        failures = [one.failure for one in clients if one.failure]
        if failures:
            raise RuntimeError(f"{path}: {failures[0]}")
        return {"rate": done / took, "busy": busy / took, "done": sum(one.done for one in clients)}

    def _requests(self, request: bytes) -> Iterator[bytes]:
        before, numbered, after = request.partition(b"{}")
        if not numbered:
            return repeat(request)
        return (b"%b%d%b" % (before, number, after) for number in self._numbers)


if __name__ == "__main__":
    serve(Load(), loop_factory=uvloop.new_event_loop)
