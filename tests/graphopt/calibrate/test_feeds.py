from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt import ir
from graphopt.calibrate import feeds
from graphopt.calibrate.feeds import Input
from graphopt.errors import CalibrationError
from tests.support.arrays import activations
from tests.support.decoders import with_static_cache, write_decoder

INT64, FLOAT = np.dtype(np.int64), np.dtype(np.float32)
DECODER = [
    Input("input_ids", INT64, ("batch", "sequence"), 50),
    Input("attention_mask", INT64, ("batch", "total")),
    Input("position_ids", np.dtype(np.int32), ("batch", "sequence")),
    Input("past_key_values.0.key", FLOAT, ("batch", 3, "past", 16)),
    Input("past_key_values.0.value", np.dtype(np.float16), ("batch", 3, "past", 16)),
]
ENCODER = [DECODER[0], DECODER[1], Input("token_type_ids", INT64, ("batch", "sequence"))]
FLOATS = [Input("x", FLOAT, (None, "tokens", 32)), Input("gain", FLOAT, (32,))]


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def test_a_decoder_feed_follows_from_tokens(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 50, (2, 7))
    feed = feeds.from_tokens(DECODER, tokens)
    assert [(n, a.dtype, a.shape) for n, a in feed.items()] == [
        ("input_ids", np.int64, (2, 7)),
        ("attention_mask", np.int64, (2, 7)),
        ("position_ids", np.int32, (2, 7)),
        ("past_key_values.0.key", np.float32, (2, 3, 0, 16)),
        ("past_key_values.0.value", np.float16, (2, 3, 0, 16)),
    ]
    np.testing.assert_array_equal(feed["input_ids"], tokens)
    assert feed["attention_mask"].all()
    np.testing.assert_array_equal(feed["position_ids"], [np.arange(7)] * 2)


