"""The decoder of a `graphopt deploy tensorrt-llm` folder against its graph, and the time of one of its layers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixq_cases import EPSILON
from torch import nn

#: Of the logits, ||a - b|| / ||b||. Rounding to T alone makes 1.7 % in float16 and 2.1 % in bfloat16 of these decoders'
#: logits (the numpy decoder of `graphopt.deploy.tensorrt_llm.probe` in T and in float32), and two that round in other
#: places differ by both of theirs; a wrong rotary angle or order of heads makes 12 % and more.
LOGITS = {"float32": 5e-3, "float16": 4e-2, "bfloat16": 5e-2}
#: A layer of Llama-2-7B: hidden size, MLP width, outlier slots.
HIDDEN, WIDE, OUTLIERS = 4096, 11008, 128
#: Calls that are timed together: fewer than the GPU's queue holds.
_ENQUEUED = 200


def same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)), "bits differ"


def rows_of(m: int, width: int, dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    x = torch.randn(m, width, generator=torch.Generator().manual_seed(seed))
    x[:, 3] *= 40
    return x.to(device, dtype)


def captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of ``run`` and what it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


class Folder:
    """A deployed folder: its decoder on the device, and the logits of its graph."""

    def __init__(self, folder: Path, device: str) -> None:
        from graphopt_trtllm.llama import Llama

        self.name, self.device = folder.name, device
        self.model = Llama.load(folder / "checkpoint", device)
        reference = np.load(folder / "reference.npz")
        self.ids = torch.from_numpy(reference["tokens"]).to(device)[None]
        self.wanted = torch.from_numpy(reference["logits"]).to(device)
        self.tolerance = LOGITS[self.model.config["torch_dtype"]]

    def compare(self, logits: torch.Tensor) -> float:
        error = float((logits.float()[0] - self.wanted).norm() / self.wanted.norm())
        assert error <= self.tolerance, f"logits differ by {error:.2%}"
        return error

    def at_once(self) -> float:
        return self.compare(self.model(self.ids))

    def from_cache(self) -> float:
        """A prompt, then token by token."""
        cache, tokens = self.model.cache(1, 64), self.ids.shape[1]
        positions = torch.arange(tokens, device=self.device)
        parts = [self.model(self.ids[:, :8], positions[:8], cache)]
        parts += [self.model(self.ids[:, i : i + 1], positions[i : i + 1], cache) for i in range(8, tokens)]
        return self.compare(torch.cat(parts, 1))

    def compiled(self) -> float:
        backend = "inductor" if self.device == "cuda" else "aot_eager"
        return self.compare(torch.compile(self.model, fullgraph=True, backend=backend)(self.ids))

    def graphed(self) -> float:
        """Each token by one replay of a captured step; the bits are those of eager steps."""
        eager, cache = self.model.cache(1, 64), self.model.cache(1, 64)
        token, position = self.ids[:, :1].clone(), torch.zeros(1, dtype=torch.int64, device=self.device)
        graph, step = captured(lambda: self.model(token, position, cache))
        for keys, values in cache:
            keys.zero_()
            values.zero_()
        parts = []
        for i in range(self.ids.shape[1]):
            token.copy_(self.ids[:, i : i + 1])
            position.fill_(i)
            graph.replay()
            same([step], [self.model(token, position, eager)])
            parts.append(step.clone())
        return self.compare(torch.cat(parts, 1))


class HalfBlock(nn.Module):
    """The same layer in torch's float16, q, k and v as one product, gate and up as another."""

    def __init__(self, device: str) -> None:
        super().__init__()
        shapes = ((3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (2 * WIDE, HIDDEN), (HIDDEN, WIDE))
        self.w = [torch.randn(shape, device=device, dtype=torch.float16) * 0.02 for shape in shapes]
        self.gamma = torch.ones(HIDDEN, device=device, dtype=torch.float16)

    def forward(self, x: torch.Tensor, residual: torch.Tensor, attend: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        f = nn.functional
        residual = x + residual
        y = attend(f.linear(f.rms_norm(residual, (HIDDEN,), self.gamma, EPSILON), self.w[0]))
        residual = residual + f.linear(y, self.w[1])
        gate, up = f.linear(f.rms_norm(residual, (HIDDEN,), self.gamma, EPSILON), self.w[2]).chunk(2, -1)
        return f.linear(f.silu(gate) * up, self.w[3]), residual


def packed_block(bits: int, device: str) -> nn.Module:
    """A random layer of the package."""
    from graphopt_trtllm.layers import Block

    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    settings = {"bits": bits, "group": 64 if bits == 4 else 0, "outliers": OUTLIERS}
    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": EPSILON,
        "graphopt": {"linears": {f"model.layers.0.{name}": settings for name in names}},
    }
    with torch.device(device):
        block = Block(config, 0, torch.float16)
    for name, parameter in block.named_parameters():
        last = name.rpartition(".")[2]
        if last == "idx":
            columns = WIDE if "down_proj" in name else HIDDEN
            parameter.copy_(torch.randperm(columns)[:OUTLIERS].sort().values.int())
        elif last == "codes":
            parameter.copy_(torch.randint(-119, 120, parameter.shape, dtype=torch.int8, device=device))
        elif last == "sg":
            parameter.fill_(9)
        else:
            parameter.copy_(torch.rand(parameter.shape, device=device) * 1e-3)
    return block


def time_layers(add: Callable[[dict[str, Any]], None]) -> None:
    """Microseconds of a layer but its attention, replayed from a CUDA graph; and called from Python."""
    from graphopt.bench.timer import median_us

    with torch.no_grad():
        blocks = {
            "torch_fp16": HalfBlock("cuda"),
            "mixq-w8a8": packed_block(8, "cuda"),
            "mixq-w4a8": packed_block(4, "cuda"),
        }
        for m in (1, 16, 128, 2048):
            times = {}
            for name, block in blocks.items():
                x, residual = (rows_of(m, HIDDEN, torch.float16, "cuda", seed) for seed in (0, 1))

                def call(block: nn.Module = block, x: torch.Tensor = x, residual: torch.Tensor = residual) -> Any:
                    return block(x, residual, lambda qkv: qkv[:, :HIDDEN].contiguous())

                times[name] = median_us([call, call]), median_us([call, call], graph=False)
            half, half_eager = (t.us for t in times.pop("torch_fp16"))
            for name, (timing, eager) in times.items():
                row = {
                    "case": "decoder_layer",
                    "scheme": name,
                    "M": m,
                    "N": HIDDEN,
                    "K": WIDE,
                    "us": round(timing.us, 2),
                }
                row |= {"spread": round(timing.spread, 3), "peers": {"torch_fp16": round(half, 2)}}
                add(row | {"eager_us": round(eager.us, 2), "eager_torch_fp16_us": round(half_eager, 2)})
                print(
                    f"layer M={m} {name}: {timing.us:.1f} us, torch fp16 {half:.1f} ({half / timing.us:.2f}x); "
                    f"called from Python {eager.us:.1f} and {half_eager:.1f}"
                )


def host_us(call: Callable[[], Any]) -> float:
    """Microseconds that the host needs to enqueue ``call``, while the GPU keeps up."""
    times = []
    for _ in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_ENQUEUED):
            call()
        times.append((time.perf_counter() - start) / _ENQUEUED * 1e6)
    return sorted(times)[3]


