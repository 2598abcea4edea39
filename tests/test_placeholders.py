"""Placeholders: text that goes through what text goes through, and tells afterwards how it was escaped."""

import copy
import html
import json
import pickle
import re
import textwrap
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import markupsafe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctag import WindowError
from asynctag.placeholders import (
    MAX_STEPS,
    STEPS,
    Place,
    Placeholder,
    Places,
    Segments,
    as_bytes,
    as_text,
    places_here,
)
from asynctag.scope import Scope
from asynctag.skeleton import woven

BADGE = Place("|badge", b"\x80")
CART = Place("|cart", b"\x80")

jinja = jinja2.Environment(autoescape=True)


def places() -> Places:
    return Places("page()")


def split(text: Any, of: Places, **options: bool) -> Segments | None:
    return of.split(text, lambda: "value", **options)


def rendered(source: str, **names: object) -> str:
    return jinja.from_string(source).render(**names)


# --- going through text


WHOLE: dict[str, Callable[[str], str]] = {
    "itself": lambda one: one,
    "str": str,
    "f-string": lambda one: f"{one}",
    "repr in an f-string": lambda one: f"{one!r}",
    "padded": lambda one: f"{one:>100}",
    "+": lambda one: "<p>" + one + "</p>",
    "* 2": lambda one: one * 2,
    "join": lambda one: ", ".join([one, "and", one]),
    "as separator": lambda one: one.join(["a", "b"]),
    "%": lambda one: "<p>%s</p>".__mod__(one),
    "format": lambda one: str.format("<p>{}</p>", one),
    "format_map": lambda one: "<p>{x}</p>".format_map({"x": one}),
    "upper": lambda one: f"x{one}".upper(),
    "lower": lambda one: f"X{one}".lower(),
    "title": lambda one: f"the page {one}".title(),
    "capitalize": lambda one: one.capitalize(),
    "swapcase": lambda one: one.swapcase(),
    "casefold": lambda one: one.casefold(),
    "strip": lambda one: one.strip(),
    "strip of what is not there": lambda one: one.strip("<>"),
    "lstrip and rstrip": lambda one: one.lstrip().rstrip(),
    "center": lambda one: one.center(80, "-"),
    "zfill": lambda one: one.zfill(80),
    "replace in the page": lambda one: f"<b>{one}</b>".replace("<b>", "<i>"),
    "replace in the placeholder alone": lambda one: one.replace("1", "one").replace("2", "two"),
    "split": lambda one: " ".join(f"a {one} b".split()),
    "splitlines": lambda one: "".join(f"a\n{one}\n".splitlines()),
    "expandtabs": lambda one: f"\t{one}".expandtabs(),
    "dedent": lambda one: textwrap.dedent(f"    {one}"),
    "wrapped where it is long enough": lambda one: textwrap.fill(f"some words and {one} and others", 60),
    "json": lambda one: json.dumps({"a": one, "b": [f"x{one}"]}),
    "a copy": lambda one: str(copy.copy(one)) + copy.deepcopy([one])[0],
    "normalized lines": lambda one: re.sub(r"\s+", " ", f"a \n {one} \t b"),
}


@pytest.mark.parametrize("way", WHOLE.values(), ids=WHOLE)
def test_what_leaves_it_whole(way: Callable[[str], str]) -> None:
    """All of it is found again, and what stands around it is what it would be around any other text."""
    here = places()
    placeholder = here.place(BADGE)
    text = str(way(placeholder))
    segments = split(text, here)
    assert segments is not None
    assert set(segments.places) == {BADGE}
    assert str(placeholder).join(segments.parts) == text
    assert len(segments.places) == text.count(str(placeholder))


def test_bytes() -> None:
    """A placeholder that was encoded is found in bytes, in UTF-8 and what is like it."""
    here = places()
    one = here.place(BADGE)
    for data in (f"ü{one}".encode(), b"a" + one.encode("ascii"), b"%s!" % one.encode(), f"ä{one}".encode("latin-1")):
        segments = split(data, here)
        assert segments is not None
        assert segments.places == (BADGE,)
        assert str(one).encode().join(segments.parts) == data


