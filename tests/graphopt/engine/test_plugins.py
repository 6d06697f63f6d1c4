"""Finding the plugin library, and refusing what is not one with the reason."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import graphopt
from graphopt.engine import elf, plugins
from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import Messages
from graphopt.errors import PluginError

CompileLibrary = Callable[..., Path]

MODERN = "void* getCreators(int* n) { *n = 0; return 0; } void setLoggerFinder(void* f) {}"


@pytest.fixture
def flavour() -> Flavour:
    """TensorRT 10 as far as `check` looks: it reads files only."""
    return Flavour("tensorrt", "10.14.1", None, Messages(), None)


@pytest.fixture
def no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, in a checkout, without any library; returns the checkout."""
    monkeypatch.delenv(plugins.ENVIRONMENT, raising=False)
    (tmp_path / "graphopt").mkdir()
    monkeypatch.setattr(graphopt, "__file__", str(tmp_path / "graphopt/__init__.py"))
    return tmp_path


def put(path: Path, age: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"library")
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_the_order_of_places_where_the_library_is_looked_for(no_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"was not found.*build it with cmake.*--plugins.*GRAPHOPT_PLUGIN_LIBRARY"):
        plugins.locate()
    put(no_library / "build/old" / plugins.LIBRARY, age=100)
    newest = put(no_library / "build/new" / plugins.LIBRARY)
    assert plugins.locate() == newest
    documented = put(no_library / "build/plugins" / plugins.LIBRARY, age=200)
    assert plugins.locate() == documented
    packaged = put(no_library / "graphopt/lib" / plugins.LIBRARY)
    assert plugins.locate() == packaged
    named = put(no_library / "named.so")
    monkeypatch.setenv(plugins.ENVIRONMENT, str(named))
    assert plugins.locate() == named
    explicit = put(no_library / "explicit.so")
    assert plugins.locate(explicit) == explicit


def test_a_named_library_must_exist(no_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(no_library / "build" / plugins.LIBRARY)
    with pytest.raises(PluginError, match=r"plugin library .*gone\.so does not exist"):
        plugins.locate(no_library / "gone.so")
    monkeypatch.setenv(plugins.ENVIRONMENT, str(no_library / "gone.so"))
    with pytest.raises(PluginError, match=r"gone\.so \(from \$GRAPHOPT_PLUGIN_LIBRARY\) does not exist"):
        plugins.locate()


def test_a_library_that_fits_passes(compile_library: CompileLibrary, flavour: Flavour) -> None:
    plugins.check(compile_library(MODERN), flavour)


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        ("int x;", [], "is not a TensorRT plugin library: it does not export getCreators"),
        ("void* getPluginCreators(int* n) { return 0; }", [], r"is built for TensorRT 8, not for TensorRT 10\.14\.1"),
    ],
)
def test_a_library_without_modern_plugins_is_refused(
    compile_library: CompileLibrary, flavour: Flavour, source: str, flags: list[str], says: str
) -> None:
    with pytest.raises(PluginError, match=says):
        plugins.check(compile_library(source, flags=flags), flavour)


def test_a_modern_library_is_refused_by_tensorrt_8(compile_library: CompileLibrary) -> None:
    old = Flavour("tensorrt", "8.6.1", None, Messages(), None)
    with pytest.raises(PluginError, match=r"is built for TensorRT 10 or later, not for TensorRT 8\.6\.1"):
        plugins.check(compile_library(MODERN), old)


@pytest.mark.parametrize("name", ["libnvinfer.so.8", "libnvinfer.so.11", "libtensorrt_rtx.so.1"])
def test_a_library_linked_to_another_tensorrt_is_refused(
    compile_library: CompileLibrary, flavour: Flavour, name: str
) -> None:
    other = compile_library("int other;", name, [f"-Wl,-soname,{name}"])
    library = compile_library(MODERN, flags=["-Wl,--no-as-needed", str(other)])
    with pytest.raises(PluginError, match=rf"needs {name}, so it is built for another TensorRT than TensorRT 10\.14"):
        plugins.check(library, flavour)


