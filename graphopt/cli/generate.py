"""`graphopt generate`."""

__all__ = ["generate"]

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import runners
from graphopt.cli.console import JsonFlag, console, emit, guard
from graphopt.errors import GraphOptError, ModelError


@guard
def generate(
    model: Annotated[Path, typer.Argument(help="A decoder: an .onnx file, or a .plan with its manifest beside it.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue; special tokens may be written out.")] = None,
    prompt_ids: Annotated[
        str | None, typer.Option(help="Token ids instead of text, such as 1,15,7; needs no tokenizer.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json, its folder, or a .gguf file.", show_default="tokenizer.json beside MODEL"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most this many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text (repeatable).")] = None,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", help="Go on after tokens that end a text.")] = False,
    stream: Annotated[bool, typer.Option(help="Show the text while it is made.")] = True,
    runner: runners.RunnerFlag = None,
    plugins: runners.PluginsFlag = None,
    cuda_graph: Annotated[
        bool, typer.Option(help="Replay decoding as a CUDA graph, where the cache allows it.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Continue a prompt with a language model, and say how fast.

    A model whose cache is updated in place (optimize --kv-cache) keeps it at one address; one that was exported with
    past and present keys gets them handed back; one without a cache computes everything again for every token.

    Examples:

      graphopt generate out/model.opt.onnx --prompt 'The capital of France is'

      graphopt generate model.plan --tokenizer out --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95
    """
    from graphopt.generate import Sampler, TextStream
    from graphopt.generate import generate as continue_prompt
    from graphopt.runners import Decoder, open_runner

    if (prompt is None) == (prompt_ids is None):
        raise GraphOptError("give either --prompt TEXT or --prompt-ids IDS")
    words = _tokenizer(tokenizer, model) if prompt is not None or tokenizer is not None else None
    if stop and words is None:
        raise GraphOptError("--stop compares text; give --tokenizer too")
    ids = words.encode(prompt) if words is not None and prompt is not None else _ids(prompt_ids or "")
    decode = (lambda new: words.decode(new, skip_special_tokens=True)) if words else _plain
    text = TextStream(decode, stop or ())
    show = sys.stdout.write if stream and not json else lambda piece: None

    def on_token(token: int) -> bool:
        show(text.push(token))
        sys.stdout.flush()
        return text.stopped is not None

    end = words.end_ids if words is not None and not ignore_end else ()
    with open_runner(model, runner, plugins=plugins, cuda_graph=cuda_graph) as opened:
        decoder = Decoder(opened)
        if decoder.kind == "none":
            console.print(f"{model} has no key-value cache: every token computes all before it again", soft_wrap=True)
        sampler = Sampler(temperature, top_p, seed)
        result = continue_prompt(decoder, ids, sampler, max_new_tokens=max_new_tokens, end=end, on_token=on_token)
    show(text.finish() + "\n")
    data: dict[str, Any] = {"model": str(model), "runner": opened.note, "cache": decoder.kind}
    data |= {"capacity": decoder.capacity, "prompt_ids": ids, "text": text.text, **result.to_dict()}
    emit(
        data, json, lambda out: None if stream else out.print(text.text, markup=False, highlight=False, soft_wrap=True)
    )
    cache = decoder.kind if opened.cache is None else opened.cache.short_name
    console.print(_speed(data, cache), highlight=False, soft_wrap=True)


def _tokenizer(path: Path | None, model: Path) -> Any:
    from graphopt.models.tokenizer import Tokenizer

    beside = model.with_name("tokenizer.json")
    if path is None and not beside.is_file():
        raise ModelError(f"there is no {beside}; say where the tokenizer is with --tokenizer, or give --prompt-ids")
    return Tokenizer.open(path or beside)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as e:
        raise GraphOptError(f"cannot read --prompt-ids '{text}'; write them like 1,15,7") from e


def _plain(ids: Any) -> str:
    """Ids as text, for models without a tokenizer."""
    return "".join(f"{i} " for i in ids)


def _speed(data: dict[str, Any], cache: str) -> str:
    rate = "" if data["decode_rate"] is None else f", then {data['decode_rate']:,.1f} tokens/s"
    count = f"{len(data['prompt_ids'])} + {len(data['ids'])} tokens on {data['runner']}, cache {cache}"
    first = f"first token after {1e3 * data['first_token_seconds']:,.1f} ms ({data['prefill_rate']:,.0f} tokens/s)"
    return f"{count}: {first}{rate}"