def test_which_window_stands_where() -> None:
    """Several of them, side by side and twice, in the order in which they stand."""
    here = places()
    badge, cart = here.place(BADGE), here.place(CART)
    assert split(f"{cart}{badge} {badge}{cart}", here) == Segments(("", "", " ", "", ""), (CART, BADGE, BADGE, CART))


def test_the_same_window_has_one_number() -> None:
    """A computation that places it a million times holds it once."""
    here = places()
    assert len({str(here.place(BADGE)) for _ in range(1000)}) == 1
    assert here.text_of(BADGE) == str(here.place(Place("|badge", b"\x80")))
    assert here.find(here.place(CART)) == CART


def test_text_without_windows_is_none_of_ours() -> None:
    """However much it looks like one."""
    here, others = places(), places()
    one = others.place(BADGE)
    for text in ("", "&", "0" * 60, str(one), f"{one:x>60}", html.escape(one), str(one)[:30], "1&1000000" * 9):
        assert split(text, here) is None
        assert split(text.encode(), here) is None


def test_placeholders_of_two_computations_have_nothing_in_common() -> None:
    """Each computation has numbers of its own."""
    texts = {str(places().place(BADGE)) for _ in range(100)}
    assert len({text[:14] for text in texts}) == len({text[-14:] for text in texts}) == 100


# --- how it was escaped


def escaped_twice(text: str) -> str:
    return html.escape(html.escape(text))