def time_host(add: Callable[[dict[str, Any]], None]) -> None:
    """What a call of one token costs the host: in C alone, with its checks, as a torch op; and torch's own linear."""
    from graphopt_trtllm.library import library

    block = packed_block(8, "cuda")
    x, residual = (rows_of(1, HIDDEN, torch.float16, "cuda", seed) for seed in (0, 1))
    linear = block.o_proj
    gamma, idx, weights = torch.ones_like(x[0]), linear.idx, [linear.codes, linear.sw, linear.wo, linear.bias]
    quantized = torch.ops.graphopt.mixq_rms_norm(x, gamma, idx, EPSILON)
    y, w = torch.empty_like(x), torch.empty(HIDDEN, HIDDEN, device="cuda", dtype=torch.float16)
    lib, stream = library(), torch.cuda.current_stream().cuda_stream
    pointers = [t.data_ptr() for t in (*quantized, *weights, y)]
    outputs = tuple(torch.empty_like(t) for t in quantized)
    given = [1, HIDDEN, HIDDEN, OUTLIERS]
    fused = torch.ops.graphopt.mixq_quantize_linear.default
    calls = {
        "linear in C": lambda: lib._lib.graphopt_mixq_linear(1, *given, *pointers, stream),
        "linear through Library": lambda: lib.linear((*quantized, *weights), y),
        "linear as a torch op": lambda: torch.ops.graphopt.mixq_linear(*quantized, *weights),
        "norm through Library": lambda: lib.quantize(1, x, idx, outputs, gamma=gamma, epsilon=EPSILON),
        "norm as a torch op": lambda: torch.ops.graphopt.mixq_rms_norm(x, gamma, idx, EPSILON),
        "quantize and linear as one torch op": lambda: fused(0, x, None, idx, 0.0, weights[0], None, *weights[1:], 0),
        "quantize and linear as a module": lambda: linear(x),
        "torch linear": lambda: nn.functional.linear(x, w),
        "torch add": lambda: x + residual,
        "torch current stream": lambda: torch.cuda.current_stream().cuda_stream,
    }
    times = {name: round(host_us(call), 2) for name, call in calls.items()}
    add({"case": "host", "M": 1, "N": HIDDEN, "K": HIDDEN, "host_us": times})
    print("host, us a call:", *(f"{name} {us}" for name, us in times.items()), sep="\n  ")
