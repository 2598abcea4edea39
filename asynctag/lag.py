"""Replicas that lag behind: for how long what was changed stays held, and who asks whether they have caught up."""

from collections.abc import Awaitable, Callable
from typing import Final, Literal, NamedTuple

from asynctag.errors import ConfigurationError
from asynctag.expiry import Seconds, seconds

#: Says whether the replicas have everything that was committed before it was called.
Probe = Callable[[], Awaitable[bool]]

#: What happens to reads while replicas lag behind.
DuringLag = Literal["bypass", "serve"]

#: Seconds between two questions to a probe: at first, and at most.
FIRST_ASKED, LAST_ASKED = 0.05, 1.0


class Lag(NamedTuple):
    """For how many seconds after a commit replicas may lack it.

    Till then, readers compute and store nothing; or, with `serve`, what they store ends then. With `caught_up`, an
    opened cache asks whether that is over sooner.
    """

    seconds: float = 0.0
    serve: bool = False
    caught_up: Probe | None = None

    def changed(
        self, replica_lag: Seconds | None, during_lag: str | None = None, caught_up: Probe | None = None
    ) -> "Lag":
        """With what was given instead. Raises `ConfigurationError` for what cannot be meant."""
        if during_lag not in (None, "bypass", "serve"):
            raise ConfigurationError(
                f'during_lag={during_lag!r}: give "bypass" (readers compute) or "serve" (till the lag is over)'
            )
        if caught_up is not None and not callable(caught_up):
            raise ConfigurationError(f"caught_up={caught_up!r}: give an async function without parameters")
        lag = Lag(
            self.seconds if replica_lag is None else seconds(replica_lag, "replica_lag"),
            self.serve if during_lag is None else during_lag == "serve",
            self.caught_up if caught_up is None else caught_up,
        )
        if caught_up is not None and not lag.seconds:
            raise ConfigurationError(
                "caught_up= ends a lag sooner than it would: give replica_lag= too, the longest that replicas may lack "
                "a commit"
            )
        return lag

    def and_of(self, inner: "Lag | None") -> "Lag":
        """That of a transaction in which another is wanted too: as long as the longer, as strict as either."""
        if inner is None or not inner.seconds:
            return self
        if not self.seconds:
            return inner
        return Lag(max(self.seconds, inner.seconds), self.serve and inner.serve, _both(self.caught_up, inner.caught_up))


def _both(one: Probe | None, other: Probe | None) -> Probe | None:
    """A probe of all replicas that either of two asks. Where one lag has none, only its time ends it."""
    if one is None or other is None or one is other:
        return one if one is other else None

    async def caught_up() -> bool:
        return await one() and await other()

    return caught_up


NO_LAG: Final = Lag()
