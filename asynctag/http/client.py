"""Who has sent a request: as it came, and what is received of it."""

from contextvars import copy_context

from asynctag.http.asgi import AsgiScope, Message, Receive


class Client:
    """Who has sent a request, as far as it shows in what is received of it. `context` is the middleware's."""

    __slots__ = ("_receive", "context", "gone", "has_body")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.context = copy_context()
        self.gone = False
        self.has_body = False  # said or not: HTTP/2 need not say it

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        elif message.get("body"):
            self.has_body = True
        return message

    def leave(self) -> None:
        """Nothing more is received, and nothing leads to the server any more."""
        self._receive = receive_from_nobody


async def receive_from_nobody() -> Message:
    """What there is to receive when all is over."""
    return {"type": "http.disconnect"}


def as_it_came(asgi: AsgiScope) -> AsgiScope:
    """A copy of a request's scope: routing writes into the scope, and the application into its state and headers."""
    origin = dict(asgi)
    origin["headers"] = [*asgi["headers"]]
    if "state" in asgi:
        origin["state"] = dict(asgi["state"])
    return origin
