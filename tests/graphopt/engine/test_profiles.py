"""Shape strings, automatic profiles, and the errors that name input, axis and flag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.engine.profiles import Input, Limits, Range, automatic, explicit, parse_shapes
from graphopt.errors import EngineError
from graphopt.ir.kv_cache import CAPACITY

X = Input("x", ("rows", 64))
STATIC = Input("scale", (1,))
NAMES = st.text(st.characters(exclude_characters=",:*", exclude_categories=["Z", "C"]), min_size=1)


def decoder(layers: int = 2) -> list[Input]:
    names = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    return [
        Input("input_ids", ("batch", "sequence")),
        Input("attention_mask", ("batch", "total")),
        Input("position_ids", ("batch", "sequence")),
        *(Input(n, ("batch", 3, "past", 64)) for n in names),
    ]


@given(st.dictionaries(NAMES, st.lists(st.integers(0, 10**6), min_size=1, max_size=6), min_size=1))
def test_shapes_are_read_as_written(shapes: dict[str, list[int]]) -> None:
    text = ",".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())
    assert parse_shapes(text) == {name: tuple(dims) for name, dims in shapes.items()}


def test_names_may_contain_colons() -> None:
    assert parse_shapes("model/x:0:4x8") == {"model/x:0": (4, 8)}


@pytest.mark.parametrize("text", ["", "x", "x:", ":1x2", "x:1xA", "x:-1x4", "x:1x", "x:1,", "x:1 x 2", "x=1x2"])
def test_unreadable_shapes_show_how_to_write_them(text: str) -> None:
    with pytest.raises(EngineError, match=r"cannot read '.*' in --opt-shapes; write it like x:1x4,y:1x8x64"):
        parse_shapes(text, "--opt-shapes")


def test_an_input_named_twice_is_refused() -> None:
    with pytest.raises(EngineError, match="--opt-shapes names input 'x' twice"):
        parse_shapes("x:1x2,x:2x2", "--opt-shapes")


@pytest.mark.parametrize(
    ("low", "opt", "high", "expected"),
    [
        (["x:1x64"], ["x:4x64"], ["x:8x64"], Range((1, 64), (4, 64), (8, 64))),
        ([], ["x:4x64"], [], Range((4, 64), (4, 64), (4, 64))),
        (["x:1x64"], [], ["x:8x64"], Range((1, 64), (8, 64), (8, 64))),
        (["x:1x64"], [], [], Range((1, 64), (1, 64), (1, 64))),
        (["x:0x64"], ["*:4x64"], [], Range((0, 64), (4, 64), (4, 64))),
    ],
)
def test_missing_bounds_follow_from_the_others(
    low: list[str], opt: list[str], high: list[str], expected: Range
) -> None:
    (profile,) = explicit([X], low, opt, high)
    assert profile.ranges == {"x": expected}


def test_repeated_flags_make_more_profiles_and_static_inputs_need_no_shape() -> None:
    profiles = explicit([X, STATIC], ["x:1x64", "x:9x64"], ["x:4x64", "x:9x64,scale:1"], ["x:8x64", "x:90x64"])
    assert [p.ranges["x"].max for p in profiles] == [(8, 64), (90, 64)]
    assert all(set(p.ranges) == {"x"} for p in profiles)


def test_patterns_give_way_to_names() -> None:
    (profile,) = explicit(decoder(), [], ["*:1x5,past*:1x3x7x64,past_key_values.1.key:1x3x9x64"], [])
    assert profile.ranges["input_ids"].opt == (1, 5)
    assert profile.ranges["past_key_values.0.value"].opt == (1, 3, 7, 64)
    assert profile.ranges["past_key_values.1.key"].opt == (1, 3, 9, 64)


@pytest.mark.parametrize(
    ("low", "opt", "high", "says"),
    [
        ([], ["y:1x64"], [], r"--opt-shapes names input 'y', which the model does not have; known: scale, x"),
        ([], ["scal:1,x:1x64"], [], r"names input 'scal', .*; did you mean 'scale'\?"),
        ([], ["past*:1x64"], [], r"names input 'past\*', which the model does not have"),
        (["x:1x64x1"], ["x:1x64"], [], r"input 'x' \[rows, 64\] has 2 dimensions, but --min-shapes gives 1x64x1"),
        ([], [], ["x:1x63"], r"axis 1 of input 'x' \[rows, 64\] is fixed at 64, but --max-shapes gives 1x63"),
        (["x:5x64"], ["x:4x64"], ["x:8x64"], r"axis 0 of input 'x' .* has min 5, opt 4, max 8; they must not decrease"),
        ([], ["x:4x64"], ["x:3x64"], r"axis 0 of input 'x' .* has min 4, opt 4, max 3; they must not decrease"),
        ([], ["scale:1"], [], r"input 'x' \[rows, 64\] is dynamic but has no shape; add 'x:\.\.\.' to --opt-shapes"),
        (["x:1x64"], ["x:1x64", "x:2x64"], [], r"--min-shapes was given 1 times and another bound 2 times"),
    ],
)  # fmt: skip
def test_wrong_shapes_name_the_culprit(low: list[str], opt: list[str], high: list[str], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        explicit([X, STATIC], low, opt, high)


def test_static_models_get_no_profile() -> None:
    assert automatic([STATIC], Limits(), split=True) == []
    assert explicit([STATIC], [], ["scale:1"], []) == []


def test_encoder_gets_one_profile() -> None:
    inputs = [Input("input_ids", ("b", "s")), Input("attention_mask", ("b", "s"))]
    (profile,) = automatic(inputs, Limits(batch=8, seq=128), split=True)
    assert profile.ranges["attention_mask"] == Range((1, 1), (4, 64), (8, 128)) == profile.ranges["input_ids"]


def test_decoder_with_cache_splits_into_prompt_and_generation() -> None:
    prefill, decode = automatic(decoder(), Limits(batch=4, seq=100, past=1000), split=True)
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.ranges["input_ids"] == Range((1, 1), (2, 50), (4, 100))
    assert prefill.ranges["attention_mask"] == Range((1, 1), (2, 50), (4, 1100))
    assert prefill.ranges["past_key_values.0.key"] == Range((1, 3, 0, 64), (2, 3, 0, 64), (4, 3, 1000, 64))
    assert decode.ranges["position_ids"] == Range((1, 1), (2, 1), (4, 1))
    assert decode.ranges["attention_mask"] == Range((1, 1), (2, 501), (4, 1001))


@pytest.mark.parametrize("split", [False, True])
def test_a_cache_updated_in_place_is_large_enough_in_every_profile(split: bool) -> None:
    cache = Input("past_key_values.0.key", ("batch", 3, CAPACITY, 64))
    start = Input("start", ("batch",))
    inputs = [Input("input_ids", ("batch", "sequence")), cache, start]
    for profile in automatic(inputs, Limits(4, 32, 96), split=split):
        assert profile.ranges[cache.name] == Range((1, 3, 1, 64), (2, 3, 128, 64), (4, 3, 128, 64))
        assert profile.ranges["start"] == Range((1,), (2,), (4,))


def test_a_cache_of_codes_has_whole_pages() -> None:
    inputs = [Input("input_ids", ("batch", "sequence")), Input("past_key_values.0.key", ("batch", 3, CAPACITY, 32))]
    (profile,) = automatic(inputs, Limits(1, 100, 100), split=False, coded=True)
    assert profile.ranges["past_key_values.0.key"] == Range((1, 3, 64, 32), (1, 3, 256, 32), (1, 3, 256, 32))


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(0, 10**5), st.booleans())
def test_automatic_ranges_are_ordered_and_agree_with_each_other(batch: int, seq: int, past: int, split: bool) -> None:
    profiles = automatic(decoder(), Limits(batch, seq, past), split=split)
    assert len(profiles) == (2 if split else 1)
    for profile in profiles:
        assert set(profile.ranges) == {i.name for i in decoder()}
        for shapes in profile.ranges.values():
            assert all(a <= b <= c for a, b, c in zip(shapes.min, shapes.opt, shapes.max, strict=True))
        ids, mask, cache = (
            profile.ranges[n] for n in ("input_ids", "attention_mask", "past_key_values.0.key")
        )  # fmt: skip
        for bound in ("min", "opt", "max"):
            (b, s), (b2, total), (b3, _, p, _) = (getattr(r, bound) for r in (ids, mask, cache))
            assert b == b2 == b3
            assert total == s + p
    assert max(p.ranges["input_ids"].max for p in profiles) == (batch, seq)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("seq", -1), ("past", -1)])
def test_limits_must_make_sense(name: str, value: int) -> None:
    with pytest.raises(EngineError, match=f"--max-{name} must be at least [01], not {value}"):
        Limits(**{name: value})