def test_an_encoder_feed_has_one_segment(rng: np.random.Generator) -> None:
    feed = feeds.from_tokens(ENCODER, rng.integers(0, 50, (1, 7)))
    assert not feed["token_type_ids"].any()
    assert feed["token_type_ids"].shape == (1, 7)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([Input("inputs_embeds", FLOAT, ("b", "s", 8))], "needs an input 'input_ids'"),
        ([DECODER[0], Input("pixel_values", FLOAT, ("b", 3, 8, 8))], "no value for input 'pixel_values'"),
        (
            [DECODER[0], Input("past_key_values.0.key", FLOAT, (1, 3, 128, 16))],
            "no value for input 'past_key_values.0.key'",
        ),
        ([Input("input_ids", INT64, (1, 128), 50)], r"got shape \[1, 7\], but the model declares \[1, 128\]"),
        ([Input("input_ids", INT64, ("b", "s"), 3)], "the model's table has 3 rows; was the text cut by another"),
    ],
)
def test_inputs_that_do_not_follow_are_named(inputs: list[Input], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        feeds.from_tokens(inputs, np.array([[5, 3, 9, 11, 2, 4, 8]]))


def test_npz_is_cut_into_samples(tmp_path: Path, rng: np.random.Generator) -> None:
    x, gain = activations(rng, 4, 6, 32), activations(rng, 4, 32)
    got = list(feeds.from_npz(FLOATS, _npz(tmp_path, x=x, gain=gain)))
    assert len(got) == 4
    for i, feed in enumerate(got):
        np.testing.assert_array_equal(feed["x"], x[i : i + 1])
        np.testing.assert_array_equal(feed["gain"], gain[i])


def test_npz_with_a_rank_more_holds_whole_feeds(tmp_path: Path, rng: np.random.Generator) -> None:
    x, gain = activations(rng, 3, 2, 6, 32), activations(rng, 3, 32)
    got = list(feeds.from_npz(FLOATS, _npz(tmp_path, x=x, gain=gain)))
    assert [f["x"].shape for f in got] == [(2, 6, 32)] * 3
    np.testing.assert_array_equal(np.stack([f["x"] for f in got]), x)


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    inputs = [Input("x", FLOAT, (None, 4)), Input("t", FLOAT, ())]
    path = _npz(tmp_path, x=np.ones((2, 1, 4), np.float32), t=np.array([3, 4], np.float32))
    assert [(f["t"].shape, f["t"].item()) for f in feeds.from_npz(inputs, path)] == [((), 3), ((), 4)]
    (feed,) = feeds.random(inputs, samples=1, length=3, seed=0)
    assert feed["t"].shape == ()


def test_npz_with_a_fixed_batch(tmp_path: Path, rng: np.random.Generator) -> None:
    inputs = [Input("x", FLOAT, (2, 32))]
    assert [f["x"].shape for f in feeds.from_npz(inputs, _npz(tmp_path, x=activations(rng, 6, 32)))] == [(2, 32)] * 3
    with pytest.raises(CalibrationError, match="not a multiple of the batch size 2"):
        feeds.from_npz(inputs, _npz(tmp_path, x=activations(rng, 5, 32)))


def test_npz_with_left_padding_gives_positions(tmp_path: Path) -> None:
    tokens, mask = np.array([[7, 7, 4, 9]]), np.array([[0, 0, 1, 1]])
    (feed,) = feeds.from_npz(DECODER, _npz(tmp_path, input_ids=tokens, attention_mask=mask))
    np.testing.assert_array_equal(feed["position_ids"], [[0, 0, 0, 1]])


def test_npz_dtypes_widen_but_do_not_change_kind(tmp_path: Path, rng: np.random.Generator) -> None:
    x, gain = activations(rng, 1, 6, 32).astype(np.float64), activations(rng, 1, 32)
    (feed,) = feeds.from_npz(FLOATS, _npz(tmp_path, x=x, gain=gain))
    assert feed["x"].dtype == np.float32
    with pytest.raises(CalibrationError, match="'input_ids' got float64, but the model declares int64"):
        list(feeds.from_npz(ENCODER, _npz(tmp_path, input_ids=np.array([[1.5, 2.5]]))))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"y": (2, 6, 32), "gain": (2, 32)}, "array 'y' is no input of the model"),
        ({"gains": (2, 32)}, "array 'gains' is no input of the model; did you mean 'gain'"),
        ({"x": (2, 6, 32)}, "no value for input 'gain'"),
        ({"x": (2, 6, 31), "gain": (2, 32)}, r"'x' got shape \[1, 6, 31\], but the model declares \[\?, tokens, 32\]"),
        ({"x": (2, 32), "gain": (2, 32)}, "array 'x' has rank 2; the input's is 3, so give 3 or 4"),
        ({"x": (2, 6, 32), "gain": (3, 32)}, "different numbers of samples \\('x' 2, 'gain' 3\\)"),
        ({"x": (0, 6, 32), "gain": (0, 32)}, "holds no samples"),
    ],
)
def test_npz_that_does_not_fit_is_named(
    tmp_path: Path, rng: np.random.Generator, names: dict[str, tuple[int, ...]], message: str
) -> None:
    path = _npz(tmp_path, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()})
    with pytest.raises(CalibrationError, match=message):
        list(feeds.from_npz(FLOATS, path))


