"""Windows whose bodies stand in templates.

Such a body is compiled as a block of its template, which nothing there calls. The block's name is a hash of the body
and of all that was declared with it. What is stored with a page are the template's name, what that hash is made of,
and the values of the declared names. So nothing can be run but a window of a template that the environment's own loader
gives, with what was declared for it; whatever else is read from a server is a miss.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import PureWindowsPath
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import anyio
from jinja2 import BaseLoader, ChoiceLoader, Environment, PrefixLoader
from jinja2.runtime import Context, new_context
from markupsafe import Markup

from asynctag.cache import Cache
from asynctag.codec import NOT_GIVEN
from asynctag.errors import ConfigurationError, CorruptEntryError, WindowError
from asynctag.http import current_request
from asynctag.placeholders import as_text
from asynctag.scope import Scope, current_scope, leave_scope, live_scope
from asynctag.skeleton import woven
from asynctag.windows import Window, too_slow

#: What begins the names of the blocks that bodies are compiled as.
BLOCK: Final = "asynctag_window_"

#: So many bodies are kept that were found in this process, for pages that are older than a template.
MAX_KEPT: Final = 1000

#: Renders a body: gives its texts, one after the other, in an async environment asynchronously.
Render: TypeAlias = Callable[[Context], Any]


class Body(NamedTuple):
    """A body as it was placed. `digest` is that of what stands in the template between the tags."""

    template: str
    digest: str
    values: Mapping[str, Any]
    timeout: float | None
    fallback: str | None
    escapes: bool

    @property
    def block(self) -> str:
        return block_name(self.digest, tuple(self.values), self.timeout, self.fallback, escapes=self.escapes)


@lru_cache(maxsize=MAX_KEPT, typed=True)
def block_name(
    digest: str, names: tuple[str, ...], timeout: float | None, fallback: str | None, *, escapes: bool
) -> str:
    """The name of the block that a body is compiled as: another for everything else that may be declared with it."""
    return BLOCK + hash_of((digest, sorted(names), timeout, fallback, escapes))


def hash_of(tree: object) -> str:
    """The same in every process, for what has the same `repr` there."""
    return blake2b(ascii(tree).encode(), digest_size=16).hexdigest()


class BodyWindow(Window[..., Any]):
    """What all the windows of an environment whose bodies stand in templates are in entries."""

    def __init__(self, environment: Environment, cache: Cache, name: str) -> None:
        async def body(
            template: str,
            digest: str,
            values: dict[str, Any],
            timeout: float | None,
            fallback: str | None,
            escapes: bool,
        ) -> str:
            return await self.rendered(Body(template, digest, values, timeout, fallback, escapes))

        super().__init__(cache, body, timeout=None, fallback=NOT_GIVEN, name=name)
        self.environment = environment
        #: The name that it has in entries.
        self.key = f"{cache.namespace}|{self.name}"
        self._kept: dict[tuple[str, str], Render] = {}

    # --- finding the body ----------------------------------------------------------------------------

    def named(self, body: Body) -> Body:
        """A body to be placed, with the name by which any process finds its template. Raises `WindowError`."""
        block = body.block
        for template in dict.fromkeys(_names(self.environment.loader, body.template)):
            if self._in_template(template, block) is not None:
                return body._replace(template=template)
        raise WindowError(
            f"a window stands in the template {body.template!r}, which its environment does not load by that name, or "
            f"has loaded anew: there the window is looked for when it is filled. Load templates by names that are "
            f"relative paths"
        )

    def arguments(self, params: bytes) -> dict[str, Any]:
        arguments = super().arguments(params)
        self._find(Body(**arguments))
        return arguments

    def check(self, params: bytes) -> None:
        """As before, and that it stands in the template now: what was kept is for pages that are being served."""
        super().check(params)
        body = Body(**super().arguments(params))
        if self._in_template(body.template, body.block) is None:
            self._refuse(body)

    def _find(self, body: Body) -> Render:
        key = (body.template, body.block)
        render = self._in_template(*key)
        if render is None:
            return self._kept.get(key) or self._refuse(body)
        if key not in self._kept:
            while len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = render
        return render

    def _in_template(self, template: str, block: str) -> Render | None:
        if not _is_relative(template):
            return None
        try:
            return self.environment.get_template(template).blocks.get(block)
        except Exception:  # whatever a loader or the compiler says of a name that anybody may have written
            return None

    def _refuse(self, body: Body) -> NoReturn:
        raise CorruptEntryError(f"a window of the template {body.template!r}, which does not have it as it was placed")

    # --- rendering it --------------------------------------------------------------------------------

    async def rendered(self, body: Body, request: object = None) -> str:
        """What is served in its place. `request`: for where there is no current one."""
        try:
            with anyio.move_on_after(body.timeout):
                return await self._text(body, request)
            raise too_slow(f"a window of the template {body.template}", body.timeout)
        except Exception as error:
            if body.fallback is None:
                raise
            return self._fall_back(body, body.fallback, error)

    def rendered_at_once(self, body: Body, request: object) -> str:
        """The same for a template that is rendered without `await`. Its timeout does not count."""
        try:
            return marked(self.environment.concat(self._find(body)(self._context(body, request))), body.escapes)
        except Exception as error:
            if body.fallback is None:
                raise
            return self._fall_back(body, body.fallback, error)

    def _fall_back(self, body: Body, fallback: str, error: Exception) -> str:
        self._failures.warn(f"a window of the template {body.template}", error, which=body.block)
        return marked(fallback, body.escapes)

    async def _text(self, body: Body, request: object) -> str:
        """The body's text. The windows that are placed in it are filled then; they may be awaited in it, too."""
        scope = Scope(f"a window of the template {body.template}", None, self.cache.namespace, live_scope())
        scope.is_response = scope.may_await = True
        token = current_scope.set(scope)
        try:
            texts = self._find(body)(self._context(body, request))
            text = self.environment.concat([one async for one in texts] if self.environment.is_async else texts)
        except Exception:
            self.environment.handle_exception()
        finally:
            scope.closed = True
            leave_scope(token)
        return marked(await self._filled(text, scope), body.escapes)

    async def _filled(self, text: str, scope: Scope) -> str:
        segments = scope.places.split(text, lambda: scope.name) if scope.places is not None else None
        if segments is None:
            return text
        results = await self.cache._filling().windows.fill(segments.places)
        filled: str = woven(
            segments.parts, [as_text(results[place.name, place.params], place) for place in segments.places]
        )
        return filled

    def _context(self, body: Body, request: object) -> Context:
        """What it is rendered with: the names that it declares, the globals, the request that is served."""
        values, served = dict(body.values), _request_here()
        if served is not None or request is not None:
            values["request"] = request if served is None else served
        return new_context(self.environment, body.template, {}, values, globals=self.environment.globals)


