"""Keys: one for every spelling of a call, another for every other argument, the same in every process."""

import decimal
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import ConfigurationError, InvalidKeyError, UnstableArgumentError
from asynctag.keys import MAX_KEY_BYTES, build_binder, build_key_maker, check_key, function_name
from asynctag.stable import stable_text
from tests.values import UTC, Keyed, Level, Size, Text, distinct, same, values


def key_of(fn: Callable[..., object], **options: typing.Any) -> Callable[..., str]:
    return build_key_maker(fn, name="shop.product", **options)


def product(product_id: object, region: object = "eu", *, lang: object = None) -> None: ...


class TestKeyMaker:
    def test_every_spelling_of_a_call_is_one_key(self) -> None:
        """Positional, keyword and default."""
        key = key_of(product)
        spellings = [
            key(635),
            key(product_id=635),
            key(635, "eu"),
            key(635, region="eu"),
            key(lang=None, region="eu", product_id=635),
        ]
        assert set(spellings) == {"shop.product(635,'eu',None)"}

    def test_types_are_distinct(self) -> None:
        """What Python takes for equal is not one argument."""
        key = key_of(lambda x: x)
        assert len({key(1), key(True), key(1.0), key("1"), key(b"1"), key(decimal.Decimal(1)), key(Level.ONE)}) == 7

    def test_every_kind_of_parameter_has_its_place(self) -> None:
        """Variable ones are a tuple and a sorted dict."""

        def f(a: object, /, b: object = 2, *rest: object, c: object, d: object = 4, **more: object) -> None: ...

        key = key_of(f)
        assert key(1, c=3) == "shop.product(1,2,(),3,4,{})"
        assert key(1, 2, 3, c=3, z=1, a=2) == key(1, 2, 3, a=2, z=1, c=3) == "shop.product(1,2,(3,),3,4,{'a':2,'z':1})"

        def g(a: object, /, *, b: object = 5) -> None: ...

        assert key_of(g)(1) == "shop.product(1,5)"

        def h(a: object = 7, /) -> None: ...

        assert key_of(h)() == "shop.product(7)"
        assert key_of(lambda: None)() == "shop.product()"

    def test_parameters_may_be_called_anything(self) -> None:
        """The generated function hides nothing behind their names."""

        def f(type: object, len: object, _text: object, _type: object, made: object = 1, é: object = 2) -> None: ...  # noqa: A002

        assert key_of(f)(1, 2, 3, 4) == "shop.product(1,2,3,4,1,2)"
        assert key_of(f)(UTC, 2, 3, 4).endswith(",2,3,4,1,2)")

    def test_names_may_hold_anything(self) -> None:
        """They are text, never source."""
        for name in ("{x}", 'it\'s "x"', "\\", "é'''"):
            assert build_key_maker(lambda a: a, name=name)(1) == f"{name}(1)"
            assert build_key_maker(lambda: 0, name=name)() == f"{name}()"

    def test_wrong_arguments_raise_as_the_function_does(self) -> None:
        """The error is Python's and names the user's function."""
        wrong: list[tuple[tuple[object, ...], dict[str, object]]] = [((), {}), ((1,), {"x": 2}), ((1, 2, 3), {})]
        for args, kwargs in wrong:
            with pytest.raises(TypeError) as expected:
                typing.cast(Callable[..., None], product)(*args, **kwargs)
            for made in (key_of(product), build_binder(product)):
                with pytest.raises(TypeError) as caught:
                    made(*args, **kwargs)
                assert str(caught.value) == str(expected.value)

    def test_long_keys_are_hashed(self) -> None:
        """Arguments of more than 200 characters are a digest of fixed length."""
        key = key_of(lambda x: x)
        assert key("x" * 198) == f"shop.product('{'x' * 198}')"
        long = ["x" * 199, "x" * 200, ["x" * 197], "\ud800" * 99, 10**4000, 10**5000, -(10**5000)]
        hashed = [key(value) for value in long]
        assert len(set(hashed)) == len(long)
        assert all(one.startswith("shop.product(#") and len(one) == len("shop.product(#)") + 32 for one in hashed)

    def test_a_version_is_part_of_the_key(self) -> None:
        """Another meaning is another key."""
        assert key_of(product, version=2)(1) == "shop.product@2(1,'eu',None)"
        assert key_of(lambda: 0, version="b.1")() == "shop.product@b.1()"

    @pytest.mark.parametrize("bad", ["", "a b", "(", "x" * 51, True, 1.5, Size.BIG])
    def test_a_bad_version_is_refused(self, bad: object) -> None:
        """It must not look like another key."""
        with pytest.raises(ConfigurationError, match="version="):
            key_of(product, version=bad)

    def test_unstable_arguments_are_named(self) -> None:
        """The error says which function, which parameter, which type, and what to do."""
        key = build_key_maker(lambda a, session: a, name="shop.f")
        for value in (threading.Lock(), [threading.Lock()]):
            with pytest.raises(UnstableArgumentError) as caught:
                key(1, value)
            for part in ("'session' of shop.f", "_thread.lock", 'exclude={"session"}', "key=", "__cache_key__"):
                assert part in str(caught.value)

    def test_excluded_parameters_are_left_out(self) -> None:
        """They are given to the call all the same."""
        assert key_of(lambda self, a: a, exclude={"self"})(object(), 1) == "shop.product(1)"
        assert key_of(lambda *rest, **more: 0, exclude=["rest", "more"])(object(), x=1) == "shop.product()"
        with pytest.raises(ConfigurationError, match=r"'regio'.*mean 'region'"):
            key_of(product, exclude={"regio"})
        with pytest.raises(ConfigurationError, match="give a set"):
            key_of(product, exclude="region")

    def test_a_method_needs_a_key_of_its_object(self) -> None:
        """`__cache_key__` gives it."""

        def method(self: object, a: object) -> None: ...

        assert key_of(method)(Keyed(5), 1).endswith("values.Keyed(5),1)")
        with pytest.raises(UnstableArgumentError, match=r'exclude=\{"self"\}'):
            key_of(method)(object(), 1)

    def test_key_stands_for_all_arguments(self) -> None:
        """It takes some parameters by name, and gives any stable value."""
        assert key_of(product, key=lambda region, own=1: (region, own))(object()) == "shop.product(('eu',1,))"
        assert key_of(product, key=lambda **every: sorted(every))(1) == "shop.product(['lang','product_id','region'])"
        assert key_of(product, key=lambda product_id: "x" * 300)(1).startswith("shop.product(#")
        with pytest.raises(UnstableArgumentError, match=r"key= of shop\.product returned object"):
            key_of(product, key=lambda product_id: product_id)(object())

    def test_key_must_be_a_plain_function_of_the_parameters(self) -> None:
        """It is seen at decoration."""

        async def late(product_id: int) -> int:
            return product_id

        def positional(product_id: int, /) -> int:
            return product_id

        bad: list[tuple[Callable[..., object], str]] = [
            (late, "async"),
            (functools.partial(late), "async"),
            (positional, "by position"),
            (dict, "no signature"),
            (lambda produkt_id: 1, "mean 'product_id'"),
        ]
        for function, said in bad:
            with pytest.raises(ConfigurationError, match=said):
                key_of(product, key=function)

    def test_defaults_are_the_very_objects(self) -> None:
        """They are never written as source."""
        marker = Keyed([1])

        def f(a: object = marker, *, b: object = marker) -> None: ...

        assert build_binder(f)() == {"a": marker, "b": marker}
        assert key_of(f)() == key_of(f)(Keyed([1]), b=Keyed([1]))

    calls = st.tuples(values) | st.tuples(values, values)

    @given(calls, calls)
    def test_calls_have_one_key_exactly_if_their_arguments_are_the_same(
        self, one: tuple[object, ...], other: tuple[object, ...]
    ) -> None:
        """The fast path and the slow one agree, defaults included."""
        key = key_of(lambda a, b=None: a)
        full = [args if len(args) == 2 else (*args, None) for args in (one, other)]
        assert (key(*one) == key(*other)) == same(full[0], full[1])

    def test_values_have_the_text_of_values(self) -> None:
        """On the fast path and on the slow one."""
        key = key_of(lambda a, b: a)
        for value in distinct():
            for beside in (1, [1]):
                made, text = key(value, beside), f"{stable_text(value)},{stable_text(beside)}"
                assert made == f"shop.product({text})" or len(text) > 200