def test_damaged_npz_files_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _npz(tmp_path, x=activations(rng, 4, 6, 32), gain=activations(rng, 4, 32))
    whole = path.read_bytes()
    cases = {
        "cut.npz": (whole[: len(whole) // 2], "truncated"),
        "text.npz": (b"not an archive", "not an .npz"),
        "flipped.npz": (whole.replace(b"descr", b"dexcr"), "not an .npz"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CalibrationError, match=f"{name} .*{message}"):
            feeds.from_npz(FLOATS, tmp_path / name)
    np.save(tmp_path / "one.npy", activations(rng, 4, 32))
    with pytest.raises(CalibrationError, match=r"one.npy is a single array"):
        feeds.from_npz(FLOATS, tmp_path / "one.npy")
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(CalibrationError, match=r"pickled.npz is not an .npz of plain arrays"):
        feeds.from_npz(FLOATS, tmp_path / "pickled.npz")
    with pytest.raises(CalibrationError, match=r"none.npz does not exist"):
        feeds.from_npz(FLOATS, tmp_path / "none.npz")


def test_random_feeds_are_seeded_and_have_outliers() -> None:
    inputs = [Input("x", FLOAT, (None, "tokens", 128))]
    a, b, c = (list(feeds.random(inputs, samples=2, length=64, seed=s)) for s in (3, 3, 4))
    for first, second in zip(a, b, strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])
    assert not np.array_equal(a[0]["x"], c[0]["x"])
    assert not np.array_equal(a[0]["x"], a[1]["x"])
    absmax = np.abs(a[0]["x"]).max(axis=(0, 1))
    assert a[0]["x"].shape == (1, 64, 128)
    assert 0 < (absmax > 10).sum() < 16


def test_random_tokens_stay_within_the_vocabulary() -> None:
    (feed,) = feeds.random(DECODER, samples=1, length=4000, seed=0)
    assert (feed["input_ids"].min(), feed["input_ids"].max()) == (0, 49)
    assert feed["past_key_values.0.key"].shape == (1, 3, 0, 16)


def test_random_tokens_of_both_stacks_of_a_model() -> None:
    inputs = [Input("input_features", np.dtype(np.float32), (1, 8, 30)), Input("decoder_input_ids", INT64, (1, "n"), 9)]
    (feed,) = feeds.random(inputs, samples=1, length=400, seed=0)
    assert feed["decoder_input_ids"].shape == (1, 400)
    assert set(feed["decoder_input_ids"].ravel()) == set(range(9))


def test_random_integers_need_a_range() -> None:
    with pytest.raises(CalibrationError, match="random data gives no value for input 'labels'"):
        list(feeds.random([Input("labels", INT64, ("b",))], samples=1, length=4, seed=0))


def _model(tmp_path: Path, graph: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{graph}')
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((50, 4), np.float32), "table")
    )
    onnx.save(proto, tmp_path / "m.onnx")
    return ir.load(tmp_path / "m.onnx")


def test_declared_inputs_and_the_vocabulary(tmp_path: Path) -> None:
    model = _model(
        tmp_path,
        "m (int32[batch, tokens] input_ids, float16[1, n] scale, int64 step) => (float[a, b, c] y)"
        "{ wide = Cast <to = 7> (input_ids)\n y = Gather(table, wide) }",
    )
    assert feeds.declared(model) == [
        Input("input_ids", np.dtype(np.int32), ("batch", "tokens"), 50),
        Input("scale", np.dtype(np.float16), (1, "n")),
        Input("step", INT64, ()),
    ]


def test_an_input_without_a_shape_is_named(tmp_path: Path) -> None:
    model = _model(tmp_path, "m (float[n] x) => (float[n] y) { y = Relu(x) }")
    proto = onnx.load(tmp_path / "m.onnx")
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="input 'x' of the model declares no type or no shape"):
        feeds.declared(model)


def test_tokens_behind_others_follow_them() -> None:
    feed = feeds.from_tokens(DECODER[:3], np.array([[7, 8]]), past=5)
    assert feed["attention_mask"].tolist() == [[1] * 7]
    assert feed["position_ids"].tolist() == [[5, 6]]


def test_a_cache_updated_in_place_has_room_for_the_tokens() -> None:
    start = Input("start", np.dtype(np.int32), ("batch",), role="start")
    cache = [Input(f"c{i}", FLOAT, ("batch", 3, rows, 16), role="cache") for i, rows in enumerate(("capacity", 40))]
    feed = feeds.from_tokens([DECODER[0], start, *cache], np.array([[7, 8, 9]] * 2), past=4)
    assert feed["start"].tolist() == [4, 4]
    codes = replace(cache[0], name="codes", dtype=np.dtype(np.int8))
    assert feeds.from_tokens([DECODER[0], codes], np.ones((2, 65), int))["codes"].shape == (2, 3, 128, 16)
    assert (feed["c0"].shape, feed["c1"].shape) == ((2, 3, 3, 16), (2, 3, 40, 16))


def test_roles_come_from_the_metadata(tmp_path: Path) -> None:
    static = with_static_cache(write_decoder(tmp_path / "m.onnx"), tmp_path / "s.onnx")
    roles = {i.name: i.role for i in feeds.declared(ir.load(static))}
    assert roles == {"input_ids": None, "start": "start"} | {
        f"past_key_values.{i}.{kind}": "cache" for i in range(2) for kind in ("key", "value")
    }
