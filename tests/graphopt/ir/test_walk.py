"""Nodes of graphs within graphs, in the order in which they are written."""

from onnx import AttributeProto, NodeProto, helper

from graphopt.ir.walk import all_nodes, subgraphs


def node(name: str, *inner: NodeProto) -> NodeProto:
    made = helper.make_node("If", [], [f"{name}_y"], name)
    for number, child in enumerate(inner):
        graph = helper.make_graph([child], f"{name}_{number}", [], [])
        made.attribute.append(helper.make_attribute(f"branch_{number}", graph))
    return made


def test_nodes_before_what_is_in_them() -> None:
    nodes = [node("a", node("b", node("c")), node("d")), node("e")]
    assert [n.name for n in all_nodes(nodes)] == ["a", "b", "c", "d", "e"]


def test_lists_of_graphs_count() -> None:
    holder = helper.make_node("Custom", [], [], "holder", domain="x")
    graphs = [helper.make_graph([node(name)], name, [], []) for name in ("first", "second")]
    holder.attribute.append(AttributeProto(name="bodies", type=AttributeProto.GRAPHS, graphs=graphs))
    assert [g.name for g in subgraphs(holder)] == ["first", "second"]
    assert [n.name for n in all_nodes([holder])] == ["holder", "first", "second"]
