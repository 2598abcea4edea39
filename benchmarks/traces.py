"""Traces of keys, the same on every run, and the LRU cache that a ratio of hits is held against."""

import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate


def zipf(length: int, keys: int, exponent: float, seed: int = 1) -> list[int]:
    """Keys of 0 to `keys`, the n-th of them as likely as 1 / n ** `exponent`."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / number**exponent for number in range(1, keys + 1)))
    return [bisect_left(weights, chance.random() * weights[-1]) for _ in range(length)]


def with_scans(trace: list[int], share: float, run: int = 300) -> list[int]:
    """`trace` with runs of keys that come once and never again, until they are `share` of it."""
    between = round(run * (1 - share) / share)
    mixed: list[int] = []
    scanned = -1  # below every key of the trace
    for at in range(0, len(trace), between):
        mixed += trace[at : at + between]
        mixed += range(scanned, scanned - run, -1)
        scanned -= run
    return mixed


def lru_ratio(trace: Iterable[int], size: int) -> float:
    """The share of hits of a cache that drops what was not used for longest."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for key in trace:
        total += 1
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            held[key] = None
            if len(held) > size:
                held.popitem(last=False)
    return hits / total
