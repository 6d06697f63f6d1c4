"""Just enough ELF: what a shared library is built for, needs and exports, and how to make an empty one.

Only 64-bit little-endian files are read, which is every machine TensorRT runs on. Layouts: ELF-64 Object File Format,
version 1.5, and the System V gABI.
"""

__all__ = ["MACHINES", "NotElfError", "SharedLibrary", "make_alias", "read"]

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Values of ``e_machine`` by the name that ``os.uname`` gives the machine.
MACHINES = {"x86_64": 62, "aarch64": 183}

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_IDENT = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")

_ET_DYN = 3
_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 1, 5, 6, 10, 11, 14
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ_WRITE = 6
_PAGE = 0x10000  # the largest page size of the machines above


class NotElfError(ValueError):
    """The file is not a complete 64-bit little-endian ELF shared library."""


@dataclass(frozen=True)
class SharedLibrary:
    """What the dynamic section of a shared library says.

    Attributes:
        machine: ``x86_64``, ``aarch64`` or ``e_machine <number>``.
        soname: DT_SONAME, or None.
        needed: DT_NEEDED names, in order.
        exports: names of the defined dynamic symbols.
    """

    machine: str
    soname: str | None
    needed: tuple[str, ...]
    exports: frozenset[str]


def read(path: Path) -> SharedLibrary:
    """Read the dynamic section of ``path``.

    Raises:
        NotElfError: the file is not an ELF shared library, or it is truncated.
        OSError: the file cannot be read.
    """
    with path.open("rb") as f:
        try:
            return _read(f)
        except NotElfError:
            raise
        except (struct.error, ValueError, IndexError) as e:
            raise NotElfError(f"{path} is a damaged or truncated ELF file") from e


def _read(f: BinaryIO) -> SharedLibrary:
    raw = f.read(_HEADER.size)
    if raw[: len(_IDENT[:7])] != _IDENT[:7]:
        raise NotElfError(f"{f.name} is not a 64-bit ELF file")
    header = _HEADER.unpack(raw)
    kind, machine, section_offset, section_count = header[1], header[2], header[6], header[12]
    if kind != _ET_DYN:
        raise NotElfError(f"{f.name} is an ELF file but not a shared library")
    sections = [
        _SECTION.unpack(_at(f, section_offset + i * _SECTION.size, _SECTION.size)) for i in range(section_count)
    ]
    soname, needed, exports = None, [], set[str]()
    for _, sort, _, _, offset, size, link, *_ in sections:
        if sort not in (_SHT_DYNAMIC, _SHT_DYNSYM):
            continue
        body, names = _at(f, offset, size), _at(f, *sections[link][4:6])
        if sort == _SHT_DYNSYM:
            exports.update(_name(names, name) for name, _, _, index, _, _ in _SYMBOL.iter_unpack(body) if index)
            continue
        for tag, value in _DYNAMIC.iter_unpack(body):
            if tag == _DT_SONAME:
                soname = _name(names, value)
            elif tag == _DT_NEEDED:
                needed.append(_name(names, value))
    known = {number: name for name, number in MACHINES.items()}
    return SharedLibrary(known.get(machine, f"e_machine {machine}"), soname, tuple(needed), frozenset(exports - {""}))


def _at(f: BinaryIO, offset: int, size: int) -> bytes:
    if offset + size > os.fstat(f.fileno()).st_size:
        raise NotElfError(f"{f.name} is a truncated ELF file")
    f.seek(offset)
    return f.read(size)


def _name(names: bytes, offset: int) -> str:
    return names[offset : names.index(b"\0", offset)].decode()


def make_alias(soname: str, target: str, machine: str | None = None) -> bytes:
    """Return a shared library without code whose SONAME is ``soname`` and whose one dependency is ``target``.

    Once it is loaded, the dynamic linker answers ``dlopen(soname)`` with it, and ``dlsym`` on that handle finds the
    symbols of ``target``.

    Args:
        soname: the name to answer to, such as ``libfoo.so``.
        target: the DT_NEEDED name, such as ``libfoo.so.1``.
        machine: a key of `MACHINES`; this machine if None.
    """
    strings = b"\0" + soname.encode() + b"\0" + target.encode() + b"\0"
    symbols_at = _HEADER.size + 3 * _SEGMENT.size
    strings_at = symbols_at + _SYMBOL.size
    dynamic_at = -(-(strings_at + len(strings)) // 8) * 8
    dynamic = b"".join(
        _DYNAMIC.pack(tag, value)
        for tag, value in (
            (_DT_NEEDED, 2 + len(soname.encode())),
            (_DT_SONAME, 1),
            (_DT_STRTAB, strings_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMTAB, symbols_at),
            (_DT_SYMENT, _SYMBOL.size),
            (_DT_NULL, 0),
        )
    )
    size = dynamic_at + len(dynamic)
    header = _HEADER.pack(
        _IDENT, _ET_DYN, MACHINES[machine or os.uname().machine], 1, 0, _HEADER.size, 0, 0,
        _HEADER.size, _SEGMENT.size, 3, _SECTION.size, 0, 0,
    )  # fmt: skip
    segments = (
        # Writable because the dynamic linker relocates the dynamic section in place; nothing needs to be executable.
        (_PT_LOAD, 0, size, _PAGE),
        (_PT_DYNAMIC, dynamic_at, len(dynamic), 8),
        # Without this segment the linker assumes that the library wants an executable stack, which newer ones refuse.
        (_PT_GNU_STACK, 0, 0, 16),
    )
    table = b"".join(_SEGMENT.pack(t, _READ_WRITE, at, at, at, n, n, align) for t, at, n, align in segments)
    return (header + table + bytes(_SYMBOL.size) + strings).ljust(dynamic_at, b"\0") + dynamic
