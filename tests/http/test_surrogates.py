"""Tags in the words of other caches. What is lost here, another cache serves stale."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import AsynctagError, ConfigurationError, InvalidTagError
from asynctag.http.surrogates import (
    HASH_LENGTH,
    OVERFLOW,
    Purge,
    PurgeError,
    Purger,
    Surrogates,
    parse_groups,
    write_groups,
)
from asynctag.tags import MAX_TAG_BYTES, check_tag

TOKEN = "secret-token"
FASTLY = Surrogates.fastly("service1", TOKEN)
CLOUDFLARE = Surrogates.cloudflare("zone1", TOKEN)
VARNISH = Surrogates.varnish(["http://10.0.0.1:6081", "http://10.0.0.2:6081/"])
VENDORS = [FASTLY, CLOUDFLARE, VARNISH]
each_vendor = pytest.mark.parametrize("surrogates", VENDORS, ids=["fastly", "cloudflare", "varnish"])

any_tag = st.text(min_size=1, max_size=40) | st.text('aAbB:;,% é"\\', min_size=1, max_size=8)


def keys_sent(surrogates: Surrogates, *tags: str) -> set[str]:
    """The keys in the field, as the CDN divides them."""
    header = surrogates.header(tags)
    assert isinstance(header, tuple)
    text = header[1].decode("ascii")
    return set(text.replace(",", " ").split() if surrogates.name == "xkey" else text.split(surrogates.delimiter))


def written(tags: Iterable[str]) -> bytes:
    """The tags as groups, however many there are."""
    value = write_groups(tags, 64_000)
    assert isinstance(value, bytes)
    return value


def keys_purged(purges: list[Purge]) -> list[str]:
    named: list[str] = []
    for purge in purges:
        if purge.method == "PURGE":
            named += purge.headers[0][1].split(" ")
        else:
            (keys,) = json.loads(purge.body).values()
            named += keys
    return named


# --- groups ------------------------------------------------------------------------------------------


def test_groups_are_tags_rfc9875_2() -> None:
    assert parse_groups([b'"product:1", "scripts"', b'"a;b=c"']) == ("product:1", "scripts", "a;b=c")
    assert parse_groups([b'"a", "b", "a"']) == ("a", "b")
    assert parse_groups([]) == ()


def test_parameters_of_groups_are_ignored_rfc9875_2() -> None:
    assert parse_groups([b'"a";revalidate, "b";x="y"']) == ("a", "b")


def test_groups_are_case_sensitive_rfc9875_2_1() -> None:
    assert parse_groups([b'"Tag", "tag"']) == ("Tag", "tag")


@pytest.mark.parametrize("field", [b"scripts", b'"a", scripts', b'"a", 1', b'"a", ("b")', b'"a",', b'"a', b"\xff"])
def test_a_field_that_is_no_list_of_strings_has_no_groups_rfc9651_2(field: bytes) -> None:
    assert parse_groups([field]) == ()


def test_many_groups_are_all_taken_rfc9875_2() -> None:
    """At least 32 groups of 32 characters: here 1,000 of 40."""
    names = tuple(f"{number:040}" for number in range(1000))
    assert parse_groups([written(names)]) == names


@pytest.mark.parametrize("group", ["", "x" * (MAX_TAG_BYTES + 1), "%C3%A9" * 600])
def test_a_group_that_can_be_no_tag_is_hashed_to_one(group: str) -> None:
    """The response that carries it and the invalidation that names it still meet."""
    (tag,) = parse_groups([b'"%b"' % group.encode()])
    assert check_tag(tag) == tag
    assert parse_groups([b'"a", "%b";x' % group.encode()]) == ("a", tag)
    assert parse_groups([b'"%bx"' % group.encode()]) != (tag,)


def test_a_tag_that_a_string_cannot_hold_is_percent_encoded_rfc9651_3_3_3() -> None:
    assert write_groups(["café", "100%", 'a"b\\c', "x\r\ny"]) == rb'"100%25", "a\"b\\c", "caf%C3%A9", "x%0D%0Ay"'


@given(st.lists(st.text(min_size=1, max_size=30), unique=True, min_size=1, max_size=8))
def test_tags_and_groups_map_one_to_one(tags: list[str]) -> None:
    assert parse_groups([written(tags)]) == tuple(sorted(tags))


def test_the_longest_tag_comes_back() -> None:
    tag = "é" * (MAX_TAG_BYTES // 2)
    assert parse_groups([written([tag])]) == (tag,)


def test_groups_are_sorted_and_each_is_written_once() -> None:
    assert write_groups(iter(["b", "a", "b"])) == b'"a", "b"'
    assert write_groups([]) is None


def test_groups_above_the_limit_are_an_overflow_and_none_is_left_out() -> None:
    assert write_groups(["aa", "bb"], 10) == b'"aa", "bb"'
    assert write_groups(["aa", "bb"], 9) is OVERFLOW


@given(st.lists(st.binary(max_size=60) | st.text('a%9F"\\, ;').map(str.encode), max_size=3))
def test_reading_groups_never_raises_and_gives_tags(lines: list[bytes]) -> None:
    for tag in parse_groups(lines):
        check_tag(tag)


# --- keys --------------------------------------------------------------------------------------------


def test_each_vendor_has_its_field() -> None:
    assert FASTLY.header(["b", "a", "b"]) == (b"surrogate-key", b"a b")
    assert CLOUDFLARE.header(["b", "a"]) == (b"cache-tag", b"a,b")
    assert VARNISH.header(["b", "a"]) == (b"xkey", b"a b")


@each_vendor
def test_without_tags_there_is_no_field(surrogates: Surrogates) -> None:
    assert surrogates.header([]) is None


@each_vendor
@pytest.mark.parametrize("tag", ["a b", "é", "a\tb", "\x7f", " ", "é" * 512])
def test_a_tag_that_can_be_no_key_is_hashed(surrogates: Surrogates, tag: str) -> None:
    (key,) = keys_sent(surrogates, tag)
    assert len(key) == HASH_LENGTH
    assert key.isalnum()
    assert (key,) == surrogates.keys([tag])


@pytest.mark.parametrize(("surrogates", "is_plain"), [(FASTLY, True), (CLOUDFLARE, False), (VARNISH, False)])
def test_a_comma_divides_the_keys_of_some(surrogates: Surrogates, is_plain: bool) -> None:
    (key,) = keys_sent(surrogates, "a,b")
    assert (key == "a,b") is is_plain


def test_keys_that_differ_in_case_are_one_where_the_cdn_takes_them_for_one() -> None:
    assert CLOUDFLARE.header(["Tag", "tag"]) == (b"cache-tag", b"tag")
    assert FASTLY.header(["Tag", "tag"]) == (b"surrogate-key", b"Tag tag")
    assert "tag" in CLOUDFLARE.keys(["TAG"])


@each_vendor
def test_all_keys_are_hashed_where_plain_ones_are_too_long_together(surrogates: Surrogates) -> None:
    many = [f"{'x' * 100}:{number}" for number in range(200)]
    keys = keys_sent(surrogates, *many)
    assert len(keys) == len(many)
    assert {len(key) for key in keys} == {HASH_LENGTH}


@each_vendor
def test_a_field_is_never_too_long_and_never_lacks_a_key(surrogates: Surrogates) -> None:
    fitting = (surrogates.longest_field + 1) // (HASH_LENGTH + 1)
    header = surrogates.header([f"{'x' * 100}:{number}" for number in range(fitting)])
    assert isinstance(header, tuple)
    assert len(header[1]) <= surrogates.longest_field
    assert surrogates.header([f"{'x' * 100}:{number}" for number in range(fitting + 1)]) is OVERFLOW


def test_short_keys_stay_plain_where_their_hashes_would_be_too_long() -> None:
    many = [str(number) for number in range(1500)]
    assert keys_sent(FASTLY, *many) == set(many)


def test_hash_keys_shows_nothing_of_the_tags() -> None:
    surrogates = Surrogates.varnish(hash_keys=True)
    keys = keys_sent(surrogates, "customer:acme", "price:1")
    assert {len(key) for key in keys} == {HASH_LENGTH}
    assert set(surrogates.keys(["customer:acme", "price:1"])) == keys


@given(st.sampled_from(VENDORS), st.lists(any_tag, min_size=1, max_size=30), st.booleans(), st.data())
def test_a_purge_of_any_tag_names_a_key_of_every_response_that_has_it(
    surrogates: Surrogates, all_tags: list[str], is_crowded: bool, data: st.DataObject
) -> None:
    crowd = [f"{'x' * 200}:{number}" for number in range(100)] if is_crowded else []
    tag = data.draw(st.sampled_from(all_tags))
    sent = keys_sent(surrogates, *all_tags, *crowd)
    keys = surrogates.keys([tag])
    assert sent.intersection(keys)
    assert set(keys) == set(keys_purged(surrogates.purges([tag])))


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from asynctag.http.surrogates import Surrogates; print(Surrogates.fastly().header(['a b'])[1].decode())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() in FASTLY.keys(["a b"])


def test_another_cdn_is_described_by_its_limits() -> None:
    akamai = Surrogates(
        name="Edge-Cache-Tag", delimiter=",", forbidden='*"():;<=>?@\\[]{}', longest_key=128, longest_field=8000
    )
    assert akamai.header(["sale", "x" * 128]) == (b"edge-cache-tag", b"sale," + b"x" * 128)
    assert keys_sent(akamai, "x" * 129) == set(akamai.keys(["x" * 129])) != {"x" * 129}
    assert keys_sent(akamai, "product:1") == set(akamai.keys(["product:1"]))
    with pytest.raises(ConfigurationError, match="cannot purge"):
        akamai.purges(["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Cache Tag"}, "'Cache Tag'"),
        ({"name": ""}, "no name of a header field"),
        ({"delimiter": ""}, "printable ASCII"),
        ({"delimiter": "\n"}, "printable ASCII"),
        ({"longest_key": 15}, "16 or more"),
        ({"longest_field": 100}, "shorter than one key"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(change: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {"name": "Cache-Tag", "delimiter": ",", "longest_key": 128, "longest_field": 1000}
    with pytest.raises(ConfigurationError, match=message):
        Surrogates(**(fitting | change))


# --- requests ----------------------------------------------------------------------------------------


def test_fastly_purges_by_post() -> None:
    (purge,) = Surrogates.fastly("service1", TOKEN, soft=True).purges(["product:1"])
    assert (purge.method, purge.url) == ("POST", "https://api.fastly.com/service/service1/purge")
    assert dict(purge.headers) == {
        "Fastly-Key": TOKEN,
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Fastly-Soft-Purge": "1",
    }
    assert json.loads(purge.body) == {"surrogate_keys": list(FASTLY.keys(["product:1"]))}
    (hard,) = FASTLY.purges(["product:1"])
    assert "Fastly-Soft-Purge" not in dict(hard.headers)


def test_cloudflare_purges_by_post() -> None:
    (purge,) = CLOUDFLARE.purges(["product:1"])
    assert (purge.method, purge.url) == ("POST", "https://api.cloudflare.com/client/v4/zones/zone1/purge_cache")
    assert dict(purge.headers) == {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    assert json.loads(purge.body) == {"tags": list(CLOUDFLARE.keys(["product:1"]))}


def test_varnish_is_told_on_every_host() -> None:
    purges = VARNISH.purges(["product:1"])
    named = " ".join(VARNISH.keys(["product:1"]))
    assert [(purge.method, purge.url) for purge in purges] == [
        ("PURGE", "http://10.0.0.1:6081/"),
        ("PURGE", "http://10.0.0.2:6081/"),
    ]
    assert {purge.headers for purge in purges} == {(("xkey-purge", named),)}
    (soft,) = Surrogates.varnish(["http://a"], soft=True).purges(["t"])
    assert soft.headers[0][0] == "xkey-softpurge"
    (other,) = Surrogates.varnish(["http://a"], purge_header="xkey").purges(["t"])
    assert other.headers[0][0] == "xkey"


@pytest.mark.parametrize(("surrogates", "most"), [(FASTLY, 256), (CLOUDFLARE, 100)])
def test_one_request_names_no_more_keys_than_the_vendor_takes(surrogates: Surrogates, most: int) -> None:
    wanted = [f"product:{number}" for number in range(500)]
    purges = surrogates.purges(wanted)
    sizes = [len(keys_purged([purge])) for purge in purges]
    assert max(sizes) == most
    assert len(purges) == -(-1000 // most)
    assert sorted(keys_purged(purges)) == list(surrogates.keys(wanted))


def test_the_field_of_a_purge_is_no_longer_than_varnish_takes() -> None:
    wanted = [f"{'x' * 1000}:{number}" for number in range(50)]
    purges = Surrogates.varnish(["http://a"]).purges(wanted)
    assert max(len(purge.headers[0][1]) for purge in purges) <= 8000
    assert sorted(keys_purged(purges)) == list(VARNISH.keys(wanted))


def test_a_request_names_every_tag_that_needs_it() -> None:
    """A tag with two keys may need two requests, and two tags may share a key."""
    wanted = [f"product:{number}" for number in range(300)]
    purges = FASTLY.purges(wanted)
    for purge in purges:
        assert set(keys_purged([purge])) <= set(FASTLY.keys(purge.tags))
    assert {tag for purge in purges for tag in purge.tags} == set(wanted)


class OneByOne:
    """A CDN of the user's own, told of one key a request."""

    most_keys = 1
    most_bytes = 1000

    def purges(self, keys: tuple[str, ...], tags: tuple[str, ...]) -> list[Purge]:
        return [Purge("DELETE", f"http://cdn/{keys[0]}", (), b"", tags)]