def test_the_self_registering_library_is_refused_with_the_right_one(
    compile_library: CompileLibrary, flavour: Flavour
) -> None:
    main = compile_library(MODERN, plugins.LIBRARY, [f"-Wl,-soname,{plugins.LIBRARY}"])
    thin = compile_library("int x;", "libgraphopt_plugins_autoreg.so", ["-Wl,--no-as-needed", str(main)])
    with pytest.raises(PluginError, match=r"registers itself.*give .*/libgraphopt_plugins\.so instead"):
        plugins.check(thin, flavour)


def test_files_of_other_kinds_and_machines_are_refused(
    compile_library: CompileLibrary, flavour: Flavour, tmp_path: Path
) -> None:
    text = tmp_path / "library.so"
    text.write_text("not a library")
    with pytest.raises(PluginError, match=r"library\.so is not a 64-bit ELF file"):
        plugins.check(text, flavour)
    whole = compile_library(MODERN).read_bytes()
    text.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PluginError, match="truncated ELF file; build it again"):
        plugins.check(text, flavour)
    foreign = next(m for m in elf.MACHINES if m != os.uname().machine)
    text.write_bytes(whole[:18] + elf.MACHINES[foreign].to_bytes(2, "little") + whole[20:])
    with pytest.raises(PluginError, match=f"is built for {foreign}, this machine is {os.uname().machine}"):
        plugins.check(text, flavour)
    with pytest.raises(PluginError, match="cannot read plugin library"):
        plugins.check(tmp_path, flavour)


@pytest.mark.rtx
def test_loading_reports_version_and_plugins_and_is_idempotent(rtx_flavour: Flavour, plugin_library: Path) -> None:
    library = plugins.load(plugin_library, rtx_flavour)
    assert library.version == graphopt.__version__
    assert "MixQQuantize" in library.creators
    assert library.path == plugin_library
    assert plugins.load(plugin_library, rtx_flavour) is library


@pytest.mark.rtx
def test_another_library_needs_another_process(
    rtx_flavour: Flavour, plugin_library: Path, compile_library: CompileLibrary
) -> None:
    plugins.load(plugin_library, rtx_flavour)
    with pytest.raises(PluginError, match=r"is loaded already; use a new process to load .*lib\.so"):
        plugins.load(compile_library(MODERN), rtx_flavour)


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (MODERN, "refused plugin library .*: No creator returned"),
        (MODERN.replace("return 0", "return missing()").replace("void*", "void* missing(void); void*", 1),
         "cannot be loaded: .*undefined symbol: missing"),
    ],
)  # fmt: skip
def test_what_tensorrt_or_the_linker_refuses_is_an_error(
    rtx_flavour: Flavour, compile_library: CompileLibrary, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.setattr(plugins, "_loaded", {})
    with pytest.raises(PluginError, match=says):
        plugins.load(compile_library(source), rtx_flavour)


def library_with(build_info: str | None) -> plugins.PluginLibrary:
    return plugins.PluginLibrary(Path("x.so"), "", None, build_info, ())


@pytest.mark.parametrize(
    ("archs", "targets", "missing"),
    [
        ("80,86,89,90a,120", ("8.0", "8.6", "8.9", "9.0", "12.0 and later"), ()),
        ("80", ("8.9", "9.0", "12.0 and later"), ("9.0", "12.0 and later")),
        ("80 ptx=none", ("8.9", "9.0"), ("9.0",)),
        ("86 ptx=86", ("8.0", "8.6", "9.0", "12.0 and later"), ("8.0",)),
        ("89", ("8.0", "8.6", "8.9"), ("8.0", "8.6")),
        ("90a", ("9.0",), ()),
        ("100f", ("10.3",), ("10.3",)),
    ],
)
def test_targets_without_kernels_are_named(archs: str, targets: tuple[str, ...], missing: tuple[str, ...]) -> None:
    assert plugins.uncovered(library_with(f"cuda=13.0 archs={archs} tensorrt_headers=10.14.1"), targets) == missing


def test_a_silent_library_is_not_accused() -> None:
    assert plugins.uncovered(library_with(None), ("9.0",)) == ()
