from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.deploy.triton.request import FIELDS, GenerateRequest
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.errors import DeployError

SETTINGS = GenerateSettings("ort", max_prompt_tokens=10, max_new_tokens=50)


def arrays(**values: Any) -> dict[str, np.ndarray]:
    kinds = {"TYPE_STRING": np.object_, "TYPE_BOOL": np.bool_, "TYPE_FP32": np.float32}
    types = {f.name: kinds.get(f.kind, np.int64) for f in FIELDS}
    return {n: np.atleast_1d(np.array(v, types[n])) for n, v in values.items()}


def test_what_is_left_out_has_a_default() -> None:
    assert GenerateRequest.read(arrays(text_input=b"x"), SETTINGS) == GenerateRequest("x", 50)


def test_every_field() -> None:
    given_ = arrays(
        text_input="é".encode(), stream=True, max_tokens=7, temperature=0.5, top_p=0.25, seed=2**40,
        stop=[b"a", b"bc"], ignore_end=True,
    )  # fmt: skip
    assert len(given_) == len(FIELDS)
    assert GenerateRequest.read(given_, SETTINGS) == GenerateRequest("é", 7, True, 0.5, 0.25, 2**40, ("a", "bc"), True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the request has no field 'text_input'"),
        ({"text_input": b"\xff"}, r"text_input is not UTF-8 text \(byte 0\)"),
        ({"text_input": [b"a", b"b"]}, r"text_input must be a single value, not of shape \[2\]"),
        ({"text_input": b"x" * 321}, "the prompt has 321 bytes; at most 320"),
        ({"max_tokens": 0}, "max_tokens must be 1 to 50 here, not 0"),
        ({"max_tokens": 51}, "max_tokens must be 1 to 50 here, not 51"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "temperature must be 0 or more"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"stop": [b""]}, "stop takes at most 16 strings of 1 to 256 bytes"),
        ({"stop": [b"x" * 257]}, "stop takes at most 16 strings of 1 to 256 bytes"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    text = {} if "text_input" in values or not values else {"text_input": b"x"}
    with pytest.raises(DeployError, match=message):
        GenerateRequest.read(arrays(**text, **values), SETTINGS)


def test_parameters_are_misspelt_fields_unless_they_are_tritons() -> None:
    GenerateRequest.read(arrays(text_input=b"x"), SETTINGS, ["triton_enable_empty_final_response", "timeout"])
    with pytest.raises(DeployError, match="no field 'temprature'; did you mean 'temperature'"):
        GenerateRequest.read(arrays(text_input=b"x"), SETTINGS, ["temprature"])


@given(st.binary(max_size=40), st.integers(-(2**31), 2**31 - 1), st.floats(width=32), st.floats(width=32))
def test_nothing_but_a_sentence_or_a_request_comes_out(text: bytes, tokens: int, heat: float, p: float) -> None:
    try:
        request = GenerateRequest.read(arrays(text_input=text, max_tokens=tokens, temperature=heat, top_p=p), SETTINGS)
    except DeployError as e:
        assert "\n" not in str(e)
    else:
        assert request.text_input.encode() == text
        assert 1 <= request.max_tokens <= 50
