"""Greedy text and perplexity of the same decoder in several forms, each beside the first.

    python benchmarks/generate.py prepare MODEL.onnx FOLDER
    python benchmarks/generate.py make GGUF STATISTICS FOLDER [--schemes none,mixq-w8a8,vq-quip4+cq4]
    python benchmarks/generate.py build FOLDER [--schemes none,mixq-w8a8] [--level 0]
    python benchmarks/generate.py run FOLDER NAME=FILE [NAME=FILE ...] --json FILE [--tokens 64] [--chunks 16]
    python benchmarks/generate.py judge FOLDER RECORDED [RECORDED ...] --files NAME=FILE [NAME=FILE ...] --json FILE

`prepare` writes the tokens of the prompts and of the text, with the tokenizer beside MODEL, so that `run` needs none.
`make` and `build` give `run` its models and plans where neither can be carried: FOLDER/SCHEME.onnx with a cache that is
updated in place, of the format behind a "+" or in the activation type, the head as it is, and FOLDER/SCHEME.plan with
one profile, tuned for one token, at a low optimization level: TensorRT 8.6 takes minutes for each
(benchmarks/NOTES.md).
FILE is an .onnx file or a .plan; NAME is that of its scheme, the first one's is what the others are compared with.
Where two texts part, the row tells how far apart the reference saw the two tokens, and how far the logits of the scheme
are from its: a near tie, or a mistake. `judge` does this for the rows of earlier runs, such as those of engines on
another machine, by the logits of files that are here.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from engine_shapes import Call, Inputs

from graphopt.compare import perplexity
from graphopt.engine import gpu
from graphopt.generate import Generation, Sampler, generate
from graphopt.results import provenance
from graphopt.runners import Decoder, open_runner

PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "def fibonacci(n):",
    "<|im_start|>user\nName three animals that live in the sea.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, the first human beings walked on the Moon. The mission",
)
CHUNKS, LENGTH = 16, 512
OPSET = 17  # the last that TensorRT 8 reads
#: Rows of the cache of an engine: a chunk, or a prompt and what follows it.
CAPACITY = 640
Row = dict[str, Any]


def prepare(model: Path, folder: Path) -> None:
    from graphopt.cli.sources import corpus
    from graphopt.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(model.parent)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [{"text": text, "ids": tokenizer.encode(text)} for text in PROMPTS]
    (folder / "prompts.json").write_text(json.dumps({"prompts": prompts, "end": sorted(tokenizer.end_ids)}))
    np.save(folder / "chunks.npy", corpus(None, None, model).chunks("evaluation", CHUNKS, LENGTH).astype(np.int32))


class Untied:
    """Weights whose head is a tensor of its own: TensorRT 8 transposes a tied one on the CPU, for half a minute.

    Args:
        source: of a decoder.
    """

    def __init__(self, source: Any) -> None:
        self._source, self._tied = source, source.config.tie_word_embeddings
        self.config = replace(source.config, tie_word_embeddings=False)

    def tensor(self, name: str) -> np.ndarray:
        """Return the weight of a Hugging Face name."""
        tied = self._tied and name == "lm_head.weight"
        values: np.ndarray = self._source.tensor("model.embed_tokens.weight" if tied else name)
        return values


def make(arguments: argparse.Namespace) -> None:
    from graphopt import compile, ir
    from graphopt.core.recipe import Recipe
    from graphopt.core.statistics import Statistics
    from graphopt.models.gguf_weights import GgufWeights
    from graphopt.models.llama import build_llama
    from graphopt.passes import CACHES, SCHEMES

    arguments.folder.mkdir(parents=True, exist_ok=True)
    weights = Untied(GgufWeights(arguments.gguf))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        source = Path(work) / "model.onnx"
        build_llama(weights.config, weights, source, dtype="float16", opset=OPSET)
        for name in arguments.schemes.split(","):
            model = ir.load(source)
            scheme, _, cache = name.partition("+")
            plain = name == "none"
            recipe = Recipe.preset(scheme, SCHEMES, [] if scheme == "none" else ["*lm_head*"])
            recipe = recipe.with_cache(cache or "static", {"capacity": CAPACITY}, CACHES)
            compile.optimize(model, recipe, None if plain else Statistics.load(arguments.statistics))
            ir.save(model, arguments.folder / f"{name}.onnx")


def build(arguments: argparse.Namespace) -> None:
    from graphopt.engine.build import BuildOptions
    from graphopt.engine.build import build as build_plan
    from graphopt.engine.flavour import select

    flavour = select(None)
    kept = flavour.builder()  # with its kernels, 3 GB in TensorRT 8.6
    chosen = arguments.schemes and [arguments.folder / f"{name}.onnx" for name in arguments.schemes.split(",")]
    for model in chosen or sorted(arguments.folder.glob("*.onnx")):
        inputs = Inputs(model, packed=not flavour.modern)
        one, most = (inputs.text(Call(1, tokens, 0, CAPACITY)) for tokens in (1, LENGTH))
        options = BuildOptions(
            min_shapes=(one,), opt_shapes=(one,), max_shapes=(most,), optimization_level=arguments.level,
            timing_cache=model.with_suffix(".cache"),
        )  # fmt: skip
        started = time.monotonic()
        build_plan(model, model.with_suffix(".plan"), options)
        print(f"{model.stem}: {time.monotonic() - started:.0f} s", flush=True)
    del kept


def texts(file: Path, prompts: Sequence[dict[str, Any]], tokens: int) -> tuple[list[Generation], dict[str, Any]]:
    """The continuation of every prompt, and what runs them; the first prompt runs twice, once to warm up."""
    with open_runner(file) as runner:
        decoder = Decoder(runner)
        generate(decoder, prompts[0]["ids"], Sampler(), max_new_tokens=4)
        results = [generate(decoder, p["ids"], Sampler(), max_new_tokens=tokens) for p in prompts]
        return results, {"runner": runner.note, "cache": decoder.kind, "capacity": decoder.capacity}


def parting(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Where two texts part; None if they do not, or one only ends earlier."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)


def logits_after(file: Path, contexts: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The logits of the token behind each context."""
    found = {}
    with open_runner(file) as runner:
        decoder = Decoder(runner)
        for name, context in contexts.items():
            decoder.begin(len(context))
            found[name] = decoder.feed(context)[0]
    return found


