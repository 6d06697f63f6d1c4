"""Peers that are absent or fail are named with the reason; the others still count."""

from collections.abc import Sequence

import pytest

from graphopt.bench.peers import GEMM_PEERS, LINEAR_PEERS, Peer, peer_times


def _fails(*_: object) -> Sequence[object]:
    raise RuntimeError("no kernel for this\nand a long explanation")


def test_absence() -> None:
    by_name = {peer.name: peer for peer in (*LINEAR_PEERS["float16"], *GEMM_PEERS["float16"])}
    assert by_name["torch_int_mm"].absence(16) == "needs M >= 17"
    assert by_name["torch_int_mm"].absence(17) is None
    assert by_name["torch_int4"].absence(4096) == "is for 1 <= M <= 512"
    assert by_name["torch_fp16"].absence(1) is None
    missing = Peer("other", _fails, 8, package="no_such_package_at_all")
    assert "no_such_package_at_all cannot be imported" in (missing.absence(1) or "")


def test_names_are_those_of_result_files() -> None:
    assert [p.name for p in LINEAR_PEERS["float16"]] == ["torch_fp16", "torch_int4", "bitsandbytes_int8"]
    assert [p.name for p in LINEAR_PEERS["bfloat16"]] == ["torch_bf16", "torch_int4"]
    assert [p.name for p in GEMM_PEERS["float16"]] == ["torch_fp16", "torch_int_mm"]
    assert [p.name for p in GEMM_PEERS["bfloat16"]] == ["torch_bf16", "torch_int_mm"]


def test_a_peer_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Peer("good", _fails, 8), Peer("bad", _fails, 8)

    def us(self: Peer, x: object, n: int) -> float:
        return 5.0 if self.name == "good" else len(self.calls(x, n, 2))

    monkeypatch.setattr(Peer, "us", us)
    times, missing = peer_times([bad, good, Peer("small", _fails, 8, rows=(1, 1))], [0, 0], 8)
    assert times == {"good": 5.0}
    assert missing == {"bad": "RuntimeError: no kernel for this", "small": "is for 1 <= M <= 1"}
