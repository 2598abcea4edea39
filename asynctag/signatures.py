"""Functions that users give for an option, such as `tags=` and `key=`: what they take, checked at decoration.

They are called with arguments of the cached function, by name, so a name that is not there is found before any call.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping

from asynctag.errors import ConfigurationError


def read_parameters(
    function: Callable[..., object],
    known: Mapping[str, object],
    *,
    what: str,
    instead: str,
    error: type[ConfigurationError],
    extra_names: bool = False,
) -> list[inspect.Parameter]:
    """Give the parameters of a plain function that can be called with some of the `known` names.

    Errors call it `what`, "The function for tags= of shop.product"; `instead` is for one that is async: why not, and
    what to do. With `extra_names` it may require names that are not known.
    """
    own_call = getattr(function, "__call__", None)  # noqa: B004 - the method, to look at
    if any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in (function, own_call)):
        raise error(f"{what} is async: {instead}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise error(f"{what} has no signature to read: give a lambda that names its parameters") from None
    for one in parameters:
        if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
            raise error(f"{what} takes {one.name!r} by position only: arguments are given by name")
        takes_all = one.kind is one.VAR_KEYWORD
        if one.name not in known and one.default is one.empty and not takes_all and not extra_names:
            raise error(f"{what} takes {one.name!r}, which is not a parameter. {nearest_name(one.name, known)}")
    return parameters


def nearest_name(name: str, names: Iterable[str]) -> str:
    """Say which names there are, and which of them was likely meant."""
    known = list(names)
    if not known:
        return "There are no parameters"
    close = difflib.get_close_matches(name, known, n=1)
    return f"There are: {', '.join(known)}" + (f". Did you mean {close[0]!r}?" if close else "")
