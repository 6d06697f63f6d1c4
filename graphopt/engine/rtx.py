"""TensorRT-RTX's parser needs ``libtensorrt_rtx.so``, a name that its wheel does not ship.

At the first plugin node the parser calls ``dlopen("libtensorrt_rtx.so")``, without a version, and terminates the
process if that fails; the wheel holds only ``libtensorrt_rtx.so.1``. The dynamic linker answers dlopen from the
libraries already loaded, comparing SONAMEs, before it looks into any folder. So a library without code, whose SONAME is
the missing name and whose dependency is the library in use, loaded from memory, is all it takes: no file, no
environment variable, no restart.
"""

__all__ = ["SONAME", "loaded_library", "make_loadable", "resolves"]

import ctypes
import os
import re
from pathlib import Path

from graphopt import log
from graphopt.engine import elf
from graphopt.errors import EngineError

_log = log.get(__name__)

#: The name that the parser opens.
SONAME = "libtensorrt_rtx.so"
_ENTRY_POINT = "getPluginRegistry"


def loaded_library() -> Path | None:
    """Path of the TensorRT-RTX library in this process; None before ``tensorrt_rtx`` is imported."""
    pattern = re.compile(r"(/\S.*/" + re.escape(SONAME) + r"\.\d[\d.]*)$")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if match := pattern.search(line):
            return Path(match.group(1))
    return None


def resolves() -> bool:
    """Whether ``dlopen`` in this process answers the parser's name with the library in use."""
    library = loaded_library()
    if library is None:
        return False
    try:
        alias = ctypes.CDLL(SONAME, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    return _entry_point(alias) == _entry_point(ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_NOLOAD))


def make_loadable() -> None:
    """Make the parser's name loadable; call after ``import tensorrt_rtx`` and before the first parse.

    Does nothing if it is loadable already.

    Raises:
        EngineError: the linker refused; the message names the symbolic link that does the same by hand.
    """
    if resolves():
        return
    library = loaded_library()
    if library is None:
        raise EngineError("the TensorRT-RTX library is not loaded; install it with: pip install tensorrt-rtx")
    try:
        soname = elf.read(library).soname or library.name
        memory = os.memfd_create(SONAME)
        try:
            os.write(memory, elf.make_alias(SONAME, soname))
            # The process id keeps the name unique: the linker also compares the names that libraries were opened by.
            ctypes.CDLL(f"/proc/{os.getpid()}/fd/{memory}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
        finally:
            os.close(memory)
    except (OSError, KeyError) as e:
        raise _unresolved(library) from e
    if not resolves():
        raise _unresolved(library)
    _log.debug("%s now answers to %s", library, SONAME)


def _entry_point(library: ctypes.CDLL) -> int | None:
    return ctypes.cast(getattr(library, _ENTRY_POINT), ctypes.c_void_p).value


def _unresolved(library: Path) -> EngineError:
    return EngineError(
        f"TensorRT-RTX's parser cannot open {SONAME}, and would end the process at the first plugin; "
        f"create the link by hand: ln -s {library.name} {library.with_name(SONAME)}"
    )
