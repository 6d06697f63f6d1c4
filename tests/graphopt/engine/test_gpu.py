"""Asking the CUDA driver, played by small C libraries."""

from collections.abc import Callable
from pathlib import Path

import pytest

from graphopt.engine import gpu

CompileLibrary = Callable[..., Path]

DRIVER = """
#include <stdint.h>
#include <string.h>
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
int cuDeviceGet(int* d, int i) { *d = 10 + i; return 0; }
int cuDeviceGetName(char* name, int n, int d) { strncpy(name, d == 10 ? "First" : "Second", n); return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? d - 10 : -1; return 0; }
int cuDeviceTotalMem_v2(size_t* b, int d) { *b = ((size_t)d) << 32; return 0; }
"""


def fake(compile_library: CompileLibrary, init: int = 0, count: int = 2) -> str:
    return str(compile_library(DRIVER, flags=[f"-DINIT={init}", f"-DCOUNT={count}"]))


def test_describes_every_gpu(compile_library: CompileLibrary) -> None:
    driver = gpu.query(fake(compile_library))
    assert driver.cuda_version == "12.8"
    assert driver.problem is None
    assert driver.gpus == (gpu.Gpu("First", "9.0", 10 << 32), gpu.Gpu("Second", "9.1", 11 << 32))


@pytest.mark.parametrize(("init", "count", "says"), [(100, 1, "cuInit returned 100"), (0, 0, "finds no GPU")])
def test_says_why_there_is_none(compile_library: CompileLibrary, init: int, count: int, says: str) -> None:
    driver = gpu.query(fake(compile_library, init, count))
    assert driver.gpus == ()
    assert driver.cuda_version == "12.8"
    assert says in str(driver.problem)


def test_no_driver_is_a_normal_answer() -> None:
    assert gpu.query("libno_such_driver.so.1") == gpu.Driver(None, (), "no NVIDIA driver is installed")