def test_a_key_that_two_tags_share_is_named_for_both() -> None:
    surrogates = Surrogates(
        name="Cache-Tag", delimiter=",", longest_key=64, longest_field=1000, folds_case=True, service=OneByOne()
    )
    purges = {purge.url: purge.tags for purge in surrogates.purges(["Tag", "tag"])}
    assert len(purges) == 3
    assert purges["http://cdn/tag"] == ("Tag", "tag")


@each_vendor
def test_no_tags_are_no_requests(surrogates: Surrogates) -> None:
    assert surrogates.purges([]) == []


@each_vendor
def test_what_is_no_tag_is_not_purged(surrogates: Surrogates) -> None:
    with pytest.raises(InvalidTagError, match="give a list"):
        surrogates.purges("product:1")
    with pytest.raises(InvalidTagError):
        surrogates.purges([""])


@each_vendor
def test_credentials_are_never_shown(surrogates: Surrogates) -> None:
    assert TOKEN not in repr(surrogates) + repr(surrogates.purges(["a"]))


@pytest.mark.parametrize("surrogates", [Surrogates.fastly(), Surrogates.cloudflare(), Surrogates.varnish()])
def test_without_credentials_there_are_keys_and_no_purges(surrogates: Surrogates) -> None:
    assert surrogates.header(["a"]) is not None
    with pytest.raises(ConfigurationError, match="cannot purge: give"):
        surrogates.purges(["a"])
    with pytest.raises(ConfigurationError, match="cannot purge: give"):
        Purger(surrogates, answer_200)


