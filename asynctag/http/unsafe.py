"""What a request that changes something makes stale: functions, without I/O or clocks."""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from asynctag.http.rules import Headers

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_NAMING = frozenset({b"location", b"content-location"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}

#: Scheme, authority and path of a reference (RFC 3986, appendix B); each may be missing, so that it always matches.
_REFERENCE = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)")
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]+)(?::([0-9]*))?")

#: What clients send of a path as it is; the rest, and what is not ASCII, they percent-encode.
_SENT_AS_IT_IS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"<>^`{}')


class ChangedUrl(NamedTuple):
    """The path of a URL as a request for it brings it: what `url_path` makes a key of, with the root path."""

    raw_path: bytes | None
    path: str


def is_safe(method: str) -> bool:
    """Whether the method asks for no change (RFC 9110 §9.2.1). One that is not known may (RFC 9111 §4.4)."""
    return method in _SAFE


def changed_urls(
    status: int, headers: Headers, *, scheme: str, host: bytes, raw_path: bytes | None, path: str, root_path: str
) -> list[ChangedUrl]:
    """The other URLs that a response to an unsafe method says have changed (RFC 9111 §4.4), without fragment and query.

    Those of `Location` and `Content-Location`, for a 2xx or 3xx, resolved against the target URI (RFC 3986 §5.2). Only
    those of the target's own origin: anybody could otherwise empty the cache of another's pages. `scheme`, `host` (the
    `Host` field), `raw_path`, `path` and `root_path` are the request's, as in its ASGI scope.

    The spelling is that in which a client sends the URL of such a field: dot segments taken out, what no URL may hold
    percent-encoded, the rest as it stands. Another spelling is another URL here, as it is in the keys.

    With a root path, each URL is given with and without it. Servers differ in whether `path` holds it, and
    applications in whether they write it: the one that nobody asks for is no harm.
    """
    if not 200 <= status <= 399:
        return []
    target = ChangedUrl(raw_path.partition(b"?")[0] if raw_path is not None else None, path)
    here = target.raw_path.decode("latin-1") if target.raw_path is not None else quote(path, errors="surrogatepass")
    named: dict[ChangedUrl, None] = {}
    for name, value in headers:
        if name.lower() in _NAMING:
            found = _resolved(_as_sent(value), scheme.lower(), host.decode("latin-1"), here)
            if found is not None:
                for sent, decoded in _rooted(found, root_path):
                    named[ChangedUrl(sent if raw_path is not None else None, decoded)] = None
    named.pop(target, None)
    return list(named)


def _as_sent(value: bytes) -> str:
    """A reference as clients send it. Applications write non-ASCII text in UTF-8, or in latin-1 as Starlette does."""
    stripped = value.strip(b" \t")
    try:
        text = stripped.decode("utf-8")
    except UnicodeDecodeError:
        text = stripped.decode("latin-1")
    return quote(text, safe=_SENT_AS_IT_IS)


def _resolved(reference: str, scheme: str, host: str, here: str) -> str | None:
    """The path that a reference leads to from the path `here`; `None` if it leads to another origin."""
    found = _REFERENCE.match(reference)
    assert found is not None
    own_scheme, authority, path = found.groups()
    if own_scheme is not None and (own_scheme.lower() != scheme or authority is None):
        return None
    if authority is not None:
        theirs = _host_and_port(authority.rpartition("@")[2], scheme)
        if theirs is None or theirs != _host_and_port(host, scheme):
            return None
    elif not path:
        return here
    elif not path.startswith("/"):
        path = here[: here.rfind("/") + 1] + path
    return _without_dots(path)


def _host_and_port(authority: str, scheme: str) -> tuple[str, str] | None:
    """What two URLs of one scheme have the same origin by (RFC 9110 §4.3.1)."""
    found = _HOST_AND_PORT.fullmatch(authority)
    return None if found is None else (found[1].lower(), found[2] or _DEFAULT_PORTS.get(scheme, ""))


def _without_dots(path: str) -> str:
    """An absolute path without its segments `.` and `..` (RFC 3986 §5.2.4)."""
    kept: list[str] = []
    segments = path.removeprefix("/").split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _rooted(found: str, root: str) -> list[tuple[bytes, str]]:
    """The path as it was sent and as it is routed by, with the root path before it and without."""
    as_it_stands = (found.encode("latin-1"), unquote(found))
    if not root:
        return [as_it_stands]
    sent_root = root.encode("utf-8", "surrogatepass").decode("latin-1")
    if found == sent_root or found.startswith(sent_root + "/"):
        rest = found.removeprefix(sent_root) or "/"
        return [as_it_stands, (rest.encode("latin-1"), unquote(rest))]
    return [as_it_stands, ((sent_root + found).encode("latin-1"), root + unquote(found))]
