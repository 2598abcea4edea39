"""Tags: what a tag may be, composites of criteria, and templates that name parameters.

A tag is matched exactly, so one thing must always have one text. That is why only types with one obvious text
get one here: a formatted `float` or `bool`, or a member of an enum, is a trap that invalidates nothing.
"""

import dataclasses
import datetime
import enum
import inspect
import re
import reprlib
import string
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping

from asynctag.errors import InvalidTagError, TagTemplateError, TagTooLongError
from asynctag.names import MAX_BYTES, check_text
from asynctag.signatures import nearest_name, read_parameters

MAX_TAG_BYTES = MAX_BYTES
_SURELY_SHORT = 1 << 64

TagsOf: typing.TypeAlias = Callable[[Mapping[str, object]], tuple[str, ...]]
"""Bound arguments (name to value, defaults applied) to checked tags."""

_Render: typing.TypeAlias = Callable[[Mapping[str, object]], Iterable[str]]

_SPECIAL = re.compile(r"[%;:\x00-\x1f\x7f-\x9f]")
_WITHOUT_TEXT = (float, complex, bytes, bytearray, datetime.datetime, list, dict, set, frozenset, tuple)
_ADVICE = "Convert it to str yourself, or give tags= a function of the parameters"


def check_tag(tag: object) -> str:
    """Give the tag back as a plain `str`; raise `InvalidTagError` if it cannot be one."""
    if type(tag) is str and tag and len(tag) <= MAX_TAG_BYTES and tag.isascii():
        return tag
    return check_text(
        tag,
        "tag",
        InvalidTagError,
        too_long=TagTooLongError,
        example="Say what data the tag names, as in 'product:635'",
        shorter="Name the data by an id, or by a hash",
    )


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Check every tag; keep their order, drop repetitions."""
    if type(tags) is list:
        return tuple(dict.fromkeys(map(check_tag, tags)))
    if isinstance(tags, str | bytes):
        raise InvalidTagError(f"tags are {reprlib.repr(tags)}, one string: give a list, [{reprlib.repr(tags)}]")
    if not isinstance(tags, Iterable):
        raise InvalidTagError(f"tags are {_type_name(type(tags))}: give a list of strings")
    return tuple(dict.fromkeys(map(check_tag, tags)))


def tag(**criteria: object) -> str:
    """Compose the one tag of some criteria: `tag(type=1, category=15) == "category:15;type:1"`.

    Criteria are sorted by name. `%`, `;`, `:` and control characters in values are percent-escaped, so criteria
    whose names or texts differ never give one tag (`15` and `"15"` have one text). Names may hold dots:
    `tag(**{"category.id": 15})`.
    """
    if not criteria:
        raise InvalidTagError("tag() was called without criteria: give at least one, as in tag(product=635)")
    parts: list[str] = []
    for name in sorted(criteria):
        if not name or _SPECIAL.search(name):
            raise InvalidTagError(
                f"tag(): {reprlib.repr(name)} is no name of a criterion: it is empty, or has one of % ; : or a control"
                " character. Put such text in the value, where it is escaped"
            )
        text = text_of(criteria[name], f"the criterion {name!r} of tag()")
        parts.append(f"{name}:{_SPECIAL.sub(_percent, text)}")
    return check_tag(";".join(parts))


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def text_of(value: object, what: str) -> str:
    """Give the text of a value in a tag: `str`, `int`, `UUID`, `date` (ISO), an enum by its value; others are refused.

    `what` says in errors where the value comes from: "the parameter 'x' of shop.product".
    """
    kind = type(value)
    if kind is str:
        return typing.cast(str, value)
    if kind is int and -_SURELY_SHORT < typing.cast(int, value) < _SURELY_SHORT:
        return str(value)
    if isinstance(value, enum.Enum):
        return text_of(value.value, f"the value of {_type_name(kind)}, {what},")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and kind is not bool:
        try:
            return int.__repr__(value)
        except ValueError:
            raise InvalidTagError(f"{what} is an int with too many digits for a tag") from None
    if isinstance(value, uuid.UUID):
        return uuid.UUID.__str__(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.date.isoformat(value)
    raise InvalidTagError(
        f"{what} is {_type_name(kind)}, which has no one text that is safe in a tag"
        f" (str, int, UUID, date and enums of these have). {_ADVICE}"
    )


class TagTemplates:
    """What `compile_tags` makes of `tags=`: called with the bound arguments, it gives checked tags.

    `constant` holds the tags where they depend on no argument: then nothing need be bound at all.
    """

    __slots__ = ("_render", "constant")

    def __init__(self, render: _Render | None, constant: tuple[str, ...] | None) -> None:
        self._render = render
        self.constant = constant

    def __call__(self, arguments: Mapping[str, object]) -> tuple[str, ...]:
        if self._render is None:
            return self.constant or ()
        return check_tags(self._render(arguments))


def compile_tags(
    spec: Iterable[str] | Callable[..., Iterable[str]] | None,
    signature: inspect.Signature,
    *,
    owner: str,
    annotations: Mapping[str, object] | None = None,
    extra_names: bool = False,
) -> TagTemplates:
    """Compile `tags=`: a list of templates such as `"product:{product_id}"`, or a function of the parameters.

    Templates name parameters and nothing else; `{{` and `}}` are braces. Nothing is escaped in them: where a text can
    hold separators, use a function that calls `tag()`. `annotations` are resolved types, for refusing at once what has
    no text. With `extra_names`, names that are not in the signature are looked up at run time.
    """
    if spec is None:
        return TagTemplates(None, ())
    if isinstance(spec, str | bytes):
        raise TagTemplateError(f"tags= of {owner} is one string: give a list, tags=[{reprlib.repr(spec)}]")
    if callable(spec):
        return TagTemplates(_compile_function(spec, signature, owner, extra_names), None)
    if not isinstance(spec, Iterable):
        raise TagTemplateError(f"tags= of {owner} is {_type_name(type(spec))}: give a list of strings, or a function")
    known = _Names(signature, owner, annotations or {}, extra_names)
    templates = [_compile_template(template, known) for template in spec]
    if all(isinstance(template, str) for template in templates):
        return TagTemplates(None, check_tags(typing.cast("list[str]", templates)))

    def render(arguments: Mapping[str, object]) -> list[str]:
        return [template if isinstance(template, str) else template(arguments) for template in templates]

    return TagTemplates(render, None)


class _Names:
    """The names that a template may use, and what is wrong with the others."""

    def __init__(
        self, signature: inspect.Signature, owner: str, annotations: Mapping[str, object], extra_names: bool
    ) -> None:
        self.owner = owner
        self._parameters = signature.parameters
        self._annotations = annotations
        self._extra_names = extra_names

    def check(self, name: str, template: str) -> None:
        where = f"The template {template!r} of {self.owner} names {name!r}, "
        parameter = self._parameters.get(name)
        if parameter is None:
            if self._extra_names:
                return
            raise TagTemplateError(f"{where}which is not a parameter. {nearest_name(name, self._parameters)}")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TagTemplateError(f"{where}which holds any number of arguments. Give tags= a function instead")
        refused = _refused_annotation(self._annotations.get(name, inspect.Parameter.empty))
        if refused is not None:
            raise TagTemplateError(f"{where}which is {refused}: it has no one text that is safe in a tag. {_ADVICE}")


def _compile_template(template: object, names: _Names) -> str | Callable[[Mapping[str, object]], str]:
    """Give the text of a template without names, else a function that fills it."""
    if not isinstance(template, str) or isinstance(template, enum.Enum):
        raise TagTemplateError(f"tags= of {names.owner} holds {reprlib.repr(template)}: give strings")
    pieces: list[tuple[str, str | None]] = []
    try:
        parsed = list(string.Formatter().parse(str.__str__(template)))
    except ValueError as error:
        raise TagTemplateError(
            f"The template {template!r} of {names.owner} is malformed: {error}. Write {{{{ and }}}} for braces"
        ) from None
    for literal, name, form, conversion in parsed:
        if name is not None:
            if form or conversion or not name.isidentifier():
                raise TagTemplateError(
                    f"The template {template!r} of {names.owner} has more in braces than the name of a parameter."
                    " For attributes, items, positions and formats give tags= a function of the parameters"
                )
            names.check(name, template)
        pieces.append((literal, name))
    if all(name is None for _, name in pieces):
        return check_tag("".join(literal for literal, _ in pieces))
    owner = names.owner

    def fill(arguments: Mapping[str, object]) -> str:
        text = ""
        for literal, name in pieces:
            text += literal
            if name is not None:
                try:
                    value = arguments[name]
                except KeyError:
                    raise TagTemplateError(
                        f"The template {template!r} of {owner} names {name!r}, which this call has not."
                        f" {nearest_name(name, arguments)}"
                    ) from None
                text += text_of(value, f"the parameter {name!r} of {owner}")
        return text

    return fill


def _compile_function(
    function: Callable[..., Iterable[str]], signature: inspect.Signature, owner: str, extra_names: bool
) -> _Render:
    what = f"The function for tags= of {owner}"
    parameters = read_parameters(
        function,
        signature.parameters,
        what=what,
        instead="give a plain function, and call add_tags() for what must be awaited",
        error=TagTemplateError,
        extra_names=extra_names,
    )
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [(one.name, one.default is one.empty) for one in parameters if one.kind not in variadic]

    def render(arguments: Mapping[str, object]) -> Iterable[str]:
        if takes_all:
            return function(**arguments)
        given: dict[str, object] = {}
        for name, required in wanted:
            if name in arguments:
                given[name] = arguments[name]
            elif required:
                raise TagTemplateError(f"{what} takes {name!r}, which this call has not.")
        return function(**given)

    return render


def _refused_annotation(annotation: object) -> str | None:
    """Name the type if no value of it has a text. Unions, `Any`, variables, unknown names are left to run time."""
    while typing.get_origin(annotation) is typing.Annotated or isinstance(annotation, typing.NewType):
        wrapped = "__supertype__" if isinstance(annotation, typing.NewType) else "__origin__"
        annotation = getattr(annotation, wrapped)
    kind = types.NoneType if annotation is None else typing.get_origin(annotation) or annotation
    if not isinstance(kind, type) or issubclass(kind, enum.Enum):
        return None
    if kind in (bool, types.NoneType) or issubclass(kind, _WITHOUT_TEXT):
        return _type_name(kind)
    has_text = issubclass(kind, str | int | uuid.UUID | datetime.date)
    return _type_name(kind) if dataclasses.is_dataclass(kind) and not has_text else None


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