def _request_here() -> object:
    """The request that is being served, where there is one."""
    try:
        return current_request()
    except ConfigurationError:
        return None


def marked(text: str, escapes: bool) -> str:
    """Text of a template, as one that escapes takes it as it is."""
    return Markup(text) if escapes else text


def _names(loader: BaseLoader | None, name: str) -> Iterator[str]:
    """What a template may be loaded by that calls itself `name`: below a PrefixLoader it does not know the prefix."""
    if isinstance(loader, ChoiceLoader):
        for one in loader.loaders:
            yield from _names(one, name)
    elif isinstance(loader, PrefixLoader):
        for prefix, one in loader.mapping.items():
            yield from (f"{prefix}{loader.delimiter}{inner}" for inner in _names(one, name))
    else:
        yield name


@lru_cache(maxsize=MAX_KEPT)
def _is_relative(template: str) -> bool:
    """Whether a name stays below where the templates are, whatever a loader makes of it: it may have been changed."""
    path = PureWindowsPath(template)  # which takes both kinds of slashes
    return template.isprintable() and not path.anchor and ".." not in path.parts


# --- in an environment ---------------------------------------------------------------------------------

#: The attribute of an environment that has what is installed in it.
_INSTALLED: Final = "asynctag"


class Installed(NamedTuple):
    """What is installed in an environment."""

    environment: Environment
    cache: Cache
    window: BodyWindow


def installed_in(environment: Environment) -> Installed | None:
    """What is installed in an environment, or in the one that it is an overlay of."""
    installed: Installed | None = getattr(environment, _INSTALLED, None)
    return installed


def keep_installed(installed: Installed) -> None:
    vars(installed.environment)[_INSTALLED] = installed
