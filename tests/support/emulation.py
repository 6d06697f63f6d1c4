"""Device code on the host: assembly becomes calls of functions, and a C++ compiler makes the rest."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "trt_plugins"
EMULATE = ROOT / "tests/emulate"
_ASSEMBLY = re.compile(r'asm(?: volatile)?\s*\(\s*((?:"[^"]*"\s*)+)(.*?)\);', re.DOTALL)
_OPERAND = re.compile(r'"[^"]*"\s*\(')


def instructions() -> set[str]:
    """Return the names of the functions of instructions.h."""
    return set(re.findall(r"^inline void (\w+)\(", (EMULATE / "instructions.h").read_text(), re.MULTILINE))


def translate(source: str, known: set[str]) -> str:
    """Return ``source`` with assembly as calls: name_of_instruction(outputs..., inputs...).

    An instruction that is not ``known`` throws when it is reached. Assembly without an instruction, which only keeps
    the compiler from knowing a value, goes.
    """

    def call(found: re.Match[str]) -> str:
        name = re.split(r"[\s;]", found[1].strip().strip('"'), maxsplit=1)[0]
        if not name:
            return ";"
        function = re.sub(r"\W+", "_", name)
        operands = ", ".join(_operands(found[2]))
        missing = f'missing("{name}")'
        return f"graphopt::emulate::{f'{function}({operands})' if function in known else missing};"

    return _ASSEMBLY.sub(call, source)


def _operands(text: str) -> Iterator[str]:
    """The expressions in brackets behind constraints; what is clobbered has none."""
    end = 0
    for found in _OPERAND.finditer(text):
        if found.start() < end:
            continue
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        yield text[found.end() : end - 1]


def build(
    folder: Path, program: str, change: Callable[[str, str], str] = lambda _, source: source, flags: Sequence[str] = ()
) -> Path:
    """Compile trt_plugins/tests/emulate/``program``.cpp.

    Args:
        folder: for the program, and for device code as it is compiled.
        program: its name.
        change: (name, source) of a header of device code to what is compiled instead.
        flags: of the compiler, besides.
    """
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc, whose headers float16 needs")
    known = instructions()
    headers = [
        p for part in ("attention", "common", "fused") for kind in ("*.cuh", "*.h") for p in (ROOT / part).rglob(kind)
    ]
    for header in headers:
        name = header.relative_to(ROOT)
        target = folder / "device" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(translate(change(name.as_posix(), header.read_text()), known))
    path = folder / program
    # Products and sums are rounded one by one, as __fmul_rn asks. Warnings are those of compilers for GPUs.
    command = [
        compiler,
        "-x",
        "c++",
        "-std=c++17",
        "-O1",
        "-Xcompiler",
        "-w,-ffp-contract=off",
        "-cudart",
        "none",
        *flags,
    ]
    subprocess.run(
        [*command, "-I", EMULATE, "-I", folder / "device", EMULATE / f"{program}.cpp", "-o", path], check=True
    )
    return path
