"""Lowering canonical linears to MixQ: fusion, sharing, refusals, and the result executed from its function bodies."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from graphopt.core.op import DOMAIN, attach_bodies
from graphopt.core.report import Report
from graphopt.core.statistics import LinearStatistics, Statistics
from graphopt.errors import CalibrationError, ModelError
from graphopt.ir import save, weights
from graphopt.ir.model import Model
from graphopt.numerics import layers
from graphopt.passes.mixq import OPS, SCHEME
from graphopt.passes.mixq.config import MixQConfig, OutlierConfig

K, F = 64, 96
OUTLIERS = [3, 17, 40]


class Block:
    """A pre-norm decoder block without attention, in canonical form, with planted outlier channels.

    s = x + r;  h = RMSNorm(s);  q, k = h Wq, h Wk (+ bias);  g = GatedSilu(h Wg, h Wu);  y = s + g Wd
    """

    def __init__(self, dtype: Any = np.float32, *, shapes: bool = True, norm: str = "RMSNorm") -> None:
        self.rng = np.random.default_rng(7)
        self.dtype = dtype
        self.arrays: dict[str, np.ndarray] = {}
        self.shape = ["batch", "seq", K] if shapes else None
        x, r = (gs.Variable(n, dtype, ["batch", "seq", K]) for n in "xr")
        self.graph = gs.Graph(inputs=[x, r], opset=18, name="block")
        s = self.add("Add", "residual", [x, r], "s", domain="")
        if shapes:
            s.shape = ["batch", "seq", K]
        vectors = [self.constant("gamma", self.rng.uniform(0.5, 1.5, K))]
        if norm == "LayerNorm":
            vectors.append(self.constant("beta", self.rng.standard_normal(K)))
        h = self.add(norm, "norm", [s, *vectors], "h", epsilon=1e-6)
        q = self.add("Linear", "q_proj", [h, self.weight("wq", K, F)], "q", trans_w=0)
        k = self.add(
            "LinearBias",
            "k_proj",
            [h, self.weight("wk", F, K), self.constant("bk", self.rng.standard_normal(F))],
            "k",
            trans_w=1,
        )
        gate = self.add("Linear", "gate_proj", [h, self.weight("wg", K, F)], "gate", trans_w=0)
        up = self.add("Linear", "up_proj", [h, self.weight("wu", K, F)], "up", trans_w=0)
        g = self.add("GatedSilu", "act", [gate, up], "g")
        d = self.add("Linear", "down_proj", [g, self.weight("wd", F, K)], "d", trans_w=0)
        y = self.add("Add", "residual2", [s, d], "y", domain="")
        for t in (q, k, y):
            t.dtype, t.shape = dtype, ["batch", "seq", K if t is y else F]
        self.graph.outputs = [q, k, y]
        self.model = Model(self.graph)

    def constant(self, name: str, array: np.ndarray) -> gs.Constant:
        self.arrays[name] = array.astype(self.dtype)
        return self.model_store().put(name, self.arrays[name])

    def weight(self, name: str, rows: int, columns: int) -> gs.Constant:
        return self.constant(name, self.rng.standard_normal((rows, columns)) / np.sqrt(K))

    def model_store(self) -> Any:
        if not hasattr(self, "_store"):
            self._store = weights.WeightStore()
        return self._store

    def add(self, op: str, name: str, inputs: list[Any], out: str, domain: str = DOMAIN, **attrs: Any) -> gs.Variable:
        variable = gs.Variable(out, self.dtype)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [variable], domain=domain or None))
        return variable

    def feeds(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(11)
        x, r = rng.standard_normal((2, 2, 5, K))
        x[..., OUTLIERS] *= 30
        return {"x": x.astype(self.dtype), "r": r.astype(self.dtype)}

    def reference(self) -> tuple[np.ndarray, ...]:
        a = {n: v.astype(np.float32) for n, v in self.arrays.items()}
        f = self.feeds()
        s = f["x"].astype(np.float32) + f["r"].astype(np.float32)
        h = layers.rms_norm(s, a["gamma"], 1e-6)
        if "beta" in a:
            h = layers.layer_norm(s, a["gamma"], a["beta"], 1e-6)
        g = layers.gated(layers.silu, h @ a["wg"], h @ a["wu"])
        return h @ a["wq"], h @ a["wk"].T + a["bk"], s + g @ a["wd"]

    def statistics(self) -> Statistics:
        absmax = np.ones(K, np.float32)
        absmax[OUTLIERS] = 30
        shared = LinearStatistics(absmax, np.full(K, 1.0), 10)
        down = LinearStatistics(np.ones(F, np.float32), np.full(F, 1.0), 10)
        return Statistics({**dict.fromkeys(("q_proj", "k_proj", "gate_proj", "up_proj"), shared), "down_proj": down})

    def lower(
        self,
        names: tuple[str, ...] | None = None,
        config: MixQConfig | None = None,
        *,
        merge: bool | str = False,
        **kwargs: Any,
    ) -> Report:
        """Lower ``names``, each linear to an op of its own; how they are merged is for test_merge.py."""
        report = Report()
        config = (config or MixQConfig()).model_copy(update={"merge": merge})
        names = names or ("q_proj", "k_proj", "gate_proj", "up_proj", "down_proj")
        options = {"statistics": self.statistics(), "dry_run": False} | kwargs
        SCHEME.lower(self.model, dict.fromkeys(names, config), report=report, **options)
        return report

    def ops(self) -> dict[str, gs.Node]:
        return {n.name: n for n in self.graph.nodes}

    def run(self) -> list[np.ndarray]:
        attach_bodies(self.model, OPS)
        with tempfile.TemporaryDirectory() as folder:
            (path,) = save(self.model, Path(folder) / "block.onnx", external_data=False)
            proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(proto.SerializeToString(), options).run(None, self.feeds())


def normalized_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("norm", ["RMSNorm", "LayerNorm"])
def test_block_is_fused_shared_and_accurate(dtype: Any, norm: str) -> None:
    block = Block(dtype, norm=norm)
    report = block.lower()
    nodes = [n.op for n in block.graph.nodes]
    assert nodes.count("MixQLinear") == 5
    assert nodes.count(f"MixQAdd{norm}") == 1
    assert nodes.count("MixQGatedSilu") == 1
    assert nodes.count("Add") == 1
    assert len(nodes) == 8
    assert report.counts("rewritten") == {"mixq": 5}
    # Two int8 roundings of 1/254 of a row's maximum (about 3 standard deviations) each: under 1 % per linear.
    for got, want in zip(block.run(), block.reference(), strict=True):
        assert normalized_error(got, want) < 0.015


def test_outlier_columns_are_the_original_ones_and_leave_the_codes() -> None:
    block = Block()
    block.lower()
    node = block.ops()["q_proj"]
    wq, sw, wo, bias = (weights.read(t) for t in node.inputs[3:])
    quantizer = node.inputs[0].inputs[0]
    np.testing.assert_array_equal(weights.read(quantizer.inputs[-1])[:3], OUTLIERS)
    np.testing.assert_array_equal(wo[:, :3], block.arrays["wq"].T[:, OUTLIERS])
    assert not wq[:, OUTLIERS].any()
    assert wq.dtype == np.int8
    assert sw.dtype == np.float32
    assert not bias.any()
    for name in ("k_proj", "gate_proj", "up_proj"):
        assert block.ops()[name].inputs[0] is node.inputs[0]


def test_outliers_matter() -> None:
    with_outliers, without = Block(), Block()
    with_outliers.lower()
    without.lower(config=MixQConfig(outliers=OutlierConfig(select="none")))
    a = normalized_error(with_outliers.run()[0], with_outliers.reference()[0])
    b = normalized_error(without.run()[0], without.reference()[0])
    assert a < b / 2


def test_producer_output_is_kept_for_other_readers() -> None:
    block = Block()
    extra = gs.Variable("h_out", np.float32, ["batch", "seq", K])
    h = block.ops()["norm"].outputs[0]
    block.graph.nodes.append(gs.Node("Neg", "other", {}, [h], [extra]))
    block.graph.outputs.append(extra)
    block.lower()
    fused = next(n for n in block.graph.nodes if n.op == "MixQAddRMSNorm")
    assert fused.attrs["emit_y"] == 1
    assert fused.outputs[4] is h
    feeds = block.feeds()
    want = -layers.rms_norm(feeds["x"] + feeds["r"], block.arrays["gamma"], 1e-6)
    np.testing.assert_allclose(block.run()[3], want, rtol=1e-5)


def test_sum_is_not_written_when_only_the_norm_reads_it() -> None:
    block = Block()
    block.ops()["residual2"].inputs[0] = block.graph.inputs[0]
    block.lower()
    fused = next(n for n in block.graph.nodes if n.op == "MixQAddRMSNorm")
    assert fused.attrs["emit_sum"] == 0
    assert not fused.outputs[3].outputs
    feeds, want = block.feeds(), block.reference()
    s = feeds["x"] + feeds["r"]
    assert normalized_error(block.run()[2], want[2] - s + feeds["x"]) < 0.015


def test_add_of_unknown_shapes_is_not_fused() -> None:
    block = Block()
    block.ops()["residual"].inputs[0].shape = None
    block.lower()
    assert {n.op for n in block.graph.nodes} >= {"MixQRMSNorm", "Add"}


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_residual_is_added_in_the_linear_on_request(bits: str, statistics: bool) -> None:
    plain, fused = Block(np.float16), Block(np.float16)
    given = {} if statistics else {"statistics": None}
    for block in (plain, fused):
        block.graph.tensors()["d"].shape = ["batch", "seq", K]
        block.lower(config=MixQConfig(bits=bits, fuse_residual=block is fused), **given)
    down = fused.ops()["down_proj"]
    name = {"w8a8": "MixQLinear", "w4a8": "MixQLinearW4A8"}[bits]
    assert down.op == f"{name}Add{'' if statistics else 'Online'}"
    assert down.outputs[0].name == "y"
    assert "s" in [t.name for t in down.inputs]
    assert "residual2" not in fused.ops()
    assert plain.ops()["down_proj"].op == down.op.replace("Add", "")
    # One rounding less: both are a float16 rounding of the same sum, or of the linear first.
    assert normalized_error(fused.run()[2], plain.run()[2]) < 2**-10


def test_residual_stays_where_the_linear_is_read_otherwise_or_shapes_are_unknown() -> None:
    unknown, read = Block(), Block()
    read.graph.tensors()["d"].shape = ["batch", "seq", K]
    extra = gs.Variable("d_out", np.float32, ["batch", "seq", K])
    read.graph.nodes.append(gs.Node("Neg", "other", {}, [read.graph.tensors()["d"]], [extra]))
    read.graph.outputs.append(extra)
    for block in (unknown, read):
        block.lower(config=MixQConfig(fuse_residual=True))
        assert block.ops()["down_proj"].op == "MixQLinear"
        assert block.ops()["residual2"].op == "Add"


def test_partly_assigned_linears_keep_the_float_path() -> None:
    block = Block()
    report = block.lower(names=("q_proj",))
    fused = next(n for n in block.graph.nodes if n.op == "MixQAddRMSNorm")
    assert fused.attrs["emit_y"] == 1
    assert [f.node for f in report.findings if f.status == "rewritten"] == ["q_proj"]
    assert block.ops()["k_proj"].op == "LinearBias"


def test_dry_run_reports_and_changes_nothing() -> None:
    block = Block()
    before = [(n.op, n.name) for n in block.graph.nodes]
    report = block.lower(dry_run=True)
    assert [(n.op, n.name) for n in block.graph.nodes] == before
    assert report.counts("rewritten") == {"mixq": 5}


def test_without_statistics_outliers_are_predicted_unless_told_not_to() -> None:
    block = Block()
    report = block.lower(statistics=None)
    assert {f.reason for f in report.findings if f.status == "note"} == {
        "no calibration: outliers are predicted online"
    }
    assert block.ops()["q_proj"].op == "MixQLinearOnline"
    block = Block()
    report = block.lower(config=MixQConfig(outliers=OutlierConfig(online=False)), statistics=None)
    assert block.ops()["q_proj"].op == "MixQLinear"
    assert {f.reason for f in report.findings if f.status == "note"} == {"no calibration: the outlier set is empty"}
    assert len(block.run()) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_online_prediction_makes_up_for_statistics(bits: str, dtype: Any) -> None:
    online = MixQConfig(bits=bits, rounding="nearest", outliers=OutlierConfig(online=True, capacity=48))
    calibrated, block = Block(dtype), Block(dtype)
    calibrated.lower(config=MixQConfig(bits=bits, rounding="nearest"))
    report = block.lower(config=online, statistics=None)
    assert {f.reason for f in report.findings if f.status == "note"} == {
        "no calibration: outliers are predicted online"
    }
    detail = next(f.detail for f in report.findings if f.node == "q_proj" and f.status == "rewritten")
    assert (detail["outliers"], detail["capacity"], detail["online"]) == (0, 48, True)
    nodes = block.ops()
    quantizer = nodes["q_proj"].inputs[0].inputs[0]
    assert quantizer.op == f"MixQAddRMSNorm{'4' if bits == 'w4a4' else ''}Online"
    assert nodes["q_proj"].inputs[-1] is nodes["up_proj"].inputs[-1] is quantizer.outputs[-1]
    assert nodes["q_proj"].inputs[-2] is quantizer.inputs[-1]
    assert weights.read(nodes["q_proj"].inputs[5 if bits == "w8a8" else 6]).shape == (F, 16), "no columns to store"
    # Predicted columns are as coarse as their weights: half of these outputs comes through them.
    allowance = 0.01 if bits == "w8a8" else 0.15
    for got, known, want in zip(block.run(), calibrated.run(), block.reference(), strict=True):
        assert normalized_error(got, want) < normalized_error(known, want) + allowance


def test_online_prediction_extends_a_calibrated_set() -> None:
    block, statistics = Block(), Block().statistics()
    for entry in statistics.linears.values():
        entry.absmax[OUTLIERS[1:]] = 1
    block.lower(config=MixQConfig(outliers=OutlierConfig(online=True)), statistics=statistics)
    offline = Block()
    offline.lower(statistics=statistics)
    quantizer = block.ops()["q_proj"].inputs[0].inputs[0]
    assert weights.read(quantizer.inputs[-1])[:2].tolist() == [OUTLIERS[0], -1]
    assert quantizer.attrs["capacity"] == K, "no more than there are channels"
    for got, without, want in zip(block.run(), offline.run(), block.reference(), strict=True):
        assert normalized_error(got, want) < normalized_error(without, want)


def test_shared_weight_is_refused_with_the_culprit() -> None:
    block = Block()
    embed = gs.Variable("embedded", np.float32, ["n", F])
    weight = block.ops()["q_proj"].inputs[1]
    index = gs.Variable("index", np.int64, ["n"])
    block.graph.inputs.append(index)
    block.graph.nodes.append(gs.Node("Gather", "embed", {"axis": 0}, [weight, index], [embed]))
    block.graph.outputs.append(embed)
    report = block.lower()
    refused = [f for f in report.findings if f.status == "skipped"]
    assert [(f.node, f.reason) for f in refused] == [("q_proj", "weight 'wq' is shared with node 'embed' (Gather)")]


def test_zero_size_and_variable_weights_are_refused() -> None:
    block = Block()
    q, k = block.ops()["q_proj"], block.ops()["k_proj"]
    q.inputs[1] = gs.Constant("empty", np.zeros((K, 0), np.float32))
    dynamic = gs.Variable("dynamic", np.float32, [F, K])
    block.graph.inputs.append(dynamic)
    k.inputs[1] = dynamic
    report = block.lower()
    reasons = {f.node: f.reason for f in report.findings if f.status == "skipped"}
    assert reasons == {"q_proj": "weight 'empty' has shape [64, 0]", "k_proj": "weight 'dynamic' is not a constant"}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_weights_are_an_error_that_names_them(poison: float) -> None:
    block = Block()
    bad = np.array(block.arrays["wg"])
    bad[5, 6] = poison
    block.ops()["gate_proj"].inputs[1] = gs.Constant("wg_bad", bad)
    with pytest.raises(ModelError, match="weight 'wg_bad' of 'gate_proj' holds NaN or Inf"):
        block.lower()


def test_statistics_of_another_model_are_refused() -> None:
    block, statistics = Block(), Block().statistics()
    del statistics.linears["k_proj"]
    with pytest.raises(CalibrationError, match="no linear 'k_proj'"):
        block.lower(statistics=statistics)
    statistics = Block().statistics()
    statistics.linears["down_proj"] = LinearStatistics(np.ones(K, np.float32), np.ones(K), 10)
    with pytest.raises(CalibrationError, match="'down_proj' have 64 channels, the weight has 96"):
        block.lower(statistics=statistics)


def test_report_carries_sizes_and_error() -> None:
    report = Block().lower()
    detail = next(f.detail for f in report.findings if f.node == "q_proj")
    assert detail["bytes_before"] == 4 * K * F
    assert detail["bytes_after"] == K * F + 4 * F + 4 * F * 16
    # Rounding to 1/254 of the maximum (about 3 sigma) leaves 3/254/sqrt(3) of the norm.
    assert 0.002 < detail["weight_error"] < 0.012


def test_report_counts_every_outlier() -> None:
    """The first channel, too."""
    statistics = Block().statistics()
    statistics.linears["q_proj"].absmax[:] = 1
    statistics.linears["q_proj"].absmax[[0, 5]] = 30
    block = Block()
    report = block.lower(statistics=statistics)
    details = {f.node: f.detail for f in report.findings}
    assert (details["q_proj"]["outliers"], details["q_proj"]["capacity"]) == (2, 16)
    np.testing.assert_array_equal(weights.read(block.ops()["q_proj"].inputs[0].inputs[0].inputs[-1])[:3], [0, 5, -1])


def test_linears_of_one_tensor_share_its_codes_whatever_their_weights_are() -> None:
    block = Block()
    configs = dict.fromkeys(("q_proj", "gate_proj"), MixQConfig())
    configs |= {"k_proj": MixQConfig(bits="w4a8"), "up_proj": MixQConfig(bits="w4a8", group=0, rounding="nearest")}
    SCHEME.lower(block.model, configs, block.statistics(), Report(), dry_run=False)
    nodes = block.ops()
    assert [nodes[n].op for n in ("q_proj", "k_proj", "up_proj")] == ["MixQLinear", "MixQLinearW4A8", "MixQLinearW4A8"]
    assert nodes["k_proj"].inputs[0] is nodes["up_proj"].inputs[0] is nodes["q_proj"].inputs[0]
    assert nodes["k_proj"].attrs["group"] == 64
    assert nodes["up_proj"].attrs["group"] >= K


def test_each_width_of_activations_has_its_own_quantizing_op() -> None:
    block = Block()
    block.ops()["norm"].outputs[0].shape = block.shape
    configs = dict.fromkeys(("q_proj", "gate_proj", "up_proj"), MixQConfig(bits="w4a4", merge=False))
    configs |= dict.fromkeys(("k_proj", "down_proj"), MixQConfig(merge=False))
    SCHEME.lower(block.model, configs, block.statistics(), Report(), dry_run=False)
    nodes = block.ops()
    assert nodes["q_proj"].inputs[0] is nodes["up_proj"].inputs[0]
    assert nodes["q_proj"].inputs[0].inputs[0].op == "MixQAddRMSNorm4"
    assert nodes["q_proj"].inputs[0].shape == ["batch", "seq", K // 2]
    assert nodes["k_proj"].inputs[0].inputs[0].op == "MixQQuantize"
    for got, want in zip(block.run(), block.reference(), strict=True):
        assert normalized_error(got, want) < 0.12


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("bits", "group", "bound"),
    # Rounding to 1/14 of the largest weight (about 2.4 standard deviations) leaves 0.1 of what is not an outlier, which
    # is about half of the output; rounding activations to 4 bits adds as much again.
    [("w4a8", 64, 0.06), ("w4a8", 0, 0.06), ("w4a4", 64, 0.12)],
)
def test_4_bit_blocks_run_from_their_bodies(bits: str, group: int, bound: float, dtype: Any) -> None:
    block = Block(dtype)
    block.lower(config=MixQConfig(bits=bits, group=group, rounding="nearest"))
    op = "MixQLinearW4A8" if bits == "w4a8" else "MixQLinearW4A4"
    assert [n.op for n in block.graph.nodes].count(op) == 5
    for got, want in zip(block.run(), block.reference(), strict=True):
        assert 0.01 < normalized_error(got, want) < bound


def with_moments(statistics: Statistics) -> Statistics:
    """The same with second moments of inputs that have common directions."""
    rng, made = np.random.default_rng(5), {}
    for name, entry in statistics.linears.items():
        x = rng.standard_normal((256, 6)) @ rng.standard_normal((6, entry.channels))
        x = (x + rng.standard_normal(x.shape)) * entry.absmax / 4
        made[name] = LinearStatistics(entry.absmax, (x**2).mean(0), 256, (x.T @ x / 256).astype(np.float32))
    return Statistics(made)


def test_auto_rounds_with_second_moments_where_there_are_some() -> None:
    reports = [
        Block().lower(config=MixQConfig(bits="w4a8"), statistics=statistics, dry_run=dry_run)
        for statistics in (Block().statistics(), with_moments(Block().statistics()))
        for dry_run in (True, False)
    ]
    reasons = [next(f.reason for f in r.findings if f.node == "q_proj") for r in reports]
    how = "input from MixQAddRMSNorm"
    assert reasons[:2] == [
        "MixQLinearW4A8, groups of 64, nearest, clipped",
        f"MixQLinearW4A8, groups of 64, nearest, clipped, {how}",
    ]
    assert reasons[2:] == [
        "MixQLinearW4A8, groups of 64, gptq, clipped",
        f"MixQLinearW4A8, groups of 64, gptq, clipped, {how}",
    ]
    details = [next(f.detail for f in r.findings if f.node == "q_proj") for r in (reports[1], reports[3])]
    assert "output_error" not in details[0]
    assert 0 < details[1]["output_error"] < details[1]["weight_error"]


def test_gptq_in_8_bits() -> None:
    block = Block()
    block.lower(config=MixQConfig(rounding="gptq"), statistics=with_moments(block.statistics()))
    assert [n.op for n in block.graph.nodes].count("MixQLinear") == 5
    for got, want in zip(block.run(), block.reference(), strict=True):
        assert normalized_error(got, want) < 0.02


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("dry_run", [False, True])
def test_gptq_without_second_moments_says_how_to_get_them(calibrated: bool, dry_run: bool) -> None:
    block = Block()
    statistics = block.statistics() if calibrated else None
    with pytest.raises(CalibrationError, match=r"'q_proj' needs statistics with second moments; .*--second-moment"):
        block.lower(config=MixQConfig(rounding="gptq"), statistics=statistics, dry_run=dry_run)


def test_long_work_says_what_it_is_at() -> None:
    block, heard = Block(), []
    report = Report(on_progress=heard.append)
    SCHEME.lower(block.model, {"q_proj": MixQConfig()}, None, report, dry_run=False)
    assert heard == ["lower-mixq: 1 of 1, q_proj"]
