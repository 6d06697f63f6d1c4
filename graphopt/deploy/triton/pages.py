"""What people read and start in a repository: README, launch script, client."""

__all__ = ["AUTOREG", "render", "write_pages"]

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import graphopt
from graphopt.deploy.triton.config import parse, state_bytes

#: Registers the plugins in programs that only open it.
AUTOREG = "libgraphopt_plugins_autoreg.so"
_EXECUTABLE = 0o755
#: Device memory that Triton gets beside that of the caches, as much as it takes without being told.
_POOL_BYTES = 64 << 20
_GENERATE = """\
    python client.py 'The capital of France is'
    curl -N localhost:8000/v2/models/{name}/generate_stream -d '{{"text_input": "Once upon a time", "stream": true}}'
    curl localhost:8000/v2/models/{name}/generate -d '{{"text_input": "Once upon a time", "max_tokens": 32}}'

Fields of a request: `text_input`, `max_tokens`, `temperature`, `top_p`, `seed`, `stop` (strings), `ignore_end`, and
`stream`, without which one response comes at the end. The limits are parameters in `models/{name}/config.pbtxt`.

"""
#: What a server needs that runs plans in the generate model, or that does not.
_NEEDS = {
    "ort": "Its Python needs\n`pip install 'graphopt[runtime,llm]=={version}'`.",
    "trt": "Its Python needs\n`pip install 'graphopt[llm]=={version}' cuda-python tensorrt=={tensorrt}`.",
    "bls": "Its Python needs\n`pip install 'graphopt[llm]=={version}'`, and its TensorRT must be {tensorrt}.",
}


def render(template: str, **values: str) -> str:
    """Return a template of this folder with its names replaced; ``version`` is that of graphopt."""
    text = resources.files(__package__).joinpath("templates", f"{template}.in").read_text(encoding="utf-8")
    return Template(text).substitute(version=graphopt.__version__, **values)


def write_pages(folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """Write them.

    Args:
        folder: the repository, with all its other files.
        name: of the model that clients ask.
        about: ``models`` to load, ``execution`` and, for plans, ``tensorrt``.
    """
    plugins = {p.name: p for p in sorted((folder / "plugins").glob("*.so"))}
    environment, backend = "", ""
    for library in plugins:
        if about["execution"] == "trt" and library != AUTOREG:
            environment = f'export GRAPHOPT_PLUGIN_LIBRARY="$here/plugins/{library}"\n'
        if about["execution"] != "trt" and library == AUTOREG:
            backend = f'  --backend-config=tensorrt,plugins="$here/plugins/{library}" \\\n'
    for model in about["models"]:
        path = folder / "models" / model / "config.pbtxt"
        if states := state_bytes(parse(path.read_text(encoding="utf-8"), str(path))):
            backend += f"  --cuda-memory-pool-byte-size=0:{states + _POOL_BYTES} \\\n"
    script = folder / "run_triton.sh"
    script.write_text(render("run_triton.sh", environment=environment, backend=backend), encoding="utf-8")
    script.chmod(_EXECUTABLE)
    generates = (folder / "models" / name / "1" / "model.py").is_file()
    if generates:
        (folder / "client.py").write_text(render("client.py", name=name), encoding="utf-8")
    needs = _NEEDS[about["execution"]] if generates else "Its TensorRT must be {tensorrt}."
    readme = render(
        "README.md",
        name=name,
        usage=_GENERATE.format(name=name) if generates else "",
        files="".join(f"| {path} | {what} |\n" for path, what in _files(folder, name, about, plugins)),
        needs=needs.format(version=graphopt.__version__, tensorrt=about.get("tensorrt", "")),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")


def _files(folder: Path, name: str, about: Mapping[str, Any], plugins: Mapping[str, Path]) -> list[tuple[str, str]]:
    rows = []
    for model in about["models"]:
        is_text = (folder / "models" / model / "1" / "model.py").is_file()
        what = "text in, text out: tokenizer, sampling, streaming" if is_text else "the engine"
        rows.append((f"`models/{model}`", what))
    if plugins:
        rows.append(("`plugins`", "the kernels, and what registers them in Triton"))
    rows.append(("`run_triton.sh`", "starts the server"))
    if (folder / "client.py").is_file():
        rows.append(("`client.py`", "asks it"))
    return rows
