"""The cache in a model's metadata: what is written is read, and damage is named."""

import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import ModelError
from graphopt.ir import Model, kv_cache
from graphopt.ir.kv_cache import KvCache

CACHE = KvCache("static", "start", None, 16.0, (("past.0.k", "present.0.k"), ("past.0.v", "present.0.v")))


def model() -> Model:
    return Model(gs.Graph(opset=18))


@given(
    st.builds(
        KvCache,
        st.text(min_size=1),
        st.text(min_size=1),
        st.none() | st.integers(1, 2**40),
        st.floats(1, 64),
        st.lists(st.tuples(st.text(), st.text())).map(tuple),
    )
)
def test_round_trip(cache: KvCache) -> None:
    changed = model()
    changed.shell.metadata_props.add(key="author", value="somebody")
    kv_cache.write(changed, CACHE)
    kv_cache.write(changed, cache)
    assert kv_cache.read(changed.shell.metadata_props) == cache
    assert [p.key for p in changed.shell.metadata_props] == ["author", kv_cache.KEY]


def test_models_without_a_cache() -> None:
    assert kv_cache.read(model().shell.metadata_props) is None


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", "null", "{}", '{"pairs": [["a"]]}', '{"kind": "x", "pairs": []}', '{"later": 1, "pairs": []}'],
)
def test_damage_is_named(value: str) -> None:
    with pytest.raises(ModelError, match=r"metadata 'graphopt.kv_cache' cannot be read"):
        kv_cache.read([onnx.StringStringEntryProto(key=kv_cache.KEY, value=value)])


@pytest.mark.parametrize(
    ("kind", "bits", "name"),
    [("static", 16, "static"), ("vq", 4.0, "cq4"), ("vq", 2.0, "cq2"), ("kv-mant4", 4.25, "mant4")],
)
def test_short_names(kind: str, bits: float, name: str) -> None:
    assert KvCache(kind, "start", None, bits, ()).short_name == name


@pytest.mark.parametrize(("tokens", "rows"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_rows_are_whole_pages(tokens: int, rows: int) -> None:
    assert kv_cache.rows_for(tokens) == rows
