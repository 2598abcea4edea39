"""What stands for a window while a value is computed, and how it is found again in what was made of it.

A placeholder is text: a number that nobody can guess, made anew for each computation, that goes through f-strings,
`join`, `%`, templates and serializers as any text does. It is known to this process alone, for as long as the
computation lasts: what is stored are the segments between the placeholders, and beside them which window stands where.

In the middle of the number stands an `&`. What escapes the text escapes that too, so that it tells how the text that
the window gives has to be escaped to stand there: as HTML (`&amp;`), as a part of a URL (`%26`), as a string in a
script (`\\u0026`). Before it all digits are even, after it all are odd: what replaces one digit, wherever it stands,
leaves one of the sides as it was, by which it is seen that a placeholder was there.
"""

import html
import re
import secrets
import sys
import threading
import urllib.parse
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, NoReturn, Self, SupportsIndex, TypeVar

import msgspec

from asynctag.errors import WindowError
from asynctag.scope import Scope

R = TypeVar("R")

#: So many digits stand on each side, and so many at an end of one are enough to know that a placeholder was there.
_SIDE, _ENOUGH = 22, 14
_EVEN, _ODD = str.maketrans("13579", "02468"), str.maketrans("02468", "13579")

#: So many different windows may stand in one value, each escaped so often.
MAX_PLACES, MAX_STEPS = 10**6, 32

_making = threading.Lock()

#: As the text was placed: as it is, or by something that asked for HTML (`__html__`).
_AS_IS, _AS_HTML = "1", "2"

#: The `&`, as often escaped as it was: in text, in a script, in a URL, in a URL in a URL.
_ESCAPED = (
    r"&(?:amp;|AMP;|#38;|#x26;)*",
    r"\\u0026(?:amp;|#38;|#x26;)*",
    r"%26(?:amp%3B|%2338%3B|%23x26%3B)*",
    r"%(?:25)+26",
)

#: What follows the first side: that, how it was placed, a number, the other side.
_REST = re.compile(rf"({'|'.join(_ESCAPED)})([{_AS_IS}{_AS_HTML}])([0-9]{{6}})([0-9]{{{_SIDE}}})")
_REST_OF_BYTES = re.compile(_REST.pattern.encode())

#: A placeholder is no longer than that in a body, escaped or not, with the quotes around it.
LONGEST = 2 * _SIDE + 16 + len("amp%3B") * MAX_STEPS


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A window where it stands in a value: the name that it is registered under, and its parameters (MessagePack).

    `how` its text gets there are steps, by the letters of `STEPS`, in their order. Without any, what it returns stands
    there as it is.
    """

    name: str
    params: bytes
    how: str = ""

    @property
    def window(self) -> str:
        """The window's name as its users know it."""
        return self.name.partition("|")[2]


class Segments(NamedTuple):
    """Text, and the windows between its parts: there is one part more than there are windows."""

    parts: tuple[Any, ...]
    places: tuple[Place, ...]


class Placeholder(str, Generic[R]):
    """Stands for a window in a value that is being computed. Made by calling the window."""

    __slots__ = ("call", "places")

    places: "Places"
    #: Calls the window, where it may be awaited too.
    call: "Callable[[], Generator[Any, Any, R]] | None"

    def __await__(self) -> Generator[Any, Any, R]:
        if self.call is None:
            window = self.places.find(self).window
            raise WindowError(
                f"{window} is awaited inside {self.places.name}: what it returns would be cached for everybody. "
                f"Place it, as text or as a value: it is filled afresh on every serve"
            )
        return self.call()

    def __html__(self) -> str:
        return self.places.as_html(self)

    def __getitem__(self, key: SupportsIndex | slice) -> NoReturn:
        self._refuse_cut(f"[{key!r}]")

    def __iter__(self) -> NoReturn:
        self._refuse_cut("going through its characters")

    def __format__(self, spec: str) -> str:
        return self._whole(str(self).__format__(spec), f"the format {spec!r}")

    def strip(self, chars: str | None = None, /) -> str:
        return self._whole(str(self).strip(chars), f".strip({chars!r})")

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._whole(str(self).lstrip(chars), f".lstrip({chars!r})")

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._whole(str(self).rstrip(chars), f".rstrip({chars!r})")

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if old == "&" and new.startswith("&"):  # as `html.escape` begins
            return str(self).replace(old, new, count)
        return self

    def _whole(self, text: str, by: str) -> str:
        if str(self) not in text:
            self._refuse_cut(by)
        return text

    def _refuse_cut(self, by: str) -> NoReturn:
        raise WindowError(
            f"the placeholder of {self.places.find(self).window} was cut, by {by}: what the window returns is not "
            f"there yet. Cut it inside the window"
        )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise WindowError(
            f"the placeholder of {self.places.find(self).window} cannot be pickled: it is known to one computation "
            f"alone. Pickle what is cached, or place the window where the pickle is read"
        )


