"""cashews over its Redis backend, with tags as in its documentation.

As in memory, its protection against many misses at once is off where it is not what is measured.
"""

import sys

from benchmarks.workers.over_redis import PATIENCE, OverRedis, main
from benchmarks.workers.with_cashews import Cashews

CONNECTIONS = 50
"""By default it has ten, for which callers queue."""


class CashewsOnRedis(Cashews):
    def __init__(self, url: str, client_side: bool) -> None:
        super().__init__()
        self.cache.setup(url, max_connections=CONNECTIONS, socket_timeout=PATIENCE, client_side=client_side)


def commands(url: str) -> OverRedis:
    return OverRedis(CashewsOnRedis(url, client_side="client-side" in sys.argv), url)


if __name__ == "__main__":
    main(commands)
