"""Keys: the name of a function and the text of its arguments, the same in every process."""

import enum
import functools
import hashlib
import inspect
import re
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

from asynctag.errors import ConfigurationError, InvalidKeyError, UnstableArgumentError
from asynctag.names import MAX_BYTES, check_text
from asynctag.signatures import nearest_name, read_parameters
from asynctag.stable import PLAIN, full_name, stable_text

MAX_KEY_BYTES = MAX_BYTES
MAX_NAME_LENGTH = 200
MAX_ARGUMENTS_LENGTH = 200

KeyMaker: TypeAlias = Callable[..., str]
"""Takes what the function takes; gives the key."""

_REFUSED_IN_NAMES = re.compile(r"[|@()\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_VERSION = re.compile(r"[\w.+\-]{1,50}")


def check_key(key: object) -> str:
    """Give a user's own key back as a plain `str`; raise `InvalidKeyError` if it cannot be one."""
    if type(key) is str and key and len(key) <= MAX_KEY_BYTES and key.isascii():
        return key
    return check_text(
        key,
        "key",
        InvalidKeyError,
        example="Say what the entry holds, as in 'product-list'",
        shorter="Use a hash of it",
    )


def function_name(fn: Callable[..., object], name: str | None) -> str:
    """Name a function for its keys: `name`, or module and qualified name where those name one function only."""
    if name is not None:
        if not isinstance(name, str) or not name or len(name) > MAX_NAME_LENGTH or _REFUSED_IN_NAMES.search(name):
            raise ConfigurationError(
                f"name={reprlib.repr(name)} cannot name a function: give text of 1 to {MAX_NAME_LENGTH} characters,"
                " without any of | @ ( ) and control characters"
            )
        return str.__str__(name)
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise ConfigurationError(f'{reprlib.repr(fn)} has no qualified name: give one with name="..."')
    if "<" in qualname:
        raise ConfigurationError(
            f"{module}.{qualname} is no name of one function: two closures (or lambdas) share a qualified name, and"
            ' would be served each other\'s values. Give one with name="..."'
        )
    if module == "__main__":
        raise ConfigurationError(
            f"{qualname} is in __main__, which is another module in every program: two closures or functions that share"
            ' a qualified name would be served each other\'s values. Give one with name="..."'
        )
    return f"{module}.{qualname}"


def build_key_maker(
    fn: Callable[..., object],
    *,
    name: str,
    prefix: str = "",
    exclude: Collection[str] = (),
    key: Callable[..., object] | None = None,
    version: str | int | None = None,
) -> KeyMaker:
    """Make a function with the parameters of `fn` that gives the key of a call: `shop.product(635)`.

    Python itself binds the arguments, so every spelling of a call has one key, and a wrong call its usual `TypeError`.
    `exclude` names parameters to leave out. `key` is a plain function of some of the parameters, whose result stands
    for all of them. `name` is what `function_name` gave; with `version=2` the key is `shop.product@2(635)`.
    `prefix` stands before all of it.
    """
    parameters = inspect.signature(fn).parameters
    _check_exclude(exclude, parameters, name)
    head = f"{prefix}{name}{_version_mark(version, name)}("
    longest = len(head) + MAX_ARGUMENTS_LENGTH + 1
    p = _free_prefix(parameters)
    helpers: dict[str, object] = {
        f"{p}text": _argument_text(name),
        f"{p}long": functools.partial(_hashed, head),
        f"{p}type": type,
        f"{p}len": len,
        f"{p}plain": PLAIN,
    }
    used = [parameter for parameter in parameters.values() if parameter.name not in exclude]
    names = [parameter.name for parameter in used]
    finish = f"return {p}key if {p}len({p}key) <= {longest} else {p}long({p}key)"
    if key is not None:
        given = ", ".join(f"{one}={one}" for one in _wanted_by(key, parameters, name))
        helpers |= {f"{p}made": key, f"{p}text": _made_text(name)}
        lines = [f"{p}key = {head!a} f'{{{p}text({p}made({given}))}}' ')'", finish]
    elif not used:
        lines = [f"return {head + ')'!a}"]
    else:
        slow = ",".join(f'{{{p}text({one}, "{one}")}}' for one in names)
        lines = [f"{p}key = {head!a} f'{slow}' ')'", finish]
        if all(parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in used):
            plain = ",".join(f"{{{one}!a}}" for one in names)
            lines = [
                f"if {' and '.join(f'{p}type({one}) in {p}plain' for one in names)}:",
                "    try:",
                f"        {p}key = {head!a} f'{plain}' ')'",
                f"        {finish}",
                "    except ValueError:",  # an int with thousands of digits, which has a text only in hex
                "        pass",
                *lines,
            ]
    return _function(fn, parameters, lines, helpers)


def build_binder(fn: Callable[..., object]) -> Callable[..., dict[str, object]]:
    """Make a function with the parameters of `fn` that gives its arguments by name, defaults applied."""
    parameters = inspect.signature(fn).parameters
    arguments = ", ".join(f"{name!a}: {name}" for name in parameters)
    return _function(fn, parameters, [f"return {{{arguments}}}"], {})


def _function(
    fn: Callable[..., object],
    parameters: Mapping[str, inspect.Parameter],
    lines: Iterable[str],
    helpers: dict[str, object],
) -> Callable[..., Any]:
    """Compile a function with these parameters. Of the user's only names are in its source, never values."""
    listed: list[str] = []
    last: inspect.Parameter | None = None
    for parameter in parameters.values():
        if last is not None and last.kind is last.POSITIONAL_ONLY and parameter.kind is not last.kind:
            listed.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY and (last is None or last.kind < last.VAR_POSITIONAL):
            listed.append("*")
        stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        listed.append(stars + parameter.name)
        last = parameter
    if last is not None and last.kind is last.POSITIONAL_ONLY:
        listed.append("/")
    body = "".join(f"    {line}\n" for line in lines)
    module = compile(f"def made({', '.join(listed)}):\n{body}", "<asynctag.keys>", "exec", dont_inherit=True)
    code = next(const for const in module.co_consts if isinstance(const, types.CodeType))
    defaults = {one.name: one for one in parameters.values() if one.default is not one.empty}
    positional = tuple(one.default for one in defaults.values() if one.kind is not one.KEYWORD_ONLY)
    made = types.FunctionType(code, helpers, getattr(fn, "__name__", "made"), positional)
    made.__kwdefaults__ = {name: one.default for name, one in defaults.items() if one.kind is one.KEYWORD_ONLY}
    made.__qualname__ = getattr(fn, "__qualname__", made.__name__)
    return made


def _free_prefix(names: Iterable[str]) -> str:
    """Give a prefix that no parameter has, so that a parameter called `len` hides nothing."""
    taken, prefix = list(names), "_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    return prefix


def _hashed(head: str, key: str) -> str:
    arguments = key[len(head) : -1].encode("utf-8", "surrogatepass")
    return f"{head}#{hashlib.blake2b(arguments, digest_size=16).hexdigest()})"


def _argument_text(owner: str) -> Callable[[object, str], str]:
    def text(value: object, parameter: str) -> str:
        try:
            return stable_text(value)
        except UnstableArgumentError as error:
            raise UnstableArgumentError(
                f"The argument {parameter!r} of {owner}, {full_name(type(value))}, has no stable key: {error}."
                f' Leave it out with exclude={{"{parameter}"}}, make the key of the others yourself with key=, or give'
                " the class a method __cache_key__()"
            ) from None

    return text


def _made_text(owner: str) -> Callable[[object], str]:
    def text(value: object) -> str:
        try:
            return stable_text(value)
        except UnstableArgumentError as error:
            raise UnstableArgumentError(
                f"The function for key= of {owner} returned {full_name(type(value))}, which has no stable key: {error}."
                " Return strings and numbers, or tuples of them"
            ) from None

    return text


def _check_exclude(exclude: Collection[str], parameters: Mapping[str, object], owner: str) -> None:
    if isinstance(exclude, str):
        raise ConfigurationError(f'exclude= of {owner} is one string: give a set, exclude={{"{exclude}"}}')
    for name in exclude:
        if name not in parameters:
            raise ConfigurationError(
                f"exclude= of {owner} names {name!r}, which is not a parameter. {nearest_name(name, parameters)}"
            )


def _version_mark(version: object, owner: str) -> str:
    if version is None:
        return ""
    if isinstance(version, str | int) and not isinstance(version, bool | enum.Enum):
        mark = str(version)
        if _VERSION.fullmatch(mark):
            return f"@{mark}"
    raise ConfigurationError(
        f"version={reprlib.repr(version)} of {owner}: give an int, or up to 50 letters, digits and . + - _"
    )


def _wanted_by(key: Callable[..., object], parameters: Mapping[str, object], owner: str) -> list[str]:
    """Give the parameters that a function for `key=` takes by name."""
    wanted = read_parameters(
        key,
        parameters,
        what=f"The function for key= of {owner}",
        instead="a key is made without waiting. Give a plain function",
        error=ConfigurationError,
    )
    if any(one.kind is one.VAR_KEYWORD for one in wanted):
        return list(parameters)
    return [one.name for one in wanted if one.name in parameters]
