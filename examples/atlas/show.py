"""What the demo prints, and the claims that it checks."""

import time
from dataclasses import dataclass

import httpx

from examples.atlas.app import EDITOR_KEY

EDITED, OLD_NAME, NEW_NAME = "LSZS", "Samedan Airport", "Engadin & St. Moritz"
EDITOR = {"X-Editor-Key": EDITOR_KEY}

#: Claims that did not hold.
failures: list[str] = []


def expect(holds: bool, claim: str) -> None:
    if not holds:
        failures.append(claim)


@dataclass(frozen=True)
class Answer:
    response: httpx.Response
    milliseconds: float

    @property
    def cache_status(self) -> str:
        return str(self.response.headers.get("cache-status", ""))

    @property
    def outcome(self) -> str:
        parts = self.cache_status.split("; ")
        return "hit" if "hit" in parts else "miss" if "stored" in parts else "none"

    @property
    def because(self) -> str:
        """The tag behind a miss, as Cache-Status names it."""
        _, _, detail = self.cache_status.partition('detail="')
        return detail.rstrip('"')

    @property
    def tags(self) -> list[str]:
        exposed = self.response.headers.get("x-tags", "")
        return exposed.split(", ") if exposed else []


def get(client: httpx.Client, path: str, headers: dict[str, str] | None = None) -> Answer:
    before = time.perf_counter()
    response = client.get(path, headers={**EDITOR, **(headers or {})} if path.startswith("/editors") else headers)
    return Answer(response, (time.perf_counter() - before) * 1000)


def edit(client: httpx.Client, name: str, status: int = 303) -> None:
    """Post the form, as a browser does."""
    response = client.post(f"/airports/{EDITED}/edit", data={"name": name, "elevation": "5600"})
    expect(response.status_code == status, f"the edit answers {status}, not {response.status_code}")


def title(text: str) -> None:
    print(f"\n{text}")


def line(path: str, status: object, outcome: str, took: str, note: str) -> None:
    print(f"  {path:<21} {status:>6}  {outcome:<4}  {took:>9}  {note}")


def line_of(what: str, answer: Answer, note: str = "") -> None:
    line(what, answer.response.status_code, answer.outcome, f"{answer.milliseconds:.1f} ms", note)
