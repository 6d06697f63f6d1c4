"""Reading shared libraries, and making one that answers to another name."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.engine import elf

SOURCE = """
int used(void);
int answer(void) { return 42; }
static int hidden(void) { return used(); }
int f(void) { return hidden(); }
"""


@pytest.fixture(scope="module")
def library(compile_library: Callable[..., Path]) -> Path:
    return compile_library(SOURCE, "libanswer.so.1", ["-Wl,-soname,libanswer.so.1", "-Wl,--no-as-needed", "-lm"])


def test_reads_what_the_library_is_needs_and_exports(library: Path) -> None:
    found = elf.read(library)
    assert found.machine == os.uname().machine
    assert found.soname == "libanswer.so.1"
    assert "libm.so.6" in found.needed
    assert {"answer", "f"} <= found.exports
    assert not {"used", "hidden", ""} & found.exports


def test_alias_answers_dlopen_with_the_symbols_of_its_target(library: Path, tmp_path: Path) -> None:
    (tmp_path / "target.so").symlink_to(library)
    stub = tmp_path / "anything"
    stub.write_bytes(elf.make_alias("libalias_of_answer.so", "libanswer_target.so.1"))
    with pytest.raises(OSError, match=r"libanswer_target\.so\.1"):
        ctypes.CDLL(str(stub))
    with pytest.raises(OSError, match="libalias_of_answer"):
        ctypes.CDLL("libalias_of_answer.so")
    # `f` calls an undefined symbol, which lazy binding never has to find.
    ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    good = tmp_path / "good"
    good.write_bytes(elf.make_alias("libalias_of_answer.so", "libanswer.so.1"))
    ctypes.CDLL(str(good))
    assert ctypes.CDLL("libalias_of_answer.so", mode=os.RTLD_NOW | os.RTLD_NOLOAD).answer() == 42


@pytest.mark.parametrize("machine", sorted(elf.MACHINES))
def test_alias_is_made_for_the_machine_asked_for(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "alias.so"
    path.write_bytes(elf.make_alias("a.so", "b.so.1", machine))
    assert elf.read(path).machine == machine


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_truncated_library_is_refused_not_misread(library: Path, tmp_path: Path, fraction: float) -> None:
    data = library.read_bytes()
    path = tmp_path / "short.so"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(elf.NotElfError):
        elf.read(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2**20), value=st.integers(0, 255))
def test_damaged_library_is_read_or_refused(library: Path, tmp_path: Path, position: int, value: int) -> None:
    data = bytearray(library.read_bytes())
    data[position % len(data)] = value
    path = tmp_path / "damaged.so"
    path.write_bytes(data)
    try:
        assert isinstance(elf.read(path), elf.SharedLibrary)
    except elf.NotElfError as e:
        assert str(path) in str(e)


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF\x01\x01\x01" + bytes(60)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.so"
    path.write_bytes(content)
    with pytest.raises(elf.NotElfError, match=r"file\.so"):
        elf.read(path)


def test_programs_are_refused(tmp_path: Path, library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[16] = 2  # e_type: ET_EXEC
    path = tmp_path / "program"
    path.write_bytes(data)
    with pytest.raises(elf.NotElfError, match="not a shared library"):
        elf.read(path)
