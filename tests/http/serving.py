"""A real server in a thread, and a client that sends bytes over TCP and reads what comes back as it stands."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import anyio.to_thread
import uvicorn

from tests.http.driver import Headed

#: How long a step may take before its test fails, in seconds.
PATIENCE = 30


class Served(NamedTuple):
    """Where an application is served."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def serve(app: Any, **options: Any) -> Iterator[Served]:
    """Serve an application by uvicorn, in a thread, at a free port. `options` are uvicorn's."""
    config = uvicorn.Config(app, port=0, **{"log_level": "critical", "lifespan": "on", "ws": "none", **options})
    up = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, *args: Any, **kwargs: Any) -> None:
            await super().startup(*args, **kwargs)
            up.set()

    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert up.wait(PATIENCE)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield Served(host, port)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


class Gate:
    """Where an endpoint in the server's thread waits for the test."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    async def wait(self) -> None:
        self.entered.set()
        assert await anyio.to_thread.run_sync(self.opened.wait, PATIENCE, abandon_on_cancel=True)


@dataclass(frozen=True)
class Answer(Headed):
    """A response as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]


class Connection:
    """A connection on which bytes are sent as they are given, and responses are read one after the other."""

    def __init__(self, served: Served, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((served.host, served.port))
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str, *lines: str, method: str = "GET", host: str = "shop") -> Answer:
        """Send a request without a body, and read its response."""
        self.send(request_bytes(path, *lines, method=method, host=host))
        return self.answer(method)

    def head(self) -> Answer:
        """A status line and headers, without what comes after."""
        version, status, _ = self.file.readline().decode("latin-1").split(" ", 2)
        assert version == "HTTP/1.1"
        headers: list[tuple[str, str]] = []
        while (line := self.file.readline().decode("latin-1")) != "\r\n":
            assert line.endswith("\r\n"), "the connection was closed within the headers"
            name, _, value = line.partition(":")
            headers.append((name.lower(), value.strip()))
        return Answer(int(status), headers, b"")

    def answer(self, method: str = "GET") -> Answer:
        """A whole response, by the framing that its headers tell of (RFC 9112 §6.3)."""
        head = self.head()
        if method == "HEAD" or head.status < 200 or head.status in (204, 304):
            return head
        coding, length = head.header("transfer-encoding"), head.header("content-length")
        if coding is not None:
            assert coding == "chunked"
            assert length is None
            return replace(head, body=b"".join(iter(self.chunk, b"")))
        return replace(head, body=self.file.read(int(length)) if length is not None else self.file.read())

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; an empty one is the last."""
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        assert len(data) == size
        assert self.file.readline() == b"\r\n"
        return data

    def ended(self) -> bool:
        """Whether the server has closed the connection, with nothing left to read."""
        return self.file.read(1) == b""


def request_bytes(path: str, *lines: str, method: str = "GET", host: str = "shop", body: bytes = b"") -> bytes:
    """A request, with more header lines and a body as they are given."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body
