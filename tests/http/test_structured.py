"""Structured fields (RFC 9651): read strictly, or not at all."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.structured import (
    FIELD_MAX,
    OPAQUE,
    Token,
    Value,
    escape,
    parse_dictionary,
    parse_string_list,
    unescape,
    write_name,
    write_string,
    write_string_list,
)

lines = st.lists(st.binary(max_size=60) | st.text('ab*=,;"\\ ?01:@%().-\t').map(str.encode), max_size=4)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([], {}),
        ([b""], {}),
        ([b"   "], {}),
        ([b"a"], {"a": True}),
        ([b"  a=1 "], {"a": 1}),
        ([b"a=1, b=2"], {"a": 1, "b": 2}),
        ([b"a=1", b"b=2"], {"a": 1, "b": 2}),
        ([b"a=1 \t,\t b"], {"a": 1, "b": True}),
        ([b"a=1;x=2;y, b;z"], {"a": 1, "b": True}),
        ([b"a=1; x"], {"a": 1}),
        ([b"*a_b-c.d*9=1"], {"*a_b-c.d*9": 1}),
    ],
)
def test_a_dictionary_is_read_rfc9651_4_2_2(field: list[bytes], expected: dict[str, Value]) -> None:
    assert parse_dictionary(field) == expected


def test_a_field_does_not_begin_with_a_tab_rfc9651_4_2() -> None:
    assert parse_dictionary([b"\ta"]) is None
    assert parse_dictionary([b"z", b"\ta"]) == {"z": True, "a": True}


def test_of_a_key_that_comes_twice_the_last_value_counts_rfc9651_4_2_2() -> None:
    assert parse_dictionary([b"a=1, b=2, a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    "field",
    [b"a,", b",a", b"a,,b", b"a b", b"A=1", b"aB=1", b"1=a", b"a =1", b"a= 1", b"a=", b"=1", b"a;", b"a;X=1", b"a;b=",
     b"a ;b", b"a\x00", b"\xc3\xa9", b'"a"'],
)  # fmt: skip
def test_one_error_costs_the_whole_dictionary_rfc9651_4_2(field: bytes) -> None:
    assert parse_dictionary([field]) is None
    assert parse_dictionary([b"z=1", field]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", 0),
        (b"-0", 0),
        (b"007", 7),
        (b"-15", -15),
        (b"999999999999999", 999_999_999_999_999),
        (b"1.5", Decimal("1.5")),
        (b"-0.125", Decimal("-0.125")),
        (b"123456789012.1", Decimal("123456789012.1")),
        (b'""', ""),
        (b'"a, b; c=d"', "a, b; c=d"),
        (rb'"a\"b\\c"', 'a"b\\c'),
        (b"tok", Token("tok")),
        (b"*a/b:c'%", Token("*a/b:c'%")),
        (b"?1", True),
        (b"?0", False),
        (b":aGVsbG8=:", OPAQUE),
        (b"::", OPAQUE),
        (b"@1659578233", OPAQUE),
        (b"@-1", OPAQUE),
        (b'%"caf%c3%a9"', OPAQUE),
        (b"()", OPAQUE),
        (b'(1 "a;b)" x;q=1  ?0 );p', OPAQUE),
    ],
)
def test_every_type_is_read_rfc9651_4_2_3(value: bytes, expected: Value) -> None:
    read = parse_dictionary([b"a=" + value + b";p=" + (value if value[0] != 0x28 else b"1") + b", b"])
    assert read is not None
    assert read == {"a": expected, "b": True}
    assert type(read["a"]) is type(expected)


@pytest.mark.parametrize(
    "value",
    [b"1234567890123456", b"1.", b".5", b"1.2345", b"1234567890123.1", b"1.5.2", b"-", b"--1", b"+1", b"1a", b'"',
     b'"a', b'"a\\"', b'"a\\b"', b'"\xc3\xa9"', b'"\x7f"', b'"\t"', b"?", b"?2", b"?true", b":", b":a", b":*:",
     b":a=b:", b"@", b"@1.5", b"@a", b'%"a', b'%a"', b'%"%C3%A9"', b'%"%c3"', b'%"%zz"', b"(", b"(1", b"(1 2", b"(1,2)",
     b"((1))", b'("a""b")', b"(1\t2)", b")"],
)  # fmt: skip
def test_a_value_that_is_of_no_type_costs_the_field_rfc9651_4_2_3(value: bytes) -> None:
    assert parse_dictionary([b"a=" + value]) is None
    assert parse_dictionary([b"z=1;a=" + value]) is None


def test_an_inner_list_is_no_value_of_a_parameter_rfc9651_4_2_3_2() -> None:
    assert parse_dictionary([b"a;b=(1)"]) is None


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([], ()),
        ([b" "], ()),
        ([b'"a"'], ("a",)),
        ([b'"a", "b"', b'"c"'], ("a", "b", "c")),
        ([b'"a";x=1;y , "a"'], ("a", "a")),
        ([b'"a, b"'], ("a, b",)),
    ],
)
def test_a_list_of_strings_is_read_rfc9651_4_2_1(field: list[bytes], expected: tuple[str, ...]) -> None:
    assert parse_string_list(field) == expected


@pytest.mark.parametrize("field", [b'"a",', b'"a" "b"', b'"a', b'"a", \xff', b'"a";', b'"a";X'])
def test_a_list_that_does_not_parse_is_none_rfc9651_4_2(field: bytes) -> None:
    assert parse_string_list([field]) is None


@pytest.mark.parametrize("member", [b"a", b"1", b"?1", b'("b")', b":YQ==:", b"1.5"])
def test_a_member_that_is_no_string_costs_the_list_rfc9651_2(member: bytes) -> None:
    """RFC 9875 says nothing of such members, and then RFC 9651 §2 has the entire field ignored."""
    assert parse_string_list([b'"a"', member]) is None


def test_a_list_of_1024_members_is_read_rfc9651_3_1() -> None:
    names = tuple(f"group-{number}" for number in range(1024))
    assert parse_string_list([write_string_list(names)]) == names


def test_a_field_that_is_too_long_is_not_read() -> None:
    longest = b"a=" + b'"' + b"x" * (FIELD_MAX - 4) + b'"'
    assert parse_dictionary([longest]) == {"a": "x" * (FIELD_MAX - 4)}
    assert parse_dictionary([longest + b" "]) is None


@given(lines)
def test_reading_never_raises_rfc9651_4_2(field: list[bytes]) -> None:
    parse_dictionary(field)
    parse_string_list(field)


@pytest.mark.parametrize(
    "unit",
    [b"a,", b"a;", b"a;b", b'a="', b"a=(", b"a=(1 ", b"a=1;b=2,", b'"\\', b'"\\"', b'%"%61', b" ", b"a=:QQ", b"("],
)
def test_the_longest_hostile_field_is_read_in_linear_time(unit: bytes) -> None:
    """What is quadratic in 64 KiB takes minutes."""
    field = (unit * FIELD_MAX)[:FIELD_MAX]
    begun = time.process_time()
    parse_dictionary([field])
    parse_dictionary([b"a=" + field[2:]])
    parse_string_list([field])
    assert time.process_time() - begun < 5


@given(st.lists(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20), max_size=10))
def test_strings_that_were_written_are_read_back_rfc9651_4_1_6(names: list[str]) -> None:
    assert parse_string_list([write_string_list(names)]) == tuple(names)


@pytest.mark.parametrize("text", ["é", "a\n", "\x00", "\x7f", "\t"])
def test_a_string_that_is_not_printable_ascii_is_not_written_rfc9651_4_1_6(text: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        write_string(text)
    with pytest.raises(ValueError, match="printable ASCII"):
        write_string_list(["a", text])


def test_a_name_is_a_token_where_it_can_be_rfc9651_3_3_4() -> None:
    assert write_name("asynctag") == "asynctag"
    assert write_name("my cache") == '"my cache"'
    assert write_name("9") == '"9"'
    assert write_name("é") == '"%C3%A9"'
    assert write_name("") == '""'


@given(st.text())
def test_what_is_escaped_can_be_written_and_comes_back(text: str) -> None:
    assert unescape(escape(text)) == text
    write_string(escape(text))


@given(st.text(), st.text())
def test_two_texts_are_never_escaped_alike(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) is (one == other)


@pytest.mark.parametrize("text", ["100%", "%zz", "%ff", "%C3", "a%2"])
def test_what_nobody_escaped_stays_as_it_is(text: str) -> None:
    assert unescape(text) == text


@given(st.text("%0123456789abcdefABCDEF", max_size=12))
def test_unescaping_never_raises_and_gives_text_of_unicode(text: str) -> None:
    unescape(text).encode()
