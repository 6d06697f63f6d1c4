"""What graphsurgeon drops hangs on nodes and tensors; that it comes back is in test_io.py."""

from graphopt.ir.carry import EmptyList
from tests.support.rewrite import parse

SOURCE = """
<ir_version: 8, opset_import: ["": 18]>
g (float[n] x, bool c) => (float[n] y) {
    y = If(c) <
        then_branch = t () => (float[n] p) { [in_t] p = Squeeze <axes: ints = []> (x) },
        else_branch = e () => (float[n] q) { [in_e] q = Abs(x) }
    >
}
"""


def test_nodes_of_subgraphs_get_their_own() -> None:
    model = parse(SOURCE)
    then, other = (model.graph.nodes[0].attrs[n].nodes[0] for n in ("then_branch", "else_branch"))
    assert isinstance(then.attrs["axes"], EmptyList)
    assert then.attrs["axes"] == []
    assert other.attrs == {}
    assert all(node.metadata == {} for node in (then, other, model.graph.nodes[0]))
