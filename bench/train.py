"""Measure a training step of khola beside transformers and torch at the same batch: `python -m bench.train --help`.

Each engine lives in a process of its own, and they take turns step by step, so that a noisy second hits both alike; what one process holds
at most is its own number. A step is forward, backward and AdamW, products in bfloat16 and weights in float32: transformers under
torch.autocast with torch's attention and its fused AdamW, khola's architecture on the native kernels with the same AdamW. The loss of every
step is printed: both see the same weights and the same tokens. Tests of the kernels run first: a wrong kernel has no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from khola.loader.assemble import assemble
from khola.loader.exported import as_folder
from khola.models import architecture
from khola.native.train import keep_memory
from khola.nn.specs import parse_config
from khola.ops.torch_native import NativeKernels, multiply
from khola.ops.torch_ops import TorchOps
from khola.ops.vocabulary import Weight, whole_sequences
from khola.ops.weights import Tree, tree_of

ROOT = Path(__file__).resolve().parents[1]
SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
"""SmolLM2-135M."""
ENGINES = ("khola", "transformers")
RATE = 1e-5


def batch(asked: argparse.Namespace) -> Tensor:
    """Token ids, [rows, length]: bytes of this Python's library, which every run finds alike, or random ones."""
    count = asked.rows * asked.length
    if asked.text:
        text = Path(json.__file__).parent.parent.joinpath("argparse.py").read_bytes()
        ids = np.resize(np.frombuffer(text, np.uint8).astype(np.int64) + 100, count)
    else:
        ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], count)
    return torch.as_tensor(ids).view(asked.rows, asked.length)


