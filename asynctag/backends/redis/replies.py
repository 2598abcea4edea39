"""What the error replies of a server mean, and what is told to callers."""

from enum import Enum, auto

from asynctag.errors import BackendError, ConfigurationError


class Outcome(Enum):
    """What becomes of a connection on which a server has refused."""

    KEEP = auto()  # it refuses this command, now: the next may do
    PAUSE = auto()  # it answers nothing for a while: leave it alone
    MOVE = auto()  # it is not the one to talk to any more: connect anew


#: By the first word of the reply. What is not here is KEEP, and said as the server says it.
_KNOWN: dict[str, tuple[Outcome, str]] = {
    "LOADING": (Outcome.PAUSE, "it is loading its data"),
    "BUSY": (Outcome.PAUSE, "it is held up by a script that does not end"),
    "MASTERDOWN": (Outcome.PAUSE, "it is a replica that has lost its master"),
    "READONLY": (Outcome.MOVE, "it is a read-only replica: give the master's address, or a Sentinel client"),
    "NOAUTH": (Outcome.MOVE, "it wants a password"),
    "WRONGPASS": (Outcome.MOVE, "it refuses the password"),
    "NOREPLICAS": (Outcome.KEEP, "it has fewer replicas than its min-replicas-to-write"),
    "OOM": (Outcome.KEEP, "it is full, and evicts nothing (maxmemory-policy)"),
    "MISCONF": (Outcome.KEEP, "it cannot save to its disk, and stops all writes"),
    "NOPERM": (Outcome.KEEP, "its ACL forbids that to this user"),
    **dict.fromkeys(
        ("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"), (Outcome.MOVE, "it is a node of a Redis Cluster now")
    ),
    "WRONGTYPE": (Outcome.KEEP, "something else stands under the name of our journal: choose another prefix="),
}


def outcome(reply: Exception) -> Outcome:
    return _KNOWN.get(_code(reply), (Outcome.KEEP, ""))[0]


def refusal(reply: Exception, address: str) -> BackendError:
    """What to raise for an error reply."""
    _, meaning = _KNOWN.get(_code(reply), (Outcome.KEEP, ""))
    return BackendError(f"{address} refused: {meaning} ({reply})" if meaning else f"{address} refused: {reply}")


def not_a_cluster(address: str, said: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address} is a node of a Redis Cluster ({said}): RedisBackend needs a single server, or one behind Sentinel"
    )


def _code(reply: Exception) -> str:
    return str(reply).partition(" ")[0]