class TestBinder:
    def test_arguments_are_given_by_name(self) -> None:
        """With defaults, and variable ones under their own names."""

        def f(a: object, /, b: object = 2, *rest: object, c: object = 3, **more: object) -> None: ...

        assert build_binder(f)(1, 5, 6, z=1) == {"a": 1, "b": 5, "rest": (6,), "c": 3, "more": {"z": 1}}
        assert build_binder(lambda: None)() == {}

    def test_it_agrees_with_the_signature(self) -> None:
        """As `inspect` binds, so does it."""
        for args in ((1,), (1, 2)):
            bound = inspect.signature(product).bind(*args)
            bound.apply_defaults()
            assert build_binder(product)(*args) == bound.arguments


def closure() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


class TestFunctionName:
    def test_it_is_module_and_qualified_name(self) -> None:
        """Those name one function of a module."""
        assert function_name(product, None) == f"{__name__}.product"
        method = TestBinder.test_it_agrees_with_the_signature
        assert function_name(method, None) == f"{__name__}.TestBinder.test_it_agrees_with_the_signature"
        assert function_name(product, "mine") == "mine" == function_name(functools.partial(product), "mine")

    def test_two_closures_are_refused(self) -> None:
        """They would be served each other's values."""
        one, other = closure(), closure()
        assert one.__qualname__ == other.__qualname__
        for fn in (one, other, lambda: 1):
            with pytest.raises(ConfigurationError, match=r'two closures .* share a qualified name.*name="\.\.\."'):
                function_name(fn, None)

    def test_a_program_is_no_module(self) -> None:
        """`__main__` is another one each time."""
        main = types.FunctionType(product.__code__, {"__name__": "__main__"}, "product")
        with pytest.raises(ConfigurationError, match='name="'):
            function_name(main, None)

    def test_what_has_no_name_needs_one(self) -> None:
        """A partial, say."""
        with pytest.raises(ConfigurationError, match='name="'):
            function_name(functools.partial(product), None)

    @pytest.mark.parametrize("bad", ["", "a|b", "a\n", "a\x85", "x" * 201, "f(1)", "f@2", "\ud800", 5, b"x"], ids=ascii)
    def test_a_bad_name_is_refused(self, bad: typing.Any) -> None:
        """A name must not look like another key."""
        with pytest.raises(ConfigurationError, match="name="):
            function_name(product, bad)


class TestCheckKey:
    @pytest.mark.parametrize("good", ["k", "é" * 512, "x" * MAX_KEY_BYTES, "a b|c", Text("a")])
    def test_a_key_comes_back_as_it_is(self, good: str) -> None:
        """Any text of up to 1 KiB is a key; what comes back is exactly a str."""
        assert check_key(good) == good
        assert type(check_key(good)) is str

    @pytest.mark.parametrize(
        "bad", ["", 5, None, b"k", "x" * (MAX_KEY_BYTES + 1), "é" * 513, "\ud800", Size.BIG, ["k"]], ids=ascii
    )
    def test_what_is_no_key_is_refused(self, bad: object) -> None:
        """The error is clear and short."""
        with pytest.raises(InvalidKeyError, match="is not a key") as caught:
            check_key(bad)
        assert len(str(caught.value)) < 250


def test_a_key_function_of_positional_arguments_is_refused() -> None:
    """`key=` is called by name: with `*args` it would get nothing, and every call would share one key."""

    async def both(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ConfigurationError, match="by position only"):
        build_key_maker(both, name="both", key=lambda *args: args)
