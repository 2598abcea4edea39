"""Contenders in turn, round by round, so that the noise of the machine hits all of them alike."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")

Timed = Callable[[int], float]
"""Runs something so many times, gives the seconds."""

Series = dict[str, list[float]]
"""For each contender the seconds for one, a round each."""


def calibrate(timed: Timed, aim: float, most: int) -> int:
    """How many times fill about `aim` seconds."""
    n = min(10, most)
    while True:
        took = timed(n)
        if took >= aim / 4 or n >= most:
            return max(1, min(most, round(n * aim / max(took, 1e-9))))
        n = min(most, n * 4)


def interleave(
    contenders: Mapping[str, Timed], rounds: int, *, aim: float = 0.05, most: int = 1_000_000, fixed: int = 0
) -> Series:
    """Time every contender once a round, in an order that turns with each round; `fixed` times, or calibrated."""
    times = {name: fixed or calibrate(timed, aim, most) for name, timed in contenders.items()}
    series: Series = {name: [] for name in contenders}
    for number in range(rounds):
        for name in turned(list(contenders), number):
            series[name].append(contenders[name](times[name]) / times[name])
    return series


def in_turn(contenders: Mapping[str, Callable[[], Mapping[str, Any]]], rounds: int) -> dict[str, Series]:
    """Ask every contender once a round, in an order that turns with each round: a series for each measure they give."""
    found: dict[str, Series] = {}
    for number in range(rounds):
        for name in turned(list(contenders), number):
            for measure, value in contenders[name]().items():
                found.setdefault(measure, {one: [] for one in contenders})[name].append(value)
    return found


def turned(names: Sequence[T], number: int) -> list[T]:
    """The names in the order of round `number`: everyone comes first, and after everyone, as often."""
    at = number // 2 % len(names)
    order = [*names[at:], *names[:at]]
    return order[::-1] if number % 2 else order


def ratio(series: Series, one: str, other: str) -> float:
    """How many times longer `one` took than `other`: the median over the rounds of what each round gave."""
    return median(a / b for a, b in zip(series[one], series[other], strict=True))