def rows_of(name: str, file: Path, prompts: Sequence[dict[str, Any]], chunks: np.ndarray, tokens: int) -> list[Row]:
    """Texts and perplexity of one file."""
    results, how = texts(file, prompts, tokens)
    rows: list[Row] = [
        {"suite": "generate", "case": p["text"], "scheme": name, "ids": list(r.ids), "tokens": len(r.ids),
         "first_token_ms": 1e3 * r.first_token_seconds, "decode_tokens_s": r.decode_rate,
         "prompt_tokens": r.prompt_tokens}
        for p, r in zip(prompts, results, strict=True)
    ]  # fmt: skip
    if len(chunks):
        started = time.monotonic()
        score = perplexity(file, chunks)
        rows.append({"suite": "perplexity", "scheme": name, "ppl": score.ppl, "tokens": score.tokens,
                     "chunks": score.chunks, "seconds": time.monotonic() - started})  # fmt: skip
    return [{**row, **how} for row in rows]


def judge(rows: Sequence[Row], files: Mapping[str, Path], prompts: Sequence[dict[str, Any]]) -> None:
    """Add to every text where it parts from that of the first of ``files``, and how near a tie that file has there.

    ``margin`` is how much the reference prefers its own token, ``spread`` the standard deviation of its logits, and
    ``noise``, where the scheme's file is here, that of what the scheme's logits differ by.
    """
    ids = {p["text"]: p["ids"] for p in prompts}
    found = [row for row in rows if row["suite"] == "generate"]
    first = next(iter(files))
    expected = {row["case"]: row["ids"] for row in found if row["scheme"] == first}
    for scheme in dict.fromkeys(row["scheme"] for row in found):
        parted = {}
        for row in (row for row in found if row["scheme"] == scheme):
            ours, theirs = row["ids"], expected[row["case"]]
            at = parting(ours, theirs)
            row["equal_tokens"] = min(len(ours), len(theirs)) if at is None else at
            if at is not None:
                parted[row["case"]] = row, [*ids[row["case"]], *theirs[:at]], ours[at], theirs[at]
        contexts = {case: context for case, (_, context, _, _) in parted.items()}
        wanted = logits_after(files[first], contexts)
        got = logits_after(files[scheme], contexts) if scheme in files else {}
        for case, (row, _, our, their) in parted.items():
            logits = wanted[case]
            row |= {"margin": float(logits[their] - logits[our]), "spread": float(logits.std())}
            if case in got:
                row["noise"] = float((got[case] - logits).std())