class Places:
    """The windows that were placed in one computation and those within it, by the texts that stand for them.

    Safe for any number of threads.
    """

    __slots__ = ("_after", "_before", "_ends", "_ends_in_bytes", "_lock", "_numbers", "_placed", "name")

    def __init__(self, name: str) -> None:
        #: What is computed, for errors.
        self.name = name
        self._before = f"{secrets.randbelow(8) + 2}{_digits(_SIDE - 1)}".translate(_EVEN)
        self._after = _digits(_SIDE).translate(_ODD)
        self._ends = [end for side in (self._before, self._after) for end in (side[:_ENOUGH], side[-_ENOUGH:])]
        self._ends_in_bytes = [end.encode() for end in self._ends]
        self._placed: list[Place] = []
        self._numbers: dict[Place, int] = {}
        self._lock = threading.Lock()

    def place(self, place: Place, call: "Callable[[], Generator[Any, Any, R]] | None" = None) -> Placeholder[R]:
        """What stands for a window. It is awaited by `call`, if it may be."""
        placeholder: Placeholder[R] = Placeholder(self.text_of(place))
        placeholder.places, placeholder.call = self, call
        return placeholder

    def text_of(self, place: Place) -> str:
        """What stands for a window, as plain text."""
        with self._lock:
            number = self._numbers.get(place)
            if number is None:
                number = len(self._placed)
                if number == MAX_PLACES:
                    raise WindowError(
                        f"{self.name} places {MAX_PLACES} windows: are they placed in a loop without an end?"
                    )
                self._placed.append(place)
                self._numbers[place] = number
        return f"{self._before}&{_AS_IS}{number:06d}{self._after}"

    def find(self, placeholder: str) -> Place:
        """The window that `placeholder` stands for."""
        return self._placed[int(str(placeholder)[_SIDE + 2 : -_SIDE])]

    def as_html(self, placeholder: str) -> str:
        """Its text, as HTML: of markupsafe's type where that is in use, which asks some of it twice."""
        text, at = str(placeholder), _SIDE + 1
        html_text = f"{text[:at]}{_AS_HTML}{text[at + 1 :]}"
        markupsafe: Any = sys.modules.get("markupsafe")
        marked: str = html_text if markupsafe is None else markupsafe.Markup(html_text)
        return marked

    def plain(self, value: object) -> str:
        """A placeholder of this computation as plain text; TypeError for everything else."""
        if isinstance(value, Placeholder) and value.places is self:
            return str(value)
        return plain(value)

    def stands_in(self, text: str | bytes) -> bool:
        """Whether a placeholder, or what may be a part of one, stands in `text`."""
        if isinstance(text, str):
            return any(end in text for end in self._ends)
        return any(end in text for end in self._ends_in_bytes)

    def unfinished(self, data: bytes) -> int:
        """How many bytes at the end of `data` are to wait for what follows, without which they cannot be split.

        These are a placeholder or the beginning of one that is not whole yet; a quote, which it may take the place of,
        and a backslash, which may stand before such a quote; and a placeholder after a quote, until it is known whether
        it stands between two of them and is no key. Nothing else waits: what ends in a line break goes out as it is.
        """
        before = self._before.encode()
        lengths = range(min(_SIDE - 1, len(data)), 0, -1)
        begun = next((length for length in lengths if data.endswith(before[:length])), 0)
        cut = len(data) - begun
        if _opens(data, cut) or (not begun and data.endswith(b"\\")):
            cut -= 1
        while cut:
            start = data.rfind(before, max(0, cut - LONGEST), cut + _SIDE - 1)
            if start < 0:
                break
            opens, found = _opens(data, start), _REST_OF_BYTES.match(data, start + _SIDE)
            if found is not None:
                end = found.end()
                if (end + 2 if opens and data[end : end + 1] in (b"", b'"') else end) <= cut:
                    break
            cut = start - opens
        return len(data) - cut

    def split(self, text: Any, where: Callable[[], str], *, json: bool = False) -> Segments | None:
        """`text` (`str` or `bytes`) as it is stored, if a window stands in it.

        In `json` a string that is a placeholder and nothing else stands for any value, unless it is a key. Raises
        `WindowError` where a placeholder was cut or changed; `where` says in what.
        """
        if not self.stands_in(text):
            return None
        is_text = isinstance(text, str)
        before, quote, slash, colon = (
            (self._before, '"', "\\", ":") if is_text else (self._before.encode(), b'"', b"\\", b":")
        )
        rest: re.Pattern[Any] = _REST if is_text else _REST_OF_BYTES
        parts: list[Any] = []
        places: list[Place] = []
        done = 0
        start = text.find(before)
        while start >= 0:
            found = rest.match(text, start + _SIDE)
            end = start + _SIDE
            if found is not None and _text(found[4]) == self._after:
                end = found.end()
                quotes = (
                    text[start - 1 : start] == quote == text[end : end + 1]
                    and text[start - 2 : start - 1] != slash
                    and text[end + 1 : end + 2] != colon
                )
                place, takes_quotes = self._placed_as(found, json=json, quotes=quotes)
                parts.append(text[done : start - takes_quotes])
                places.append(place)
                done = end + takes_quotes
            start = text.find(before, end)
        parts.append(text[done:])
        self._refuse_rest(parts, where)
        return Segments(tuple(parts), tuple(places))

    def _placed_as(self, found: "re.Match[Any]", *, json: bool, quotes: bool) -> tuple[Place, bool]:
        """The window of a placeholder that was found, and whether it takes the place of the quotes around it too."""
        escaped, way, number, _ = (_text(one) for one in found.groups())
        if int(number) >= len(self._placed):
            raise WindowError(f"a placeholder in {self.name} was changed: there is none of the number {number}")
        place = self._placed[int(number)]
        how = place.how + ("h" if way == _AS_HTML else "")
        in_script = escaped.startswith("\\")
        if quotes and not how and (escaped == "\\u0026" or (json and escaped == "&")):
            return Place(place.name, place.params, "V" if in_script else "v"), True
        how += "e" * (escaped.count(";") + escaped.count("%3B"))
        if in_script:
            how += "s"
        elif escaped.startswith("%"):
            how += "u" * (1 + escaped.count("25"))
        elif json:
            how += "j"
        if len(how) > MAX_STEPS:
            raise WindowError(f"{place.window} was escaped more than {MAX_STEPS} times in {self.name}: escape it once")
        return Place(place.name, place.params, how), False

    def _refuse_rest(self, parts: Sequence[str | bytes], where: Callable[[], str]) -> None:
        for part in parts:
            if self.stands_in(part):
                text = _text(part)
                at = min(start for start in map(text.find, self._ends) if start >= 0)
                near = text[max(0, at - 30) : at] + "..." + text[at + _ENOUGH : at + _ENOUGH + 60]
                raise WindowError(
                    f"{where()}: the placeholder of a window was cut or changed, near {near!r}. What the window "
                    f"returns is not there yet when {self.name} is computed: cut or change it inside the window"
                )