def test_half_of_the_credentials_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="api_token is missing"):
        Surrogates.fastly("service1")
    with pytest.raises(ConfigurationError, match="zone_id is missing"):
        Surrogates.cloudflare(api_token=TOKEN)
    with pytest.raises(ConfigurationError, match="api_token is missing"):
        Surrogates.cloudflare("zone1", "")


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN}\r\nX: y", "é", f" {TOKEN}"])
def test_a_token_that_no_field_can_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigurationError, match="api_token=") as raised:
        Surrogates.fastly("service1", token)
    assert token.strip() not in str(raised.value)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "ftp://a", "http://", "http://a?b", "http://a#b", "http://[", "http://a b"]
)
def test_a_host_that_is_no_base_url_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="no base URL"):
        Surrogates.varnish([host])


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="without credentials") as raised:
        Surrogates.varnish([f"http://me:{TOKEN}@a"])
    assert TOKEN not in str(raised.value)


def test_one_host_is_given_in_a_list() -> None:
    with pytest.raises(ConfigurationError, match="give a list"):
        Surrogates.varnish("http://10.0.0.1")


def test_an_account_cannot_leave_its_place_in_the_url() -> None:
    (purge,) = Surrogates.fastly("../admin?", TOKEN).purges(["a"])
    assert purge.url == "https://api.fastly.com/service/..%2Fadmin%3F/purge"


