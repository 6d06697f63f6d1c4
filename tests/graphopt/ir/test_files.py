"""`replacing`: files appear whole, together, or not at all."""

import os
from pathlib import Path

import pytest

from graphopt.errors import OutputError
from graphopt.ir.files import replacing


def test_both_appear_together(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with replacing(a, b) as partial:
        for path in partial:
            assert path.parent == tmp_path
            path.write_text("new")
        assert a.read_text() == "old"
        assert not b.exists()
    assert (a.read_text(), b.read_text()) == ("new", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_exception_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(a, b) as (partial, _):
        partial.write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert a.read_text() == "old"


def test_second_rename_fails_where_links_are_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old a")
    b.write_text("old b")
    real = Path.replace

    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def replace(self: Path, target: Path) -> Path:
        if Path(target) == b:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(os, "link", unsupported)
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="No space left on device"), replacing(a, b) as partial:
        for path in partial:
            path.write_text("new")
    monkeypatch.undo()
    assert (a.read_text(), b.read_text()) == ("old a", "old b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("keep")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path / "a") as (partial,):
        partial.write_text("new")
    assert (tmp_path / "elsewhere").read_text() == "keep"
    assert not (tmp_path / "a").is_symlink()


def test_devices_and_pipes_keep_their_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(OutputError, match="it is a device or a pipe; give the name of a file"), replacing(path):
            pass
    assert pipe.is_fifo() and (tmp_path / "link").is_symlink()
