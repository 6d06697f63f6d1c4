"""The statistics file: what is saved is what is loaded, and nothing damaged is."""

import io
import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.core.statistics import AttentionStatistics, LinearStatistics, Statistics, require_second_moment
from graphopt.errors import CalibrationError, OutputError
from tests.support.arrays import activations


def entry(rng: np.random.Generator, channels: int = 20, moment: bool = False) -> LinearStatistics:
    x = activations(rng, 50, channels).astype(np.float64)
    return LinearStatistics(
        absmax=np.abs(x).max(0).astype(np.float32),
        mean_square=(x**2).mean(0),
        tokens=50,
        second_moment=(x.T @ x / 50).astype(np.float32) if moment else None,
    )


def example(rng: np.random.Generator) -> Statistics:
    linears = {"model.layers.0.q": entry(rng), "weird/name.npy 日本": entry(rng, 7, True), "third": entry(rng, 1)}
    attentions = {"attn": attention_entry(rng)}
    return Statistics(linears, {"text": "wiki", "tokens": 50, "list": [1, 2]}, attentions)


def attention_entry(rng: np.random.Generator) -> AttentionStatistics:
    keys, values = (activations(rng, 30, 2, size, dtype=np.float16) for size in (8, 4))
    costs = rng.uniform(0, 3, (2, 30, 2)).astype(np.float32)
    return AttentionStatistics(keys, values, *costs, rng.uniform(0, 3, (2, 8)).astype(np.float32))


def assert_equal(a: Statistics, b: Statistics) -> None:
    assert list(a.linears) == list(b.linears)
    assert a.source == b.source
    assert list(a.attentions) == list(b.attentions)
    for name, layer in a.attentions.items():
        for field, array in vars(layer).items():
            np.testing.assert_array_equal(array, getattr(b.attentions[name], field))
    for name, x in a.linears.items():
        y = b.linears[name]
        assert (x.tokens, x.channels, x.rms) == (y.tokens, y.channels, y.rms)
        for one, other in ((x.absmax, y.absmax), (x.mean_square, y.mean_square), (x.second_moment, y.second_moment)):
            assert (one is None) == (other is None)
            if one is not None:
                assert other is not None
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)


def test_round_trip(rng: np.random.Generator, tmp_path: Path) -> None:
    statistics = example(rng)
    statistics.save(tmp_path / "s.npz")
    assert_equal(Statistics.load(tmp_path / "s.npz"), statistics)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    Statistics().save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz").linears == {}


def test_linears_of_one_input_share_an_entry(rng: np.random.Generator, tmp_path: Path) -> None:
    shared, other = entry(rng, 30, True), entry(rng, 30, True)
    Statistics({"q": shared, "o": other, "k": shared}).save(tmp_path / "s.npz")
    Statistics({"q": shared, "o": other}).save(tmp_path / "two.npz")
    loaded = Statistics.load(tmp_path / "s.npz").linears
    assert list(loaded) == ["q", "o", "k"]
    assert loaded["q"] is loaded["k"]
    np.testing.assert_array_equal(loaded["o"].second_moment, other.second_moment)
    assert (tmp_path / "s.npz").stat().st_size < (tmp_path / "two.npz").stat().st_size + 100


def test_files_with_an_entry_for_each_name_are_read(rng: np.random.Generator, tmp_path: Path) -> None:
    rewritten(rng, tmp_path / "s.npz", {"entries": None})
    assert [e.channels for e in Statistics.load(tmp_path / "s.npz").linears.values()] == [20, 7, 1]


def test_large_second_moments_stay_in_the_file(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = Statistics({"small": entry(rng, 9, True), "large": entry(rng, 40, True)})
    statistics.save(tmp_path / "s.npz")
    monkeypatch.setattr("graphopt.core.statistics._MAPPED_BYTES", 40 * 40 * 4)
    loaded = Statistics.load(tmp_path / "s.npz")
    assert_equal(loaded, statistics)
    assert [isinstance(e.second_moment, np.memmap) for e in loaded.linears.values()] == [False, True]
    assert_equal(Statistics.load(tmp_path / "s.npz"), loaded)
    loaded.save(tmp_path / "s.npz")  # over the file that is mapped
    assert_equal(Statistics.load(tmp_path / "s.npz"), statistics)


@given(
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), unique=True, max_size=5), seed=st.integers(0, 99)
)
def test_any_names(tmp_path_factory: pytest.TempPathFactory, names: list[str], seed: int) -> None:
    path = tmp_path_factory.mktemp("stats") / "s"
    rng = np.random.default_rng(seed)
    statistics = Statistics({n: entry(rng, int(rng.integers(1, 9)), bool(rng.integers(2))) for n in names})
    statistics.save(path)
    assert_equal(Statistics.load(path), statistics)


def test_rms_is_over_tokens_and_channels(rng: np.random.Generator) -> None:
    x = activations(rng, 64, 12).astype(np.float64)
    stats = LinearStatistics(np.abs(x).max(0), (x**2).mean(0), 64)
    assert stats.rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-12)
    assert stats.channels == 12


def refusal(path: Path) -> str:
    with pytest.raises(CalibrationError) as e:
        Statistics.load(path)
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)
    return str(e.value)