def run(arguments: argparse.Namespace) -> None:
    prompts = json.loads((arguments.folder / "prompts.json").read_text())["prompts"]
    chunks = np.load(arguments.folder / "chunks.npy").astype(np.int64)[: arguments.chunks]
    files = named(arguments.files)
    device = gpu.query()
    common = {"gpu": device.gpus[0].name if device.gpus else None, **provenance()}
    rows: list[Row] = []
    for name, file in files.items():
        rows += [{**row, **common} for row in rows_of(name, file, prompts, chunks, arguments.tokens)]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")  # a run that is cut off has still measured this
    conclude(rows, files, prompts, arguments.json)


def judge_recorded(arguments: argparse.Namespace) -> None:
    rows = [row for file in arguments.recorded for row in json.loads(file.read_text())]
    prompts = json.loads((arguments.folder / "prompts.json").read_text())["prompts"]
    conclude(rows, named(arguments.files), prompts, arguments.json)


def named(items: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE arguments."""
    return {name: Path(path) for name, _, path in (item.partition("=") for item in items)}


def conclude(rows: list[Row], files: Mapping[str, Path], prompts: Sequence[dict[str, Any]], target: Path) -> None:
    """Judge, write and show."""
    judge(rows, files, prompts)
    target.write_text(json.dumps(rows, indent=1) + "\n")
    shown = ("case", "equal_tokens", "margin", "spread", "noise", "first_token_ms", "decode_tokens_s", "ppl")
    for row in rows:
        print(row["scheme"], {k: row[k] for k in shown if k in row}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("prepare")
    verb.add_argument("model", type=Path)
    verb.add_argument("folder", type=Path)
    verb = verbs.add_parser("make")
    verb.add_argument("gguf", type=Path)
    verb.add_argument("statistics", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--schemes", default="none,mixq-w8a8", help="presets, comma-separated")
    verb = verbs.add_parser("build")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--schemes", default="", help="of those that make has written; all by default")
    verb.add_argument("--level", type=int, default=0, help="TensorRT's optimization level, 0 to 5")
    verb = verbs.add_parser("run")
    verb.add_argument("folder", type=Path)
    verb.add_argument("files", nargs="+", metavar="NAME=FILE")
    verb.add_argument("--json", type=Path, required=True)
    verb.add_argument("--tokens", type=int, default=64)
    verb.add_argument("--chunks", type=int, default=CHUNKS)
    verb = verbs.add_parser("judge")
    verb.add_argument("folder", type=Path)
    verb.add_argument("recorded", type=Path, nargs="+", help="what `run` wrote")
    verb.add_argument("--files", nargs="+", required=True, metavar="NAME=FILE")
    verb.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "prepare":
        prepare(arguments.model, arguments.folder)
    else:
        {"make": make, "build": build, "run": run, "judge": judge_recorded}[arguments.verb](arguments)


if __name__ == "__main__":
    main()
