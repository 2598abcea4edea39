"""Leave the atlas running for a browser: `python -m examples.atlas.serve`.

PORT says where, 8000 unless it is set. With REDIS_URL the cache is there, and WORKERS may be more than one. With
ATLAS_DATABASE=postgresql://... the data is there, in a table `airports` that is made if there is none; with the name of
a file, in SQLite.
"""

import contextlib
import os
import socket
import sys

import uvicorn

from examples.atlas.app import create_app
from examples.atlas.connections import check

HOST = "127.0.0.1"


def number(name: str, default: int, most: int) -> int:
    """A setting. Raises `ValueError` with what to give instead."""
    given = os.environ.get(name) or str(default)
    if not (given.isascii() and given.isdigit() and 0 < int(given) <= most):
        raise ValueError(f"{name}={given}: give a number from 1 to {most}")
    return int(given)


def main() -> int:
    try:
        port, workers = number("PORT", 8000, 65535), number("WORKERS", 1, 64)
        if workers > 1 and not os.environ.get("REDIS_URL"):
            raise ValueError(f"WORKERS={workers}: give REDIS_URL too; in memory, each would have a cache of its own")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if (given := os.environ.get("ATLAS_DATABASE")) and (wrong := check(given)):
        print(wrong, file=sys.stderr)
        return 1
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # some systems refuse a taken port only here
    except OSError as error:
        listening.close()
        print(
            f"Port {port} cannot be had ({error.strerror}). Try another: PORT={port % 65535 + 1} make serve",
            file=sys.stderr,
        )
        return 1
    print(f"The atlas is at http://{HOST}:{port} (its JSON at /docs). Ctrl-C ends it.")
    print("Look at the response headers Cache-Status, X-Worker and, on misses, X-Tags; edit an airport.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        if workers == 1:
            with listening:
                uvicorn.Server(uvicorn.Config(create_app(), log_level="warning")).run(sockets=[listening])
        else:
            listening.close()  # they get one from uvicorn
            app = "examples.atlas.app:create_app"
            uvicorn.run(app, factory=True, workers=workers, host=HOST, port=port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
