from graphopt.engine.measure import slower
from graphopt.engine.run import LayerTime


def plugin(name: str, us: float) -> LayerTime:
    return LayerTime(name, "MixQLinear", us)


def native(name: str, us: float) -> LayerTime:
    return LayerTime(name, "MatrixMultiply", us)


def test_layers_are_compared_by_name_and_the_largest_loss_comes_first() -> None:
    ours = [plugin("/a", 6.0), plugin("/b", 20.0), plugin("/c", 1.0), native("/d", 9.0)]
    found = slower(ours, [native("/a", 5.0), native("/b", 10.0), native("/c", 1.0), native("/d", 1.0)])
    assert [(s.names, s.us, s.baseline_us) for s in found] == [(("/b",), 20.0, 10.0), (("/a",), 6.0, 5.0)]
    assert found[0].sentence == "'/b' takes 20.0 us, 2.00 times the 10.0 us of the baseline"


def test_what_the_baseline_fused_is_compared_as_one() -> None:
    ours = [plugin("/q", 4.0), plugin("/k", 4.0), native("PWN(/sigmoid, /mul)", 2.0)]
    (found,) = slower(ours, [native("/q || /k", 6.0), native("/mul", 9.0)])
    assert (found.names, found.us, found.baseline_us) == (("/q", "/k"), 8.0, 6.0)
    assert found.sentence.startswith("'/q' and '/k' together take 8.0 us, 1.33 times")


def test_a_fusion_that_joins_groups_joins_them() -> None:
    ours = [plugin("/a", 3.0), plugin("/b", 3.0), plugin("/c", 3.0)]
    (found,) = slower(ours, [native("/a + /b", 4.0), native("/b + /c", 4.0)])
    assert (sorted(found.names), found.us, found.baseline_us) == (["/a", "/b", "/c"], 9.0, 8.0)


def test_linears_that_were_merged_are_compared_with_all_that_they_were() -> None:
    (found,) = slower([plugin("/q + /k", 9.0)], [native("/q", 4.0), native("/k", 3.0)])
    assert (found.names, found.us, found.baseline_us) == (("/q", "/k"), 9.0, 7.0)


def test_copies_belong_to_the_layer_that_needs_them() -> None:
    copy = LayerTime("Reformatting CopyNode for Input Tensor 0 to /a", "Reformat", 2.0)
    (found,) = slower([plugin("/a", 4.0), copy], [native("/a", 5.0)])
    assert found.us == 6.0


def test_what_has_no_counterpart_is_left_out() -> None:
    assert slower([plugin("/a", 9.0)], [native("{ForeignNode[/x.../z]}", 1.0)]) == []
    assert slower([plugin("/a", 5.2)], [native("/a", 5.0)]) == []
