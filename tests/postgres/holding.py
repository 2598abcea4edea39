"""Transactions that wait in the database at a step, until a test lets them go on."""

from tests.postgres.servers import Server
from tests.redis.servers import eventually


class HeldCommits:
    """Commits of changes to a table wait as they are asked for. The server is told by `go_on` to carry them out."""

    #: Of the advisory lock that they wait for.
    LOCK = 8

    def __init__(self, postgres: Server, table: str) -> None:
        self._postgres = postgres
        postgres.run(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN PERFORM pg_advisory_xact_lock({self.LOCK}); RETURN NULL; END'"
        )
        # Deferred: it runs at the COMMIT, before anything of it is done.
        postgres.run(
            f"CREATE CONSTRAINT TRIGGER wait AFTER INSERT OR UPDATE OR DELETE ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        postgres.run(f"SELECT pg_advisory_lock({self.LOCK})")

    def wait_for_one(self) -> None:
        wait_for_a_waiting(self._postgres, "advisory")

    def go_on(self) -> None:
        self._postgres.run(f"SELECT pg_advisory_unlock({self.LOCK})")


def wait_for_a_waiting(postgres: Server, kind: str) -> None:
    """Return when somebody waits for a lock of this kind: "transactionid" is that of whoever has changed a row."""
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = %s AND NOT granted"
    eventually(f"a wait for a lock ({kind})", lambda: postgres.run(waiting, kind))