# --- the purger --------------------------------------------------------------------------------------


async def answer_200(purge: Purge) -> int:
    return 200


class Api:
    """A CDN's API: an HTTP server of its own on the loopback, that keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        #: Requests whose body or fields hold this are answered 503.
        self.refuses = b""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        self.seen.append((method, path, fields, body))
        refused = self.refuses and self.refuses in head + body
        writer.write(
            b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (b"503 No" if refused else b"200 OK")
        )
        await writer.drain()
        writer.close()


@contextmanager
def running_api() -> Iterator[Api]:
    api, up = Api(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(api.answer, "127.0.0.1", 0)
        api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        up.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert up.wait(30)
        yield api
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@pytest.fixture
def api() -> Iterator[Api]:
    with running_api() as running:
        yield running


async def send(purge: Purge) -> int:
    """As an application would write it, with httpx."""
    async with httpx.AsyncClient() as client:
        answer = await client.request(purge.method, purge.url, headers=purge.headers, content=purge.body)
    return answer.status_code


@pytest.mark.anyio
async def test_fastly_is_sent_every_key(api: Api) -> None:
    wanted = [f"product:{number}" for number in range(300)]
    surrogates = Surrogates.fastly("service1", TOKEN, api=api.url)
    await Purger(surrogates, send)(wanted)
    assert {(method, path) for method, path, _, _ in api.seen} == {("POST", "/service/service1/purge")}
    assert {fields["fastly-key"] for _, _, fields, _ in api.seen} == {TOKEN}
    named = [key for *_, body in api.seen for key in json.loads(body)["surrogate_keys"]]
    assert sorted(named) == list(surrogates.keys(wanted))


@pytest.mark.anyio
async def test_cloudflare_is_sent_every_key(api: Api) -> None:
    surrogates = Surrogates.cloudflare("zone1", TOKEN, api=f"{api.url}/client/v4")
    await Purger(surrogates, send)(["Product:1", "a b"])
    ((method, path, fields, body),) = api.seen
    assert (method, path) == ("POST", "/client/v4/zones/zone1/purge_cache")
    assert fields["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(body) == {"tags": list(surrogates.keys(["Product:1", "a b"]))}


@pytest.mark.anyio
async def test_every_varnish_is_sent_every_key(api: Api) -> None:
    with running_api() as other:
        surrogates = Surrogates.varnish([api.url, other.url])
        await Purger(surrogates, send)(["product:1"])
        for one in (api, other):
            ((method, path, fields, _),) = one.seen
            assert (method, path) == ("PURGE", "/")
            assert fields["xkey-purge"].split(" ") == list(surrogates.keys(["product:1"]))


@pytest.mark.anyio
async def test_what_the_cdn_refused_is_named_and_the_rest_is_sent(api: Api) -> None:
    api.refuses = b'"product:299"'
    wanted = [f"product:{number}" for number in range(300)]
    with pytest.raises(PurgeError, match=r"1 of 3 requests to purge failed \(status 503\)") as raised:
        await Purger(Surrogates.fastly("service1", TOKEN, api=api.url), send)(wanted)
    assert len(api.seen) == 3
    assert "product:299" in raised.value.tags
    assert set(raised.value.tags) < set(wanted)
    assert raised.value.__cause__ is None
    assert isinstance(raised.value, AsynctagError)


@pytest.mark.anyio
async def test_a_cdn_that_is_not_there_is_an_error_with_its_cause(api: Api) -> None:
    """One of two caches is down: the other one is told, and the tags are not purged for all that."""
    with socket_that_nobody_answers() as nobody:
        surrogates = Surrogates.varnish([nobody, api.url])
        with pytest.raises(PurgeError, match=r"1 of 2 requests to purge failed \(ConnectError\)") as raised:
            await Purger(surrogates, send)(["product:1", "product:2"])
    assert raised.value.tags == ("product:1", "product:2")
    assert isinstance(raised.value.__cause__, httpx.ConnectError)
    assert len(api.seen) == 1


@contextmanager
def socket_that_nobody_answers() -> Iterator[str]:
    """The URL of a port that is taken, and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.anyio