def test_missing(tmp_path: Path) -> None:
    assert "does not exist; make it with 'graphopt calibrate'" in refusal(tmp_path / "no.npz")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for content in (b"", b"hello", b"PK\x05\x06" + bytes(18), bytes(100)):
        path.write_bytes(content)
        assert "is not a statistics file" in refusal(path)
    assert "is not a statistics file" in refusal(tmp_path)
    np.savez(path, a=np.arange(3))
    assert "is not a statistics file" in refusal(path)
    with path.open("wb") as f:
        np.save(f, np.arange(3.0))
    assert "is not a statistics file" in refusal(path)
    with path.open("wb") as f:
        np.save(f, np.array([{"pickled": 1}], object), allow_pickle=True)
    assert "is not a statistics file" in refusal(path)


def test_truncated_or_damaged_anywhere(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    statistics = example(rng)
    statistics.save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        assert "is not a statistics file" in refusal(path)
    refused = 0
    for at in range(0, len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            loaded = Statistics.load(path)
        except CalibrationError:
            refused += 1
        else:
            assert_equal(loaded, statistics)  # a byte that nobody reads: a time stamp, a flag
    assert refused > len(whole) // 11 // 2


def rewritten(rng: np.random.Generator, path: Path, header: dict[str, Any], **arrays: np.ndarray | None) -> None:
    """Save the example with some header entries and arrays changed; None removes one."""
    buffer = io.BytesIO()
    example(rng).save(path)
    with np.load(path) as data:
        content = {name: data[name] for name in data.files}
    old = json.loads(bytes(content.pop("header")))
    new = {k: v for k, v in (old | header).items() if v is not None}
    content = {k: v for k, v in (content | arrays).items() if v is not None}
    np.savez(buffer, header=np.frombuffer(json.dumps(new).encode(), np.uint8), **content)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("header", "arrays", "part"),
    [
        ({"graphopt_statistics": 2}, {}, "has statistics format 2, not 1; make it again"),
        ({"graphopt_statistics": None}, {}, "has statistics format None"),
        ({"names": None}, {}, "is not a statistics file"),
        ({"source": None}, {}, "is not a statistics file"),
        ({"entries": [0, 1, 9]}, {}, "is not a statistics file"),
        ({"entries": [0, 1]}, {}, "is not a statistics file"),
        ({"tokens": [1]}, {}, "is not a statistics file"),
        ({"tokens": ["x", "y", "z"]}, {}, "is not a statistics file"),
        ({}, {"0.absmax": None}, "is not a statistics file"),
        ({}, {"0.absmax": np.ones((2, 10), np.float32)}, "'model.layers.0.q' has channel statistics of shapes (2, 10)"),
        ({}, {"2.mean_square": np.ones(2)}, "'third' has channel statistics of shapes (1,) and (2,)"),
        ({}, {"1.second_moment": np.ones((2, 2))}, "has 7 channels but a second moment of shape (2, 2)"),
        ({}, {"2.absmax": np.array([np.nan], np.float32)}, "'third' has statistics that are not finite"),
        ({}, {"2.mean_square": np.array([np.inf])}, "'third' has statistics that are not finite"),
    ],
)
def test_contents_that_do_not_fit(
    rng: np.random.Generator, tmp_path: Path, header: dict[str, Any], arrays: dict[str, Any], part: str
) -> None:
    path = tmp_path / "s.npz"
    rewritten(rng, path, header, **arrays)
    assert part in refusal(path)


def test_header_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for header in (b"[1, 2]", b"3", b'"x"', b"{", b"\xff"):
        np.savez(path, header=np.frombuffer(header, np.uint8))
        assert "is not a statistics file" in refusal(path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array([{"x": 1}], object), allow_pickle=True)
        archive.writestr("header.npy", buffer.getvalue())
    assert "is not a statistics file" in refusal(path)


@pytest.mark.parametrize("room", [0, 300, 1500])
def test_disk_full(rng: np.random.Generator, tmp_path: Path, room: int) -> None:
    path = tmp_path / "s.npz"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*s.npz: File too large; nothing was changed"):
            example(rng).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_folder_missing(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist; create it first"):
        example(rng).save(tmp_path / "no" / "s.npz")


def test_a_file_from_before_costs_of_keys(rng: np.random.Generator, tmp_path: Path) -> None:
    statistics = example(rng)
    layer = statistics.attentions["attn"]
    layer.key_attention = layer.key_metric = None
    statistics.save(tmp_path / "s.npz")
    assert_equal(statistics, Statistics.load(tmp_path / "s.npz"))


@pytest.mark.parametrize("field", ["keys", "values", "attention", "key_attention", "key_metric"])
def test_keys_and_values_that_do_not_fit(rng: np.random.Generator, tmp_path: Path, field: str) -> None:
    for spoil in (lambda a: a[:-1], lambda a: np.full_like(a, np.inf)):
        statistics = example(rng)
        layer = statistics.attentions["attn"]
        setattr(layer, field, spoil(getattr(layer, field)))
        statistics.save(tmp_path / "s.npz")
        with pytest.raises(CalibrationError, match="'attn' has"):
            Statistics.load(tmp_path / "s.npz")


def test_settings_that_need_second_moments_say_so(rng: np.random.Generator) -> None:
    require_second_moment(entry(rng, moment=True), "rounding 'gptq'", "q")
    for missing in (None, entry(rng)):
        with pytest.raises(CalibrationError, match=r"rounding 'gptq' of 'q' needs .* 'graphopt calibrate --second-m"):
            require_second_moment(missing, "rounding 'gptq'", "q")
