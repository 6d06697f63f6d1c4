from pathlib import Path

import onnx

from graphopt import ir
from graphopt.ir import origin
from tests.support.decoders import write_decoder


def test_the_scheme_survives_a_file_and_is_there_once(tmp_path: Path) -> None:
    model = ir.load(write_decoder(tmp_path / "m.onnx"))
    model.shell.metadata_props.append(onnx.StringStringEntryProto(key="author", value="somebody"))
    assert origin.read(model.shell.metadata_props) is None
    for scheme in ("mixq-w8a8", "mixq-w4a8"):
        origin.write(model, scheme)
    ir.save(model, tmp_path / "o.onnx")
    properties = onnx.load(tmp_path / "o.onnx").metadata_props
    assert origin.read(properties) == "mixq-w4a8"
    assert sorted(p.key for p in properties) == ["author", "graphopt.scheme"]
