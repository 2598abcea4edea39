"""The codec of what is made in this package alone."""

from typing import Any

import msgspec

from asynctag.codec import Codec
from asynctag.errors import CorruptEntryError


class PackedCodec(Codec):
    """As MessagePack. For one immutable type, made here: its values need no proof, and `keep` keeps them as they are.

    `what` says in errors what was expected.
    """

    def __init__(self, annotation: type, what: str) -> None:
        self.annotation = annotation
        self._what = what
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(annotation)

    def encode(self, value: Any) -> bytes:
        return self._encoder.encode(value)

    def decode(self, data: bytes) -> Any:
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise CorruptEntryError(f"not {self._what}: {error}") from error
