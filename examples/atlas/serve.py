"""Leave the atlas running for a browser: `python -m examples.atlas.serve`. PORT says where, 8000 unless it is set."""

import contextlib
import os
import socket
import sys

import uvicorn

from examples.atlas.app import create_app


def main() -> int:
    wanted = os.environ.get("PORT") or "8000"
    if not (wanted.isascii() and wanted.isdigit() and 0 < int(wanted) < 65536):
        print(f"PORT={wanted}: give a number from 1 to 65535", file=sys.stderr)
        return 1
    port = int(wanted)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # some systems refuse a taken port only here
    except OSError as error:
        listening.close()
        print(
            f"Port {port} cannot be had ({error.strerror}). Try another: PORT={port % 65535 + 1} make serve",
            file=sys.stderr,
        )
        return 1
    print(f"The atlas is at http://127.0.0.1:{port} (its JSON at /docs). Ctrl-C ends it.")
    print("Look at the response headers Cache-Status and X-Tags, then edit an airport.", flush=True)
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(create_app(), log_level="warning")).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
