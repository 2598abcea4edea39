"""The tags, and what gives them to an environment."""

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final

from jinja2 import Environment, TemplateAssertionError, Undefined, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from markupsafe import Markup, escape

from asynctag.cache import Cache
from asynctag.errors import ConfigurationError, UnstableArgumentError, WindowError
from asynctag.fill import Job
from asynctag.inline import obtain_inline
from asynctag.integrations.jinja2.bodies import (
    Body,
    BodyWindow,
    Installed,
    block_name,
    hash_of,
    installed_in,
    keep_installed,
    marked,
)
from asynctag.integrations.jinja2.parsing import (
    check_body,
    check_fragment,
    dict_of,
    digest_of,
    lift_windows,
    parse_arguments,
    parse_declared,
    parse_limits,
)
from asynctag.placeholders import Place, Placeholder, as_text
from asynctag.scope import gathering_scope
from asynctag.signatures import nearest_name
from asynctag.stable import stable_text
from asynctag.windows import Window

#: What a fragment may be given.
OPTIONS: Final = ("ttl", "tags", "vary", "stale_if_error", "jitter", "inherit_ttl")

#: Longer texts of what a fragment varies by are hashed.
MAX_VARY: Final = 200


def install(environment: Environment, cache: Cache, *, name: str = "jinja2") -> None:
    """Give `environment` the tags `window` and `cache`, for the windows and the entries of `cache`.

    Call it before templates are loaded. `name` tells the environments of one cache apart in the pages that are stored:
    one that is installed under another's name takes its place, and the other then refuses to place windows whose bodies
    stand in templates. An overlay needs to be installed, with a name, for those alone.

    Raises `ConfigurationError` for what is no environment or no cache, where the environment has another cache already,
    and where a window of the cache has that name.
    """
    if not isinstance(environment, Environment):
        raise ConfigurationError(f"install({environment!r}, ...): give a jinja2.Environment, such as templates.env")
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"install(..., {cache!r}): give an asynctag.Cache")
    installed = installed_in(environment)
    if installed is not None and installed.environment is environment:
        if installed.cache is not cache or installed.window.name != name:
            raise ConfigurationError(
                f"this environment was given {installed.cache!r} already, under the name {installed.window.name!r}: "
                f"an environment has one cache"
            )
        return
    window = BodyWindow(environment, cache, name)
    other = cache._windows.get(window.key)
    if other is not None and not isinstance(other, BodyWindow):
        raise ConfigurationError(f"{name!r} is the name of a window of this cache: give install() another name=")
    cache._windows[window.key] = window
    environment.add_extension(CacheExtension)
    keep_installed(Installed(environment, cache, window))


