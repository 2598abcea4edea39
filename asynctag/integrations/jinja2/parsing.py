"""How the tags are parsed, and what may not stand in them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NoReturn

from jinja2 import Environment, TemplateAssertionError, meta, nodes
from jinja2.compiler import find_undeclared
from jinja2.parser import Parser

from asynctag.errors import ConfigurationError
from asynctag.expiry import seconds
from asynctag.integrations.jinja2.bodies import BLOCK, hash_of

#: Seconds that a page waits for a window whose body stands in a template, unless the window says otherwise.
TIMEOUT = 10.0


def parse_arguments(parser: Parser) -> tuple[list[nodes.Expr], dict[str, nodes.Expr]]:
    """What a tag is given by position, and by name."""
    positional: list[nodes.Expr] = []
    named: dict[str, nodes.Expr] = {}
    while parser.stream.current.type != "block_end":
        if positional or named:
            parser.stream.expect("comma")
        if parser.stream.current.type == "name" and parser.stream.look().type == "assign":
            name = _parse_name(parser, named)
            next(parser.stream)
            named[name] = parser.parse_expression()
        elif named:
            parser.fail("what is given by position stands before what is given by name")
        else:
            positional.append(parser.parse_expression())
    return positional, named


def parse_limits(parser: Parser) -> tuple[float | None, str | None]:
    """`timeout=1, fallback=""`, as far as the names that a window declares."""
    timeout: float | None = TIMEOUT
    fallback: str | None = None
    seen: list[str] = []
    while parser.stream.current.type != "block_end" and not parser.stream.current.test("name:with"):
        if seen:
            parser.stream.expect("comma")
        if parser.stream.current.test("name:with"):
            parser.fail("no comma stands before `with`: {% window timeout=1 with currency %}")
        option = _parse_name(parser, seen)
        if option not in ("timeout", "fallback") or not parser.stream.skip_if("assign"):
            parser.fail(
                f'{{% window {option} %}}: write the name of a window as text, {{% window "{option}" %}}. What stands '
                f"up to {{% endwindow %}} is rendered on every serve: {{% window with {option} %}}, with timeout= and "
                f"fallback= before `with`"
            )
        seen.append(option)
        value = _parse_literal(parser, option)
        if option == "fallback":
            fallback = value if isinstance(value, str) else parser.fail(f"fallback={value!r} of a window: give text")
        elif value is None:
            timeout = None
        else:
            try:
                timeout = seconds(value, "timeout", zero=False)
            except ConfigurationError as error:
                parser.fail(str(error))
    return timeout, fallback


def _parse_literal(parser: Parser, option: str) -> Any:
    expression = parser.parse_expression()
    try:
        return expression.as_const(nodes.EvalContext(parser.environment, parser.name))
    except nodes.Impossible:
        parser.fail(f"{option}= of a window is compiled with the template: give a literal")


def parse_declared(parser: Parser) -> dict[str, nodes.Expr]:
    """`with currency, product_id=product.id`: names, and what they stand for where the window is placed."""
    values: dict[str, nodes.Expr] = {}
    if not parser.stream.skip_if("name:with"):
        return values
    while parser.stream.current.type != "block_end":
        if values:
            parser.stream.expect("comma")
        name = _parse_name(parser, values)
        if name == "request":
            parser.fail("a window need not declare request: in it, it is that of whom the page is served to")
        is_given = parser.stream.skip_if("assign")
        values[name] = parser.parse_expression() if is_given else nodes.Name(name, "load")
    return values


def _parse_name(parser: Parser, taken: Iterable[str]) -> str:
    name: str = parser.stream.expect("name").value
    if name in taken:
        parser.fail(f"{name!r} is given twice")
    return name


def dict_of(values: Mapping[str, nodes.Expr]) -> nodes.Dict:
    return nodes.Dict([nodes.Pair(nodes.Const(name), value) for name, value in values.items()])


def digest_of(parser: Parser, tree: object) -> str:
    """A hash of parts of a template, the same wherever it is compiled. Of two that are the same it tells the second."""
    seen: Counter[str] = vars(parser).setdefault("_asynctag_seen", Counter())
    digest = hash_of(tree)
    seen[digest] += 1
    return digest if seen[digest] == 1 else hash_of((digest, seen[digest]))


# --- the bodies of windows -----------------------------------------------------------------------------


def lift_windows(body: list[nodes.Node]) -> list[nodes.Node]:
    """Take the compiled bodies of inner windows out of that of another, which is compiled more than once."""
    lifted: list[nodes.Node] = []
    for node in list(body):
        if isinstance(node, nodes.If) and any(map(_is_of_window, node.body)):
            lifted.append(node)
            body[:] = [one for one in body if one is not node]
        elif isinstance(node, nodes.Node):  # an import has names there
            for _, field in node.iter_fields():
                lifted += lift_windows(field) if isinstance(field, list) else []
    return lifted


def _is_of_window(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Block) and node.name.startswith(BLOCK)


def check_body(
    environment: Environment, parser: Parser, body: list[nodes.Node], names: Iterable[str], lineno: int
) -> None:
    """Refuse in a window what is not there when it is rendered."""

    def refuse(what: str) -> NoReturn:
        parser.fail(f"in {{% window %}}: {what}", lineno, TemplateAssertionError)

    whole = nodes.Template(deepcopy(body), lineno=lineno)  # looking into it changes it
    whole.set_environment(environment)
    block = whole.find(nodes.Block)
    if block is not None:
        refuse(f"the block {block.name} may be another in a template that extends this one. Put the window into it")
    if find_undeclared(body, ("self",)):
        refuse("self is not there when it is rendered: only the names that it declares")
    try:
        undeclared = meta.find_undeclared_variables(whole).difference(names, ("request",))
    except TemplateAssertionError:
        return  # the compiler will say so, and where
    if undeclared:
        name = min(undeclared)
        refuse(
            f"{name!r} is not there when it is rendered, on every serve. Declare it, {{% window with {name} %}}, if it "
            f"is JSON and the same for everybody. Who is asking comes from request; a macro, from an import within it"
        )


# --- fragments -----------------------------------------------------------------------------------------


def check_fragment(parser: Parser, body: list[nodes.Node], lineno: int) -> None:
    """Refuse in a fragment what differs by where it stands, without a word of it in its key."""

    def refuse(what: str) -> NoReturn:
        parser.fail(f"in {{% cache %}}: {what}", lineno, TemplateAssertionError)

    for block in nodes.Template(body).find_all(nodes.Block):
        if not _is_of_window(block):
            refuse(f"the block {block.name} may be another in a template that extends this one. Put the tag into it")
    if find_undeclared(body, ("self",)):
        refuse("the blocks of self may be others in a template that extends this one. Vary by what they give")
    for name in _names_in(body):
        if name in ("caller", "varargs", "kwargs"):
            refuse(f"{name} is not there. Give it a name before, {{% set given = {name} %}}, and vary by it")
        if name == "super":
            refuse(
                "super() may give the block of another template, where one extends another template by a variable. Put "
                "the tag into the block that is meant"
            )


def _names_in(body: Iterable[nodes.Node]) -> Iterator[str]:
    """The names that are used, but for those within macros."""
    for node in body:
        if isinstance(node, nodes.Name) and node.ctx == "load":
            yield node.name
        elif isinstance(node, nodes.CallBlock):
            yield from _names_in([node.call])
        elif not isinstance(node, nodes.Macro | nodes.Block):
            yield from _names_in(node.iter_child_nodes())
