"""Structured fields (RFC 9651): as much of their syntax as the fields of a cache need, without I/O or opinions.

Reading is strict, as §1.1 wants it: what does not parse is `None`, and its field counts as one that was not sent
(§4.2). Nothing here raises on what was sent, and the time is linear in its length.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

FIELD_MAX = 65_536
"""The longest field that is read, in bytes: a longer one counts as one that does not parse."""

INTEGER_MAX = 10**15 - 1
"""The largest Integer (§3.3.1)."""


@dataclass(frozen=True, slots=True)
class Token:
    """A Token (§3.3.4), to be told from a String of the same text."""

    text: str


class _Opaque(Enum):
    OPAQUE = "opaque"


OPAQUE: Final = _Opaque.OPAQUE
"""Stands for a value whose syntax was checked, and that no field here has a use for: an Inner List (§3.1.1), a Byte
Sequence (§3.3.5), a Date (§3.3.7), a Display String (§3.3.8)."""

Value: TypeAlias = bool | int | Decimal | str | Token | _Opaque

_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
_DECIMAL = re.compile(r"-?[0-9]{1,12}\.[0-9]{1,3}")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*+)"')
_BOOLEAN = re.compile(r"\?([01])")
_BYTES = re.compile(r":[A-Za-z0-9+/]*+={0,2}:")
_DATE = re.compile(r"@-?[0-9]{1,15}")
_DISPLAY = re.compile(r'%"((?:[ !#$&-~]|%[0-9a-f]{2})*+)"')
_SPACES = re.compile(r" *")
_OWS = re.compile(r"[ \t]*")
_PRINTABLE = re.compile(r"[ -~]*")
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)


def parse_dictionary(lines: Iterable[bytes]) -> dict[str, Value] | None:
    """Read the lines of a Dictionary (§4.2.2). `None` is a field that does not parse.

    Of a key that comes twice the last value counts, a bare key is `True`, and parameters are read and left out. A
    String is `str`, an Integer `int`, a Boolean `bool`; for what else there is, see `Value`.
    """
    reader = _Reader.of(lines)
    try:
        return None if reader is None else reader.dictionary()
    except _DoesNotParseError:
        return None


def parse_string_list(lines: Iterable[bytes]) -> tuple[str, ...] | None:
    """Read the lines of a List of Strings (§4.2.1), in their order. `()` is an empty or absent field.

    `None` is a field that does not parse, or that has a member that is no String: a constraint that a field's
    definition sets, and for which it says nothing else, takes the whole field with it (§2).
    """
    reader = _Reader.of(lines)
    try:
        members = None if reader is None else reader.list()
    except _DoesNotParseError:
        return None
    if members is None:
        return None
    strings = tuple([member for member in members if isinstance(member, str)])
    return strings if len(strings) == len(members) else None


def write_string_list(strings: Iterable[str]) -> bytes:
    """A List of Strings (§4.1.1), to be sent unless it is empty. Raises what `write_string` raises."""
    return ", ".join([write_string(text) for text in strings]).encode("ascii")


def write_string(text: str) -> str:
    """A String (§4.1.6). Raises `ValueError` for what is not printable ASCII: `escape` it first."""
    if _PRINTABLE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not printable ASCII: no String of a structured field can hold it")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_name(text: str) -> str:
    """A Token where `text` can be one, or else a String of it, escaped."""
    return text if _TOKEN.fullmatch(text) else write_string(escape(text))


def escape(text: str) -> str:
    """Text that a String can hold: what is not printable ASCII is percent-encoded as UTF-8, and so is `%`."""
    return quote(text, safe=_SAFE, errors="backslashreplace")


def unescape(text: str) -> str:
    """What `escape` was given. Text that it cannot have written stays as it is, where it does not decode."""
    if "%" not in text:
        return text
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


class _DoesNotParseError(Exception):
    """The field is to be ignored whole."""


class _Reader:
    """The text of one field and the place that is read next."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip(_SPACES)

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> "_Reader | None":
        field = b", ".join(lines)
        return cls(field.decode("ascii")) if len(field) <= FIELD_MAX and field.isascii() else None

    def dictionary(self) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while self._more(is_first=not found):
            key = self._take(_KEY)[0]
            if self._next_is("="):
                found[key] = self._member()
            else:
                found[key] = True
                self._parameters()
        return found

    def list(self) -> list[Value]:
        found: list[Value] = []
        while self._more(is_first=not found):
            found.append(self._member())
        return found

    def _more(self, *, is_first: bool) -> bool:
        """Whether another member follows. A comma that nothing follows does not parse."""
        if is_first:
            return self._at < len(self._text)
        self._skip(_OWS)
        if self._at == len(self._text):
            return False
        if not self._next_is(","):
            raise _DoesNotParseError
        self._skip(_OWS)
        return True

    def _member(self) -> Value:
        value: Value = OPAQUE
        if self._next_is("("):
            self._inner_list()
        else:
            value = self._bare_item()
        self._parameters()
        return value

    def _inner_list(self) -> None:
        self._skip(_SPACES)
        while not self._next_is(")"):
            self._bare_item()
            self._parameters()
            if self._peek() not in (" ", ")"):
                raise _DoesNotParseError
            self._skip(_SPACES)

    def _parameters(self) -> None:
        while self._next_is(";"):
            self._skip(_SPACES)
            self._take(_KEY)
            if self._next_is("="):
                self._bare_item()

    def _bare_item(self) -> Value:
        first = self._peek()
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self._take(_STRING)[1])
        if first == "-" or first.isdigit():
            if decimal := _DECIMAL.match(self._text, self._at):
                self._at = decimal.end()
                return Decimal(decimal[0])
            return int(self._take(_INTEGER)[0])
        if first == "?":
            return self._take(_BOOLEAN)[1] == "1"
        if first == ":":
            self._take(_BYTES)
            return OPAQUE
        if first == "@":
            self._take(_DATE)
            return OPAQUE
        if first == "%":
            self._display_string()
            return OPAQUE
        return Token(self._take(_TOKEN)[0])

    def _display_string(self) -> None:
        try:
            unquote(self._take(_DISPLAY)[1], errors="strict")
        except UnicodeDecodeError:
            raise _DoesNotParseError from None

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next_is(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _skip(self, spaces: re.Pattern[str]) -> None:
        self._take(spaces)

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _DoesNotParseError
        self._at = found.end()
        return found