def weights_of(asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A model's configuration and its tensors in float32: those of a file, or random ones of SmolLM2-135M's shape."""
    if asked.model:
        parts = as_folder(Path(asked.model))
        found = {name: torch.tensor(stored.float32()).reshape(stored.shape) for name, stored in parts.tensors.items()}
        config = dict(parts.config)
        parts.close()
        return config, found
    found, rng = {}, torch.Generator().manual_seed(0)
    arch = architecture("llama")
    for name, shape in arch.tensors(parse_config(arch, SHAPE, "shape")).items():
        found[name] = torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=rng)
    return dict(SHAPE), found


class _Taken:
    """A tensor as the loader knows it."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.shape, self.kind, self._tensor = name, tuple(tensor.shape), "F32", tensor

    def raw(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._tensor.numpy().reshape(-1)).cast("B")

    def float32(self) -> Any:
        """Its numbers."""
        return self._tensor.numpy()


def khola_step(asked: argparse.Namespace) -> Callable[[], float]:
    """One training step on the native kernels."""
    config, tensors = weights_of(asked)
    arch = architecture(config["model_type"])
    c: Any = parse_config(arch, config, "benchmark")
    # Between native operations torch has little to do, and its waiting threads would take the cores from them.
    torch.set_num_threads(1)
    kernels = NativeKernels(asked.threads)
    ops = TorchOps("cpu", "bfloat16", kernels)
    stored: Any = {name: _Taken(name, tensor) for name, tensor in tensors.items()}
    tree = assemble(arch, c, stored, TorchOps("cpu", "float32"))
    learning = [Weight(w.name, w.data.requires_grad_(), None if w.bias is None else w.bias.requires_grad_()) for w in tree.leaves()]
    tensors.clear()
    stored.clear()
    tree = tree_of(learning)
    optimiser = torch.optim.AdamW([t for w in learning for t in (w.data, w.bias) if t is not None], lr=RATE, fused=True)
    ids_BT = batch(asked)
    step = whole_sequences([asked.length] * asked.rows)
    targets_T = torch.cat([ids_BT[:, 1:], torch.full((asked.rows, 1), -1)], dim=1).reshape(-1)
    count = asked.rows * (asked.length - 1)
    table: Tensor = (tree.model.embed_tokens if c.tie_word_embeddings else tree.lm_head).data

    def once() -> float:
        x_TD = forward(tree)
        loss = kernels.token_losses(arch.norm(x_TD, tree, c, ops), table, targets_T).sum() / count
        loss.backward()
        torch.set_num_threads(asked.threads)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch.set_num_threads(1)
        return float(loss.detach())

    def forward(w: Tree) -> Tensor:
        x_TD: Any = arch.embed(ids_BT.reshape(-1).numpy(), w, c, ops)
        for layer in range(c.num_hidden_layers):
            x_TD = arch.block(x_TD, w.model.layers[layer], layer, step, c, ops)
        return x_TD

    return once


def transformers_step(asked: argparse.Namespace) -> Callable[[], float]:
    """One training step of the lab's class in transformers, at its best."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config, tensors = weights_of(asked)
    torch.set_num_threads(asked.threads)
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="sdpa")
    model.load_state_dict(tensors, strict=False)
    tensors.clear()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    ids_BT = batch(asked)

    def once() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return once


def work(asked: argparse.Namespace) -> None:
    """An engine's process: a step for every line, then what it held at most."""
    # Both: fresh pages would cost either of them up to a seventh of a step.
    keep_memory()
    once = {"khola": khola_step, "transformers": transformers_step}[asked.engine](asked)
    print("{}", flush=True)
    for _ in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        loss = once()
        took = {"s": time.perf_counter() - began, "worked": time.process_time() - worked}
        print(json.dumps({**took, "loss": loss, "peak": peak_bytes()}), flush=True)


def peak_bytes() -> int:
    """The most memory that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def steps(asked: argparse.Namespace) -> None:
    """Both engines in turns."""
    more = [f"--{name}={getattr(asked, name)}" for name in ("rows", "length", "threads", "model")] + (["--text"] if asked.text else [])
    started = {
        engine: subprocess.Popen(
            [sys.executable, "-m", "bench.train", "--engine", engine, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for engine in ENGINES
    }
    told: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    try:
        for process in started.values():
            answer(process)
        for turn in range(asked.steps + 1):
            for engine, process in started.items():
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
                told[engine].append(answer(process))
            print(f"step {turn}: " + ", ".join(f"{e} {t[-1]['s']:.2f} s, loss {t[-1]['loss']:.4f}" for e, t in told.items()), flush=True)
    finally:
        for process in started.values():
            process.communicate()
    tokens = asked.rows * asked.length
    print(f"\n{asked.rows} x {asked.length} tokens, {asked.threads} threads; the first step is left out")
    for engine, all_of in told.items():
        s = [one["s"] for one in all_of[1:]]
        peak = all_of[-1]["peak"] / 1e9
        worked = statistics.median(one["worked"] for one in all_of[1:])
        print(
            f"{engine:13} median {tokens / statistics.median(s):7.0f} tokens/s, best {tokens / min(s):7.0f}, "
            f"peak {peak:.2f} GB, processor {worked:.2f} s a step"
        )
    ratios = [b["s"] / a["s"] for a, b in zip(told["khola"][1:], told["transformers"][1:], strict=True)]
    best = min(one["s"] for one in told["transformers"][1:]) / min(one["s"] for one in told["khola"][1:])
    print(f"ratio         median of turns {statistics.median(ratios):.2f}, of the best steps {best:.2f}; goal 2.00")


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """The next line of an engine."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise SystemExit("an engine ended before its time")
    found: dict[str, float] = json.loads(line)
    return found


Case = tuple[str, float, Callable[[], Any], Callable[[], Any], Callable[[], float]]
"""Name, operations in 10^12, khola's call, torch's, and how far khola's result is off."""


def products(team_of: NativeKernels, rows: int) -> Iterator[Case]:
    """A linear layer's product and its two gradients."""
    team = team_of.team
    for n, k in ((576, 576), (192, 576), (1536, 576), (576, 1536)):
        x, w, dy = (torch.randn(shape).bfloat16() for shape in ((rows, k), (n, k), (rows, n)))
        y, dx, dw = x.new_empty(rows, n), torch.empty_like(x), torch.empty(n, k)
        work_of = 2e-12 * rows * n * k
        for name, left, right, out in (("y", x, w, y), ("dx", dy, w.T, dx), ("dw", dy.T, x.T, dw)):
            yield (
                f"{name:2} of {rows} x {k} x {n}",
                work_of,
                lambda left=left, right=right, out=out: multiply(team, left, right, out),
                lambda left=left, right=right: left @ right.T,
                lambda left=left, right=right, out=out: off(out, left.double() @ right.T.double()),
            )


def attentions(kernels: NativeKernels, rows: int) -> Iterator[Case]:
    """Causal attention of SmolLM2's heads and its gradient; a score counts as seen once."""
    for count in (4, 1):
        length = rows // count
        q, k, v = (torch.randn(rows, heads, 64).bfloat16().requires_grad_() for heads in (9, 3, 3))
        starts = np.arange(0, rows + 1, length, dtype=np.int32)
        by_head = [x.detach().view(count, length, -1, 64).transpose(1, 2).requires_grad_() for x in (q, k, v)]
        exact = functional.scaled_dot_product_attention(*(x.detach().double() for x in by_head), is_causal=True, enable_gqa=True)
        out = kernels.attend(q, k, v, starts, 0.125, None)
        slope = torch.randn_like(out)
        theirs = functional.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True)
        work_of, name = 4e-12 * rows * (length + 1) / 2 * 9 * 64, f"{count} x {length}, 9 heads of 64"
        yield (
            f"attention {name}",
            work_of,
            lambda q=q, k=k, v=v, starts=starts: kernels.attend(q, k, v, starts, 0.125, None),
            lambda by_head=by_head: functional.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True),
            lambda out=out, exact=exact, count=count, length=length: off(out.view(count, length, 9, 64).transpose(1, 2), exact),
        )
        turned = slope.view(count, length, 9, 64).transpose(1, 2)
        leaves = [x.detach().double().requires_grad_() for x in by_head]
        wide = functional.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        (exact_q,) = torch.autograd.grad(wide, leaves[:1], turned.double())
        (mine_q,) = torch.autograd.grad(out, [q], slope, retain_graph=True)
        yield (
            f"its gradient {name}",
            2.5 * work_of,
            lambda out=out, inputs=(q, k, v), slope=slope: torch.autograd.grad(out, inputs, slope, retain_graph=True),
            lambda theirs=theirs, by_head=by_head, turned=turned: torch.autograd.grad(theirs, by_head, turned, retain_graph=True),
            lambda mine_q=mine_q, exact_q=exact_q, count=count, length=length: off(
                mine_q.view(count, length, 9, 64).transpose(1, 2), exact_q
            ),
        )


