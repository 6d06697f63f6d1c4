"""The built plugin library and the program that drives it as TensorRT does."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def library(plugin_library: Path) -> Path:
    return plugin_library


@pytest.fixture(scope="session")
def host_v3(library: Path) -> Path:
    program = library.with_name("host_v3")
    if not program.is_file():
        pytest.skip(f"{program} was not built (cmake option GRAPHOPT_BUILD_TESTS)")
    return program