#: How the text gets there, what a window returns, and what then stands there.
STEPS_TAKEN: dict[str, tuple[Callable[[Placeholder[Any]], str], str, str]] = {
    "as it is": (lambda one: f"{one}", "", "<&'\">"),
    "html.escape": (html.escape, "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "html.escape of the page": (lambda one: html.escape(f"<{one}>"), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "html.escape without quotes": (lambda one: html.escape(f"<{one}>", quote=False), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "twice": (escaped_twice, "ee", escaped_twice("<&'\">")),
    "as entities": (lambda one: f"{one}".replace("&", "&#38;"), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "as hexadecimal ones": (lambda one: f"{one}".replace("&", "&#x26;"), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "escaped and in capitals": (lambda one: html.escape(f"{one}").upper(), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "markupsafe.escape": (markupsafe.escape, "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "escaped again": (lambda one: markupsafe.escape(markupsafe.escape(one)), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "escape of the page": (lambda one: markupsafe.escape(f"<{one}>"), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup": (markupsafe.Markup, "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup %": (lambda one: markupsafe.Markup("<p>%s") % one, "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup % of a page": (lambda one: markupsafe.Markup("<p>%s") % f"<{one}", "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup.format": (lambda one: markupsafe.Markup("<p>{}").format(one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup +": (lambda one: markupsafe.Markup("<p>") + one, "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "+ Markup": (lambda one: one + markupsafe.Markup("<p>"), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup.join": (lambda one: markupsafe.Markup(", ").join([one]), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Markup of a page": (lambda one: markupsafe.Markup(f"<p>{one}"), "", "<&'\">"),
    "Jinja": (lambda one: rendered("{{ x }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja, in a page": (lambda one: rendered("{{ x }}", x=f"<{one}"), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |e": (lambda one: rendered("{{ x|e }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |forceescape": (lambda one: rendered("{{ x|forceescape }}", x=one), "he", escaped_twice("<&'\">")),
    "Jinja |safe": (lambda one: rendered("{{ x|safe }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |upper": (lambda one: rendered("{{ x|upper }}", x=one), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja ~": (lambda one: rendered("{{ 'a' ~ x }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |join": (lambda one: rendered("{{ [x, '<']|join }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |format": (lambda one: rendered("{{ '<%s>'|format(x) }}", x=one), "e", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |xmlattr": (lambda one: rendered("{{ {'a': x}|xmlattr }}", x=one), "h", "&lt;&amp;&#x27;&quot;&gt;"),
    "Jinja |urlencode": (lambda one: rendered("?q={{ x|urlencode }}", x=one), "u", "%3C%26%27%22%3E"),
    "quote": (lambda one: urllib.parse.quote(one), "u", "%3C%26%27%22%3E"),
    "urlencode": (lambda one: urllib.parse.urlencode({"q": f"a {one}"}), "u", "%3C%26%27%22%3E"),
    "a link, escaped": (lambda one: html.escape(urllib.parse.quote(f"{one}")), "u", "%3C%26%27%22%3E"),
    "a URL with escaped text": (
        lambda one: rendered("{{ x }}", x=f"/?{urllib.parse.quote(one)}"),
        "u",
        "%3C%26%27%22%3E",
    ),
    "URL in a URL": (lambda one: urllib.parse.quote(urllib.parse.quote(f"{one}")), "uu", "%253C%2526%2527%2522%253E"),
    "HTML in a URL": (
        lambda one: urllib.parse.quote(html.escape(f"{one}")),
        "eu",
        "%26lt%3B%26amp%3B%26%23x27%3B%26quot%3B%26gt%3B",
    ),
    "HTML in a script": (
        lambda one: rendered("{{ x|tojson }}", x=html.escape(f"{one}")),
        "es",
        "\\u0026lt;\\u0026amp;\\u0026#x27;\\u0026quot;\\u0026gt;",
    ),
    "Jinja |tojson": (lambda one: rendered("{{ x|tojson }}", x=one), "V", '"\\u003c\\u0026\\u0027\\"\\u003e"'),
    "Jinja |tojson of a page": (
        lambda one: rendered("{{ x|tojson }}", x=f"a{one}"),
        "s",
        "\\u003c\\u0026\\u0027\\u0022\\u003e",
    ),
    "Jinja |tojson, escaped": (
        lambda one: rendered("{{ x|tojson|forceescape }}", x=[one]),
        "s",
        "\\u003c\\u0026\\u0027\\u0022\\u003e",
    ),
}


@pytest.mark.parametrize(("way", "how", "expected"), STEPS_TAKEN.values(), ids=STEPS_TAKEN)
def test_how_it_was_escaped(way: Callable[[Placeholder[Any]], str], how: str, expected: str) -> None:
    """What the window returns is escaped as what stands around it was."""
    here = places()
    segments = split(str(way(here.place(BADGE))), here)
    assert segments is not None
    assert {place.how for place in segments.places} == {how}
    assert as_text("<&'\">", segments.places[0]) == expected


def test_markup_stays_what_it_is() -> None:
    """Where a template asks for it; in text that is escaped as a whole, it is escaped as all of it."""
    bold = markupsafe.Markup("<b>&amp;</b>")
    for way in ("{{ x }}", "{{ x|e }}", "{{ '<' ~ x }}"):
        here = places()
        segments = split(rendered(way, x=here.place(BADGE)), here)
        assert segments is not None
        assert as_text(bold, segments.places[0]) == bold
    here = places()
    segments = split(rendered("{{ x }}", x=f"{here.place(BADGE)}"), here)
    assert segments is not None
    assert as_text(bold, segments.places[0]) == "&lt;b&gt;&amp;amp;&lt;/b&gt;"
    assert as_text(bold, Place("|badge", b"", "")) == bold


@settings(deadline=None)
@given(
    text=st.text(),
    way=st.sampled_from([one for one, _, _ in STEPS_TAKEN.values()]),
    around=st.sampled_from(["{}", "<p>{}</p>", "{0} and {0}", "'{}'", '"{}"']),
)
def test_nothing_is_less_escaped_than_what_it_stands_in(text: str, way: Callable[[Any], str], around: str) -> None:
    """Whatever a window returns: where `<`, `&`, `'` or `"` of any other text were escaped, its own are."""
    plain = str(way(around.format(text)))
    for placed in (lambda one: around.format(one), lambda one: one):
        here = places()
        segments = split(str(way(placed(here.place(BADGE)))), here)
        assert segments is not None
        filled = woven(segments.parts, [as_text(text, place) for place in segments.places])
        if placed(text) != text or around == "{}":
            for character in "<>'\"\u2028":
                assert filled.count(character) <= plain.count(character)


def test_quotes_in_a_script_that_is_escaped_afterwards() -> None:
    """What `tojson` leaves of quotes is escaped in an attribute; the window's text has none, in any such place."""
    here = places()
    page = rendered('<a data-x="{{ x|tojson|forceescape }}">', x=[f"a {here.place(BADGE)}", here.place(BADGE)])
    segments = split(page, here)
    assert segments is not None
    filled = woven(segments.parts, [as_text('" onclick="x', place) for place in segments.places])
    assert filled.count('"') == 2
    assert json.loads(html.unescape(re.findall('data-x="(.*)"', filled)[0])) == ['a " onclick="x', '" onclick="x']


# --- in JSON


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (lambda one: {"a": one}, {"a": [1, {"b": None}]}),
        (lambda one: [one, "x", one], [[1, {"b": None}], "x", [1, {"b": None}]]),
        (lambda one: one, [1, {"b": None}]),
    ],
)
@pytest.mark.parametrize("way", [json.dumps, lambda one: json.dumps(one, separators=(",", ":"))])
def test_a_whole_string_of_json_is_any_value(
    document: Callable[[str], Any], expected: object, way: Callable[[Any], str]
) -> None:
    """The quotes go, too."""
    here = places()
    for text in (way(document(here.place(BADGE))), way(document(here.place(BADGE))).encode()):
        segments = split(text, here, json=True)
        assert segments is not None
        assert {place.how for place in segments.places} == {"v"}
        filled = [as_text([1, {"b": None}], place) for place in segments.places]
        texts = filled if isinstance(text, str) else [one.encode() for one in filled]
        assert json.loads(woven(segments.parts, texts)) == expected


@pytest.mark.parametrize("text", ["a", '"', "\\", '\\"', "\u2028", "\x00\n", "ü€😀", "</script>", '"}, {"', "'"])
@pytest.mark.parametrize(
    "document",
    [
        lambda one: [f"a {one}"],
        lambda one: [f'"{one}"'],
        lambda one: [f'"{one}', f'{one}"'],
        lambda one: [f"\\{one}\\"],
        lambda one: [f'\\"{one}\\"'],
        lambda one: {one: 1},
        lambda one: {"a": {f"x {one}": f"{one} "}},
    ],
)
@pytest.mark.parametrize("dump", [json.dumps, lambda one: str(rendered("{{ x|tojson }}", x=one))])
def test_a_part_of_a_string_of_json_is_text(
    text: str, document: Callable[[str], Any], dump: Callable[[Any], str]
) -> None:
    """It stays within the string, whatever it is; in a key too."""
    here = places()
    segments = split(dump(document(here.place(BADGE))), here, json=True)
    assert segments is not None
    whole = woven(segments.parts, [as_text(text, place) for place in segments.places])
    assert json.loads(whole) == json.loads(json.dumps(document(text)))


@pytest.mark.parametrize(
    "document", [lambda one: {one: 1}, lambda one: {"a": {one: 1}}, lambda one: [f'"{one}'], lambda one: [f'{one}"']]
)
def test_a_key_and_a_part_are_text(document: Callable[[str], Any]) -> None:
    """Nothing but text can stand there, also where a quote is beside it."""
    here = places()
    segments = split(json.dumps(document(here.place(BADGE))), here, json=True)
    assert segments is not None
    with pytest.raises(WindowError, match="badge returned what cannot stand where it was placed: 5 stands where text"):
        as_text(5, segments.places[0])


# --- cut and changed


CUT: dict[str, Callable[[str], object]] = {
    "[:9]": lambda one: one[:9],
    "[0]": lambda one: one[0],
    "reversed": lambda one: "".join(reversed(one)),
    "list": lambda one: list(one),
    "first": lambda one: next(iter(one)),
    "unpacked": lambda one: [*one],
    "joined": lambda one: "-".join(one),
    ".5": lambda one: f"{one:.5}",
    "strip": lambda one: one.strip("0123456789"),
    "lstrip": lambda one: one.lstrip("0123456789"),
    "rstrip": lambda one: one.rstrip("0123456789"),
    "Jinja |truncate": lambda one: rendered("{{ x|truncate(9, true, '', 0) }}", x=one),
    "Jinja |first": lambda one: rendered("{{ x|first }}", x=one),
    "Jinja |list": lambda one: rendered("{{ x|list }}", x=one),
    "Jinja |reverse": lambda one: rendered("{{ x|reverse }}", x=one),
}


@pytest.mark.parametrize("way", CUT.values(), ids=CUT)
def test_it_is_not_cut(way: Callable[[str], object]) -> None:
    """Whoever has the placeholder itself is told at once, of which window it is and what to do."""
    with pytest.raises(WindowError, match=r"the placeholder of badge was cut, by .* Cut it inside the window"):
        way(places().place(BADGE))


CHANGED: dict[str, Callable[[str], str]] = {
    "its beginning": lambda one: f"a page, {one}"[:40],
    "its end": lambda one: f"{one} is the page"[10:],
    "textwrap": lambda one: textwrap.fill(f"a page that is {one} for you", 40),
    "its other side": lambda one: f"{one}"[:-22] + "13579" * 4 + "13",
    "both ends": lambda one: f"{one}"[5:-5],
    "shorten": lambda one: textwrap.shorten(f"{one} is the page of the day", 20, placeholder="") + str(one)[:20],
    "Jinja |truncate": lambda one: rendered("{{ x|truncate(40, true, '') }}", x=f"a page {one}"),
    "Jinja |wordwrap": lambda one: rendered("{{ x|wordwrap(20) }}", x=f"a page {one}"),
    "the &": lambda one: f"{one}".replace("&", " and "),
    "a comma each thousand": lambda one: re.sub(r"(\d{3})(?=\d)", r"\1,", f"{one}")[:26] + f"{one}"[26:],
    "masked numbers": lambda one: re.sub(r"\b\d{13,24}\b", "****", f"{one}"),
    "URL in HTML in a URL": lambda one: urllib.parse.quote(urllib.parse.quote(html.escape(f"{one}"))),
    "HTML in a script in a script": lambda one: rendered(
        "{{ x|tojson }}", x=str(rendered("{{ x|tojson }}", x=html.escape(f"<{one}>")))
    ),
    "JSON in JSON, in a script": lambda one: json.dumps(rendered("{{ x|tojson }}", x=one)),
    "titled once it was escaped": lambda one: html.escape(f"{one}").title(),
    "tags after each digit": lambda one: str(one)[:30] + "<b>" + str(one)[30:],
}


@pytest.mark.parametrize("way", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("encoded", [False, True])
def test_what_was_cut_or_changed_is_seen(way: Callable[[str], str], encoded: bool) -> None:
    """In text that was made of it, with where it stands and what was around it."""
    here = places()
    text: Any = way(str(here.place(BADGE)))
    with pytest.raises(
        WindowError, match=r"value: the placeholder of a window was cut or changed, near '.*inside the win"
    ):
        split(text.encode() if encoded else text, here)


@pytest.mark.parametrize("digit", "0123456789")
def test_one_digit_replaced_everywhere(digit: str) -> None:
    """A side of the placeholder is left as it was: it is never taken for text."""
    for _ in range(20):
        here = places()
        one = f"{here.place(BADGE)}"
        if digit in one.replace("&1000000", ""):
            with pytest.raises(WindowError, match="changed"):
                split(one.replace(digit, "x"), here)


@settings(deadline=None)
@given(data=st.data())
def test_any_part_that_is_long_enough_is_seen(data: st.DataObject) -> None:
    """14 digits at an end of either side, in whatever surroundings; or it is whole."""
    here = places()
    one = str(here.place(BADGE))
    start = data.draw(st.integers(0, len(one)))
    end = data.draw(st.integers(start, len(one)))
    around = st.text("ab &;<>é\n")  # without digits, which might go on with it
    text = data.draw(around) + one[start:end] + data.draw(around)
    if start == 0 and end == len(one):
        assert split(text, here) is not None
    elif any(start <= first and first + 14 <= end for first in (0, 8, 30, 38)):
        with pytest.raises(WindowError):
            split(text, here)
    else:
        assert split(text, here) is None


def test_a_number_that_there_is_not() -> None:
    """A placeholder whose number was changed is no other window's."""
    here = places()
    text = str(here.place(BADGE)).replace("&1000000", "&1000001")
    with pytest.raises(WindowError, match=r"a placeholder in page\(\) was changed: there is none of the number 000001"):
        split(text, here)


def test_escaped_without_an_end() -> None:
    """So many steps are never meant."""
    here = places()
    text = f"{here.place(BADGE)}"
    for _ in range(MAX_STEPS):
        text = html.escape(text)
    assert split(text, here) is not None
    data = text.encode()
    assert all(here.unfinished(data[:length]) == length for length in range(1, len(data)))
    with pytest.raises(WindowError, match=f"badge was escaped more than {MAX_STEPS} times"):
        split(html.escape(text), here)


def test_pickles() -> None:
    """It means nothing elsewhere."""
    one = places().place(BADGE)
    for pickled in (one, [one], {"a": (one,)}):
        with pytest.raises(WindowError, match="the placeholder of badge cannot be pickled"):
            pickle.dumps(pickled)


def test_copies_are_itself() -> None:
    """Where a dataclass or a model is copied, it is as it was."""
    one = places().place(BADGE)
    assert copy.copy(one) is one
    assert copy.deepcopy({"a": [one]})["a"][0] is one


# --- streams


def sent_in(chunks: Iterable[bytes], here: Places) -> Segments:
    """A body that goes out chunk by chunk, each as far as it need not wait, put together again."""
    parts: list[bytes] = [b""]
    found: list[Place] = []
    *others, last = chunks
    held = b""
    for chunk in (*others, None):
        held += last if chunk is None else chunk
        ready = held if chunk is None else held[: len(held) - here.unfinished(held)]
        held = held[len(ready) :]
        segments = split(ready, here, json=True) or Segments((ready,), ())
        parts[-1] += segments.parts[0]
        parts += segments.parts[1:]
        found += segments.places
    return Segments(tuple(parts), tuple(found))


@settings(deadline=None)
@given(st.data())
def test_no_placeholder_is_torn_between_two_chunks(data: st.DataObject) -> None:
    """However a body is cut into chunks: what `unfinished` holds back is never sent before the rest has come."""
    here = places()
    ways: list[Callable[[Any], str]] = [
        str,
        html.escape,
        escaped_twice,
        urllib.parse.quote,
        lambda one: rendered("{{ x|tojson }}", x=[one]),
        lambda one: json.dumps({one: one}, separators=(",", ":")),
    ]
    pieces = data.draw(st.lists(st.one_of(st.text(), st.sampled_from(ways)), min_size=1, max_size=5))
    body = "".join(one if isinstance(one, str) else one(here.place(BADGE)) for one in pieces).encode()
    whole = split(body, here, json=True) or Segments((body,), ())
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=6)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert sent_in(chunks, here) == whole


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        '"{}"',
        '\\"{}\\"',
        '\\\\"{}"',
        '"{}":',
        '"{}\\"',
        "{0}{0}",
        '"{0}{0}"',
        '"{0}","{0}"',
        '"{0}""{0}"',
        '"{0}"1{0}',
    ],
)
@pytest.mark.parametrize("way", [way for way, _, _ in STEPS_TAKEN.values()], ids=STEPS_TAKEN)
def test_a_placeholder_is_found_wherever_a_body_is_cut(way: Callable[[Placeholder[Any]], str], around: str) -> None:
    """At each of its bytes and those around it, in two or in single bytes, however it was escaped and between what."""
    here = places()
    body = f"x{around.format(way(here.place(BADGE)))}\n\n".encode()
    whole = split(body, here, json=True)
    assert whole is not None
    for at in range(len(body) + 1):
        assert sent_in([body[:at], body[at:]], here) == whole
    assert sent_in([body[at : at + 1] for at in range(len(body))], here) == whole


def test_what_cannot_begin_a_placeholder_goes_out_at_once() -> None:
    """Of the end of a chunk nothing is held but what the next one may make another thing of."""
    here = places()
    one = f"{here.place(BADGE)}"
    side = one[:22]
    script = f"{jinja.from_string('{{ x|tojson }}').render(x=one)}"
    for text, held in {
        "": "",
        "data: 1\n\n": "",
        "<p>": "",
        "a page'": "",
        'a "page"': '"',
        "a page\\": "\\",
        'a \\"page\\"': "",
        one: "",
        f"data: {one}\n\n": "",
        f"data: {one}\n": "",
        f"data: {script}\n\n": "",
        f"data: {script}\n": "",
        f"data: {script}": script,
        f'"{one}': f'"{one}',
        f'"{one}"': f'"{one}"',
        f'"{one}":': "",
        f'"{one}",': "",
        f'"{one}\n': "",
        f"x{one[0]}": one[0],
        f"x{side[:21]}": side[:21],
        f"x{side}": side,
        f"x{one[:-1]}": one[:-1],
        f'x"{one[:-1]}': f'"{one[:-1]}',
        f'x\\"{one[:-1]}': one[:-1],
        f'"{one}"{side}': f'"{one}"{side}',
        f"{one}{side}": side,
        f'"{one}","{side}': f'"{side}',
    }.items():
        data = text.encode()
        assert data[len(data) - here.unfinished(data) :].decode() == held, text


# --- what a window returned


def test_what_stands_in_text() -> None:
    """Text, Markup, what gives HTML, and in bytes bytes."""
    assert as_text("a", BADGE) == "a"
    assert type(as_text(markupsafe.Markup("a"), BADGE)) is str
    assert as_bytes(b"\xff", BADGE) == b"\xff"
    assert as_bytes("ü", BADGE) == "ü".encode()
    assert as_bytes("ü€", BADGE, "latin-1") == b"\xfc?"

    class Tag:
        def __html__(self) -> str:
            return "<b>"

    assert as_text(Tag(), BADGE) == as_text(Tag(), Place("|badge", b"", "h")) == "<b>"


@pytest.mark.parametrize("value", [None, 5, 1.5, True, ["a"], {"a": 1}, b"bytes", object()])
@pytest.mark.parametrize("how", ["", "h", "e", "u", "j", "s", "he", "ue"])
def test_what_cannot_stand_in_text(value: object, how: str) -> None:
    """Said with what it is, and what to do."""
    with pytest.raises(WindowError, match=r"badge returned what cannot stand where it was placed: .* return str"):
        as_text(value, Place("|badge", b"", how))


@pytest.mark.parametrize("value", [object(), {1, 2}.__iter__(), float])
def test_what_cannot_stand_in_json(value: object) -> None:
    """What no JSON is made of."""
    with pytest.raises(WindowError, match="badge returned what cannot stand where it was placed"):
        as_text(value, Place("|badge", b"", "v"))


def test_bytes_where_they_were_escaped() -> None:
    """What is escaped is text."""
    with pytest.raises(WindowError, match="return str"):
        as_bytes(b"<", Place("|badge", b"", "e"))


def test_every_step_has_its_letter() -> None:
    """They are stored: none may get another meaning."""
    text = '<a href="x">\'&\u2028\\'
    assert {letter: step(text) for letter, step in STEPS.items()} == {
        "h": "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;\u2028\\",
        "e": "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;\u2028\\",
        "u": "%3Ca%20href%3D%22x%22%3E%27%26%E2%80%A8%5C",
        "j": '<a href=\\"x\\">\'&\u2028\\\\',
        "s": "\\u003ca href=\\u0022x\\u0022\\u003e\\u0027\\u0026\\u2028\\\\",
        "v": '"<a href=\\"x\\">\'&\u2028\\\\"',
        "V": '"\\u003ca href=\\"x\\"\\u003e\\u0027\\u0026\\u2028\\\\"',
    }


# --- where they are kept


def test_threads_share_one() -> None:
    """Two threads of a computation that place its first windows at once find each other's."""
    for _ in range(200):
        scope = Scope("page()", None, "")
        barrier = threading.Barrier(4)
        made: list[Places] = []

        def first(scope: Scope = scope, barrier: threading.Barrier = barrier, made: list[Places] = made) -> None:
            barrier.wait()
            made.append(places_here(scope))

        threads = [threading.Thread(target=first) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {id(one) for one in made} == {id(scope.places)}


def test_threads_place_without_losing_one() -> None:
    """Every window that any of them placed has a number of its own."""
    here = places()
    texts: list[list[str]] = [[] for _ in range(4)]

    def place(of: int) -> None:
        texts[of] = [here.text_of(Place("|w", str((of, i)).encode())) for i in range(500)]

    threads = [threading.Thread(target=place, args=(of,)) for of in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for of, own in enumerate(texts):
        for i, text in enumerate(own):
            assert here.find(text) == Place("|w", str((of, i)).encode())


def test_too_many() -> None:
    """A loop without an end is said to be one."""
    here = places()
    here._placed = [BADGE] * 10**6
    with pytest.raises(WindowError, match=r"page\(\) places 1000000 windows"):
        here.place(CART)