def off(found: Tensor, exact: Tensor) -> float:
    """Relative distance."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def parts(asked: argparse.Namespace) -> None:
    """Products and attention alone, in turns with torch's."""
    torch.set_num_threads(asked.threads)
    kernels, rows = NativeKernels(asked.threads), asked.rows * asked.length
    print(f"\nTFLOP/s: best of {asked.repetitions} turns, medians in brackets; error against float64")
    for name, work_of, mine, theirs, error in (*products(kernels, rows), *attentions(kernels, rows)):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(asked.repetitions + 1):
            for times, call in zip(seconds, (mine, theirs), strict=True):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
        a, b = (f"{work_of / min(t[1:]):.2f} ({work_of / statistics.median(t[1:]):.2f})" for t in seconds)
        print(f"{name:40} khola {a:13} torch {b:13} error {error():.1e}", flush=True)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--model", default="", help="a GGUF file or folder of the Llama architecture; random weights by default")
    parser.add_argument("--text", action="store_true", help="Python's own source in place of random tokens")
    parser.add_argument("--only", default="steps,parts")
    parser.add_argument("--quick", action="store_true", help="without the tests")
    parser.add_argument("--engine", default="", choices=["", *ENGINES], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.engine:
        work(asked)
        return
    if (
        not asked.quick
        and subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/native/test_training.py"], cwd=ROOT, check=False).returncode
    ):
        raise SystemExit("the kernels' tests fail; there is nothing to measure")
    if "steps" in asked.only:
        steps(asked)
    if "parts" in asked.only:
        parts(asked)


if __name__ == "__main__":
    main()