def places_here(scope: Scope) -> Places:
    """Where what is placed in `scope` is kept until the outermost computation around it, or its response, is done."""
    root = scope.root
    if root.places is None:
        with _making:  # two threads of a computation must not make two
            if root.places is None:
                root.places = Places(root.name)
    return root.places


def plain(value: object) -> str:
    """Text of a type that stands for itself as plain text; TypeError for everything else."""
    if isinstance(value, Placeholder):
        raise WindowError(
            f"a placeholder of {value.places.find(value).window} was kept from {value.places.name}: place the "
            f"window anew in each computation"
        )
    if is_markup_type(type(value)):
        return str(value)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


def is_markup_type(kind: type) -> bool:
    """Whether it is markupsafe's, for text that is HTML already."""
    return kind.__name__ == "Markup" and kind.__module__ == "markupsafe"


def _opens(data: bytes, start: int) -> bool:
    """Whether what begins at `start` stands after a quote that is not escaped."""
    return data[start - 1 : start] == b'"' and data[start - 2 : start - 1] != b"\\"


def _digits(count: int) -> str:
    return f"{secrets.randbelow(10**count):0{count}d}"


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


# --- how what a window returns gets into the text ------------------------------------------------------

_SCRIPT_SAFE: Final = str.maketrans({one: f"\\u{ord(one):04x}" for one in "<>&'\u2028\u2029"})


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=plain).decode()


def _in_json(text: str) -> str:
    return _as_json(str(text))[1:-1]


def _in_script(text: str) -> str:
    # What escapes the script as HTML, in an attribute, finds no quote at the placeholder: none may be left here either.
    return _in_json(text).replace('\\"', "\\u0022").translate(_SCRIPT_SAFE)


def _as_markup(value: Any) -> str:
    return str(value.__html__()) if hasattr(value, "__html__") else html.escape(_as_text(value))


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "__html__"):
        return str(value.__html__())
    raise TypeError(f"{value!r} stands where text does: return str")


#: What is done to what a window returned, by letter.
STEPS: Final[Mapping[str, Callable[[Any], str]]] = {
    "h": _as_markup,  # as HTML, escaped unless it is that already
    "e": lambda value: html.escape(_as_text(value)),
    "u": lambda value: urllib.parse.quote(_as_text(value), safe=""),
    "j": lambda value: _in_json(_as_text(value)),  # within a string of JSON
    "s": lambda value: _in_script(_as_text(value)),  # the same, in a script
    "v": _as_json,  # instead of a string of JSON
    "V": lambda value: _as_json(value).translate(_SCRIPT_SAFE),
}


def as_text(value: Any, place: Place) -> str:
    """What a window returned, as it stands in text. Raises `WindowError` where it cannot."""
    try:
        for step in place.how:
            value = STEPS[step](value)
        return _as_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise WindowError(f"{place.window} returned what cannot stand where it was placed: {error}") from error


def as_bytes(value: Any, place: Place, charset: str = "utf-8") -> bytes:
    """The same in bytes, in which other characters than those of `charset` are replaced."""
    if not place.how:
        if type(value) is str:
            return value.encode(charset, "replace")
        if isinstance(value, bytes):
            return value
    return as_text(value, place).encode(charset, "replace")