async def test_an_answer_that_is_no_status_is_a_failure() -> None:
    async def answer_nothing(purge: Purge) -> Any:
        return None

    with pytest.raises(PurgeError, match="TypeError"):
        await Purger(FASTLY, answer_nothing)(["a"])


@pytest.mark.anyio
@pytest.mark.parametrize("status", [199, 300, 304, 404, 429, 500])
async def test_only_a_status_of_success_is_success(status: int) -> None:
    async def answer(purge: Purge) -> int:
        return status

    with pytest.raises(PurgeError, match=f"status {status}"):
        await Purger(FASTLY, answer)(["a"])


@pytest.mark.anyio
async def test_requests_go_side_by_side_and_no_more_than_asked() -> None:
    under_way, most = 0, 0
    full = anyio.Event()

    async def hold(purge: Purge) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 3:
            full.set()
        await full.wait()
        await anyio.wait_all_tasks_blocked()
        under_way -= 1
        return 200

    with anyio.fail_after(10):
        await Purger(CLOUDFLARE, hold, side_by_side=3)([f"product:{number}" for number in range(500)])
    assert most == 3


@pytest.mark.anyio
async def test_a_purger_that_is_cancelled_is_cancelled() -> None:
    async def never(purge: Purge) -> int:
        await anyio.sleep_forever()
        return 200

    with anyio.move_on_after(0) as scope:
        await Purger(FASTLY, never)(["a"])
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_no_tags_send_nothing() -> None:
    async def refuse(purge: Purge) -> int:
        raise AssertionError(purge)

    await Purger(FASTLY, refuse)([])


def test_a_purger_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="side_by_side=0"):
        Purger(FASTLY, answer_200, side_by_side=0)
    with pytest.raises(ConfigurationError, match="send='x'"):
        Purger(FASTLY, "x")  # type: ignore[arg-type]
