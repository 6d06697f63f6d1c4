"""What is found in an optimized model, and how often entries are looked up."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import compile, ir
from graphopt.core.op import DOMAIN
from graphopt.core.recipe import Recipe
from graphopt.explain.layers import CodedCache, Format, Usage, coded_caches, vq_linears
from graphopt.ir import weights
from graphopt.passes import SCHEMES
from graphopt.passes.vq import numerics
from tests.support.decoders import CONFIG, write_decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("explain") / "m.onnx", dtype="float16")


@pytest.fixture(scope="module", params=["vq-gptvq2", "vq-quip4"])
def optimized(request: pytest.FixtureRequest, decoder: Path) -> ir.Model:
    model = ir.load(decoder)
    compile.optimize(model, Recipe.preset(request.param, SCHEMES))
    return model


def test_every_linear_is_found_with_its_sizes(optimized: ir.Model) -> None:
    nodes = {n.name: n for n in optimized.graph.nodes if n.op in ("VQLinear", "VQLinearE8")}
    found = {view.name: view for view in vq_linears(optimized)}
    assert found.keys() == nodes.keys()
    assert found
    for name, view in found.items():
        codes, books = nodes[name].inputs[1:3]
        assert view.dtype == "float16"
        assert (view.n, view.format.row_bytes(view.k)) == tuple(codes.shape)
        assert view.code_bytes == weights.nbytes(codes)
        if not view.format.lattice:
            assert view.book_bytes == weights.nbytes(books)


def test_glob_chooses(optimized: ir.Model) -> None:
    everything = [view.name for view in vq_linears(optimized)]
    chosen = [view.name for view in vq_linears(optimized, "*q_proj*")]
    assert chosen == [name for name in everything if "q_proj" in name]
    assert len(chosen) == CONFIG.num_hidden_layers
    assert not list(coded_caches(optimized))


def test_usage_counts_the_codes_of_the_file(optimized: ir.Model) -> None:
    view = next(vq_linears(optimized))
    node = next(n for n in optimized.graph.nodes if n.name == view.name)
    fmt = view.format
    count = -(-view.k // fmt.vector) * fmt.residuals
    codes = numerics.unpack_codes(np.array(weights.read(node.inputs[1])), fmt.bits, count)
    assert view.usage.of == codes.size
    expected = np.bincount((codes & (fmt.entries - 1)).reshape(-1), minlength=fmt.entries)
    np.testing.assert_array_equal(view.usage.counts, expected)


def test_sizes_of_the_papers_formats() -> None:
    aqlm3 = Format(8, 12, 2, 4096, 4096)
    assert (aqlm3.entries, aqlm3.entry_bytes, aqlm3.book_bytes) == (4096, 16, 2 * 4096 * 16)
    assert aqlm3.row_bytes(4096) == 4096 * 3 // 8
    gptvq2 = Format(4, 8, 1, 256, 256)
    assert (gptvq2.tiles(8192, 8192), gptvq2.tiles(300, 256), gptvq2.book_bytes) == (1024, 2, 2048)
    assert str(Format(8, 16, 2, 64, 64, lattice=True)) == "VQ<8,16,2> E8"
    assert Format(8, 16, 2, 64, 64, lattice=True).book_bytes == 4096


counts = st.lists(st.integers(0, 1000), min_size=2, max_size=64).filter(any).map(np.array)


@given(counts, st.sampled_from([4, 8, 16, 32]))
def test_usage_properties(values: np.ndarray, entry_bytes: int) -> None:
    usage = Usage(values, int(values.sum()))
    half, most = usage.covering(0.5), usage.covering(0.99)
    assert 1 <= half <= most <= len(values) - usage.unused
    assert np.sort(values)[::-1][:half].sum() >= 0.5 * values.sum()
    assert np.sort(values)[::-1][: half - 1].sum() < 0.5 * values.sum()
    assert usage.hits(0) == 0
    assert usage.hits(len(values)) == pytest.approx(1)
    lines = usage.lines(entry_bytes)
    assert lines + 1e-9 >= 1
    assert lines <= min(32, np.ceil(len(values) * entry_bytes / 128)) + 1e-9


def test_lines_of_one_hot_entry_and_of_even_use() -> None:
    assert Usage(np.array([7, 0, 0, 0]), 7).lines(128) == pytest.approx(1)
    drawn = np.random.default_rng(0).integers(0, 16, (20000, 32))
    distinct = np.mean([len(set(row)) for row in drawn])
    assert Usage(np.full(16, 5), 80).lines(128) == pytest.approx(distinct, rel=0.01)


def test_sizes_of_a_cache() -> None:
    cache = CodedCache("a", heads=32, kv_heads=8, head_size=128, vector=4, element_bytes=2)
    assert (cache.token_bytes, cache.plain_token_bytes) == (2 * 8 * 32, 2 * 8 * 128 * 2)
    assert cache.book_bytes == 2 * 8 * 32 * 256 * 4 * 2
    at = cache.break_even
    assert cache.book_bytes + at * cache.token_bytes <= at * cache.plain_token_bytes
    assert cache.book_bytes + (at - 1) * cache.token_bytes > (at - 1) * cache.plain_token_bytes


def test_a_cache_is_found_by_its_codebooks() -> None:
    operands = [gs.Variable(name) for name in ("q", "k", "v", "cos", "sin", "past_k", "past_v", "start")]
    operands[0].shape = ["batch", "seq", 4, 16]
    books = [gs.Constant(name, np.ones((2, 8, 256, 2), np.float16)) for name in ("codebook_k", "codebook_v")]
    node = gs.Node("VQCachedAttention", "attention", {}, [*operands, *books], [gs.Variable("y")], domain=DOMAIN)
    model: ir.Model = SimpleNamespace(graph=gs.Graph([node]))  # type: ignore[assignment]
    assert list(coded_caches(model)) == [CodedCache("attention", 4, 2, 16, 2, 2)]
    assert not list(coded_caches(model, "other*"))
