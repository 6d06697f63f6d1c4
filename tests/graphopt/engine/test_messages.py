"""TensorRT's messages, kept and cut down to sentences."""

import logging

import pytest

from graphopt.engine.messages import Messages, brief

CUDA_NOISE = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/dispatch/"
    "checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)


TYPED = (
    "Error Code 4: API Usage Error (nd4: input0 = 64 and input1 = 3 but must match. In validate at /_src/a/m.cpp:192)"
)
NESTED = (
    "Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the model contains "
    "HW-specific datatypes: b16. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"ITensor::getDimensions: {TYPED}", "nd4: input0 = 64 and input1 = 3 but must match"),
        (f"ITensor::getDimensions: {TYPED}\n{CUDA_NOISE}", "nd4: input0 = 64 and input1 = 3 but must match"),
        (
            f"IBuilder::buildSerializedNetwork: {NESTED}",
            "[pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the model contains HW-specific "
            "datatypes: b16",
        ),
        ("Assertion failed: p->Parse():\n  Failed to parse.", "Assertion failed: p->Parse(): Failed to parse"),
    ],
)
def test_brief_keeps_the_sentence(text: str, expected: str) -> None:
    assert brief(text) == expected


def test_records_hold_what_was_said_while_they_were_open(caplog: pytest.LogCaptureFixture) -> None:
    messages = Messages()
    with caplog.at_level(logging.DEBUG, "graphopt"):
        messages.receive("ERROR", "before")
        with messages.record() as outer:
            messages.receive("WARNING", "careful")
            with messages.record() as inner:
                messages.receive("ERROR", "first.")
                messages.receive("ERROR", CUDA_NOISE)
                messages.receive("INTERNAL_ERROR", "second")
                messages.receive("INFO", "chat")
            messages.receive("ERROR", "after")
    assert outer.errors == ["first.", "second", "after"]
    assert outer.warnings == ["careful"]
    assert inner.errors == ["first.", "second"]
    assert inner.reason() == "first"
    assert "TensorRT info: chat" in caplog.messages
    with messages.record() as silent:
        pass
    assert silent.reason() == "it gave no reason"


def test_records_of_threads_end_in_any_order() -> None:
    """Two that hold nothing yet are two all the same: the one that stays open hears what is said."""
    messages = Messages()
    first, second = messages.record(), messages.record()
    heard = first.__enter__()
    second.__enter__()
    second.__exit__(None, None, None)
    messages.receive("ERROR", "later")
    first.__exit__(None, None, None)
    assert heard.errors == ["later"]
    messages.receive("ERROR", "after all")
    assert heard.errors == ["later"]