class CacheExtension(Extension):
    """The tags `window` and `cache`, added by `install`. Where it is added alone, templates can be parsed with them."""

    tags = {"window", "cache"}  # noqa: RUF012 - as Jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        tag = next(parser.stream)
        if tag.value == "cache":
            return self._parse_fragment(parser, tag.lineno)
        if parser.stream.current.type == "string":
            return self._parse_window(parser, tag.lineno)
        return self._parse_body(parser, tag.lineno)

    def _installed(self) -> Installed:
        installed = installed_in(self.environment)
        if installed is None:
            raise ConfigurationError(
                "the tags window and cache stand in a template whose environment has no cache: call "
                "asynctag.integrations.jinja2.install(environment, cache)"
            )
        return installed

    # --- {% window "name" %} -------------------------------------------------------------------------

    def _parse_window(self, parser: Parser, lineno: int) -> nodes.Node:
        (name, *positional), named = parse_arguments(parser)
        if not isinstance(name, nodes.Const):
            parser.fail('the name of a window is text, and nothing else: {% window "cart_badge" %}', lineno)
        installed = installed_in(self.environment)
        if installed is not None:
            try:
                find_window(installed.cache, name.value)._signature.bind(*positional, **named)
            except (WindowError, TypeError) as error:
                parser.fail(f'{{% window "{name.value}" %}}: {error}', lineno, TemplateAssertionError)
        arguments = [_escapes_here(), name, nodes.Tuple(positional, "load"), dict_of(named)]
        return nodes.Output([self.call_method("_place", arguments, lineno=lineno)], lineno=lineno)

    def _place(self, mark: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        window, escapes = find_window(self._installed().cache, name), isinstance(mark, Markup)
        _check_defined(f"the window {window.name}", {**{f"argument {i}": one for i, one in enumerate(args)}, **kwargs})
        if gathering_scope() is not None:
            return _placed(window(*args, **kwargs), escapes)
        if not self.environment.is_async:
            raise WindowError(
                f"the window {window.name} stands in a template that is rendered where nothing is cached, and no "
                f"CacheMiddleware fills it: it would have to be awaited, which render() cannot do. Await "
                f"template.render_async(), in an environment with enable_async"
            )
        return _awaited(window, window._encode(args, kwargs), escapes)

    # --- {% window with name %} ----------------------------------------------------------------------

    def _parse_body(self, parser: Parser, lineno: int) -> list[nodes.Node]:
        timeout, fallback = parse_limits(parser)
        values = parse_declared(parser)
        body = parser.parse_statements(("name:endwindow",), drop_needle=True)
        inner = lift_windows(body)
        if installed_in(self.environment) is not None:
            check_body(self.environment, parser, body, values, lineno)
        digest = digest_of(parser, body)
        fallbacks = (None, None) if fallback is None else (str(fallback), str(escape(fallback)))
        constants = [nodes.Const(one) for one in (parser.name, digest, timeout, fallbacks)]
        arguments = [nodes.ContextReference(), _escapes_here(), dict_of(values), *constants]
        placed = nodes.Output([self.call_method("_place_body", arguments, lineno=lineno)], lineno=lineno)
        blocks: list[nodes.Node] = []
        for escapes in (False, True):
            name = block_name(digest, tuple(values), timeout, fallbacks[escapes], escapes=escapes)
            option = nodes.Keyword("autoescape", nodes.Const(escapes))
            # Compiling it changes it: of each a copy.
            inside = nodes.ScopedEvalContextModifier([option], deepcopy(body))
            blocks.append(nodes.Block(name, [inside], False, False, lineno=lineno))
        return [placed, nodes.If(nodes.Const(False), blocks, [], [], lineno=lineno), *inner]

    def _place_body(
        self,
        context: Context,
        mark: str,
        values: dict[str, Any],
        template: str | None,
        digest: str,
        timeout: float | None,
        fallbacks: tuple[str | None, str | None],
    ) -> Any:
        if template is None:
            raise WindowError(
                "a window stands in a template without a name (from_string), which nobody finds again when the window "
                "is filled: load the template by its environment's loader, or place a registered window by its name"
            )
        window, escapes = self._window_of(template), isinstance(mark, Markup)
        _check_defined(f"a window of the template {template}", values)
        body = window.named(Body(template, digest, values, timeout, fallbacks[escapes], escapes))
        if gathering_scope() is not None:
            return _placed(window(**body._asdict()), escapes)
        body = Body(**window.arguments(window._encode((), body._asdict())))  # with the same values as from a page
        request = context.get("request")
        return window.rendered(body, request) if self.environment.is_async else window.rendered_at_once(body, request)

    def _window_of(self, template: str) -> BodyWindow:
        environment, cache, window = self._installed()
        if environment is not self.environment:
            raise WindowError(
                f"a window stands in the template {template}, which was loaded by an overlay of the environment: "
                f"install(overlay, cache, name=...) gives it a name of its own"
            )
        if cache._windows.get(window.key) is not window:
            raise WindowError(
                f"a window stands in the template {template}, and another environment was installed under the name "
                f"{window.name!r} since: give each a name of its own, install(environment, cache, name=...)"
            )
        return window

    # --- {% cache %} ---------------------------------------------------------------------------------

    def _parse_fragment(self, parser: Parser, lineno: int) -> nodes.Node:
        positional, options = parse_arguments(parser)
        if len(positional) > 1 or (positional and "ttl" in options):
            parser.fail("{% cache %} takes one ttl, and what else it is given by name", lineno)
        if positional:
            options["ttl"] = positional[0]
        for name in options:
            if name not in OPTIONS:
                parser.fail(f"{name!r} is no option of {{% cache %}}. {nearest_name(name, OPTIONS)}", lineno)
        body = parser.parse_statements(("name:endcache",), drop_needle=True)
        check_fragment(parser, body, lineno)
        digest = digest_of(parser, (sorted(options.items(), key=str), body))
        constants = [nodes.Const(parser.name), nodes.Const(digest)]
        call = self.call_method("_fragment", [_escapes_here(), *constants, dict_of(options)], lineno=lineno)
        return nodes.CallBlock(call, [], [], body, lineno=lineno)

    def _fragment(
        self, mark: str, template: str | None, digest: str, options: dict[str, Any], caller: Callable[[], Any]
    ) -> Any:
        if template is None:
            raise ConfigurationError(
                "{% cache %} stands in a template without a name (from_string), by which entries are told apart: load "
                "the template by its environment's loader"
            )
        cache, escapes = self._installed().cache, isinstance(mark, Markup)
        _check_defined(f"{{% cache %}} of the template {template}", options)
        tags, vary = options.pop("tags", ()), options.pop("vary", ())
        key = _key_of(template, digest, vary if isinstance(vary, list | tuple) else (vary,), escapes)

        async def compute() -> str:
            return str(await caller())

        job = cache._job(key, [tags] if isinstance(tags, str) else tags, str, cache._expiry(**options), compute)
        if self.environment.is_async:
            return _obtained(cache, job._replace(in_background=False), escapes)
        return marked(obtain_inline(cache, job, lambda: str(caller())), escapes)


def _key_of(template: str, digest: str, vary: list[Any] | tuple[Any, ...], escapes: bool) -> str:
    try:
        text = ",".join(map(stable_text, vary))
    except UnstableArgumentError as error:
        raise UnstableArgumentError(
            f"{{% cache vary=... %}} of the template {template}: {error}. Vary by text and numbers"
        ) from None
    text = text if len(text) <= MAX_VARY else f"#{hash_of(text)}"
    return f"{template}@{digest}{'' if escapes else '-'}({text})"


async def _obtained(cache: Cache, job: Job, escapes: bool) -> str:
    return marked(await cache._obtain(job), escapes)


async def _awaited(window: Window[..., Any], params: bytes, escapes: bool) -> str:
    """What a window gives where nothing around is cached, as it would stand in what is."""
    place = Place(f"{window.cache.namespace}|{window.name}", params, "h" if escapes else "")
    return marked(as_text(await window.fill(window.arguments(params)), place), escapes)


def _placed(placeholder: Placeholder[Any], escapes: bool) -> str:
    """A placeholder as plain text: an async template awaits whatever it can."""
    return Markup(placeholder.__html__()) if escapes else str(placeholder)


def _escapes_here() -> nodes.Expr:
    """Text of the template itself: it is Markup where the compiler escapes what is put out."""
    return nodes.TemplateData("")


def _check_defined(where: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Undefined):
            raise WindowError(f"{where}: what is given for {name} is undefined")


def find_window(cache: Cache, name: str) -> Window[..., Any]:
    """The window of that name, or the only one whose name ends in it after a dot. Raises `WindowError`."""
    windows = [one for one in cache._windows.values() if not isinstance(one, BodyWindow)]
    found = [one for one in windows if one.name == name] or [one for one in windows if _last(one) == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise WindowError(f"several windows are called so: {', '.join(one.name for one in found)}. Give the whole name")
    if not windows:
        raise WindowError("the cache has no windows yet: import the module that defines it before the template")
    count = Counter(map(_last, windows))
    known = [_last(one) if count[_last(one)] == 1 else one.name for one in windows]
    raise WindowError(f"no window of the cache is called so. {nearest_name(name, known)}")


def _last(window: Window[..., Any]) -> str:
    return window.name.rpartition(".")[2]
