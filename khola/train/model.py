"""A model that learns: trainable weights of any checkpoint of the library, run through the torch interpreter.

Shapes   T packed tokens, R trained rows, D hidden, V vocabulary.

Files are read once, in float32: what learns keeps these numbers as its master weights, and the forward pass runs on copies in the dtype
that is asked for. Weights lie in one torch module a block, so that FSDP can gather and free them block by block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from khola.chat.formats import Format, format_named, format_of_template
from khola.data.packing import Batch
from khola.errors import AskedWrong, NoTemplate
from khola.loader import tokenizer_of
from khola.loader.assemble import assemble
from khola.loader.exported import as_folder
from khola.loader.find import Located
from khola.loader.shells import text_part
from khola.models import architecture as architecture_named
from khola.nn import causal
from khola.nn.specs import Architecture, parse_config
from khola.ops.rows import Rows
from khola.ops.stack import Stack
from khola.ops.torch_native import native_kernels
from khola.ops.torch_ops import DTYPES, TorchOps
from khola.ops.vocabulary import Step, Stored, Weight
from khola.ops.weights import Tree, tree_of
from khola.store.stored import StoredTensor, in_memory
from khola.store.strict_json import load_object
from khola.tokens.tokenizer import Tokenizer
from khola.train import losses
from khola.train.config import Lora
from khola.train.lora import GROUP, Adapted, Grouped, fresh, grouped


def interpreter(device: str, dtype: str, tell: Callable[..., None]) -> TorchOps:
    """The interpreter that training runs on: made here and nowhere else; native kernels where they can be had."""
    kernels = native_kernels(torch.get_num_threads(), device, tell) if dtype == "bfloat16" and device == "cpu" else None
    return TorchOps(device=device, dtype=dtype, kernels=kernels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where a model comes from, and what goes with its weights."""

    located: Located
    raw: Mapping[str, Any]
    """Keys of config.json."""
    documents: Mapping[str, bytes]
    """Files beside config.json and the weights."""
    kind: str
    """Number format of most matrices, as they lay on disk."""


@dataclass(frozen=True, slots=True, eq=False)
class _Disk:
    """What a tensor is called on disk, and how its rows lie there."""

    name: str
    order: NDArray[np.intp] | None
    """Which row of the checkpoint stands where here."""
    parts: tuple[str, ...]
    """Names of what is stacked here and lies apart there."""


def _disk(stored: Stored) -> _Disk:
    return _Disk(
        stored.name,
        stored.order if isinstance(stored, Rows) else None,
        tuple(one.name for one in stored.parts) if isinstance(stored, Stack) else (),
    )


@dataclass(slots=True, eq=False)
class _Taken:
    """One weight as it came from disk."""

    name: str
    stored: Stored
    bias: Stored | None
    exact: bool


def _template(documents: Mapping[str, bytes]) -> str:
    """The chat template beside the weights; empty where there is none."""
    found = documents.get("chat_template.jinja")
    if found is not None:
        return found.decode("utf-8", "replace")
    inside = load_object(documents.get("tokenizer_config.json", b"{}"), max_bytes=8 << 20).get("chat_template")
    return inside if isinstance(inside, str) else ""


class _Taker:
    """Stands in for an interpreter while files meet the architecture: takes names and lets the numbers lie."""

    def take(self, stored: Stored, bias: Stored | None = None, *, exact: bool = False) -> Weight:
        """The tensor, unread."""
        name = stored.name.removesuffix(".weight")
        return Weight(name, _Taken(name, stored, bias, exact))


def _unheard(*_: object, **__: object) -> None:
    """Nobody listens."""


class Part(nn.Module):
    """Weights of one block, or of everything around the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[str, str] = {}
        self._adapters: dict[str, tuple[float, bool]] = {}
        self._grouped: dict[str, Grouped] = {}
        self.adapted = True
        """Whether adapters count."""

    def put(self, path: str, kind: str, values: Tensor, learns: bool) -> None:
        """Keep a tensor; `kind` is "weight", "bias", "lora_a", "lora_b" or "lora_magnitude"."""
        self._weights[path] = path.replace(".", "/")
        self.register_parameter(f"{path}.{kind}".replace(".", "/"), nn.Parameter(values, requires_grad=learns))

    def put_grouped(self, path: str, matrix: Grouped) -> None:
        """Keep a frozen matrix in groups."""
        self._weights[path] = path.replace(".", "/")
        self._grouped[path] = matrix

    def adapt(self, path: str, scale: float, dora: bool) -> None:
        """Say that a weight has an adapter."""
        self._adapters[path] = (scale, dora)

    def weights(self) -> Iterator[Weight]:
        """As they are now; under FSDP that is whole only while the module runs."""
        for path, name in self._weights.items():
            base = self._grouped.get(path)
            data: Any = self._parameters[f"{name}/weight"] if base is None else base
            if path in self._adapters and self.adapted:
                scale, dora = self._adapters[path]
                a_RN, b_DR = (cast(Tensor, self._parameters[f"{name}/{kind}"]) for kind in ("lora_a", "lora_b"))
                data = Adapted(data, a_RN, b_DR, scale, self._parameters[f"{name}/lora_magnitude"] if dora else None)
            yield Weight(path, data, self._parameters.get(f"{name}/bias"))


class Block(Part):
    """One layer."""

    def __init__(self, model: Trainee, layer: int) -> None:
        super().__init__()
        self._run_layer: Callable[[Tensor, Step], Any] = lambda x_TD, step: model.architecture.block(
            x_TD, tree_of(self.weights()), layer, step, model.config, model.ops
        )
        self.recompute = False

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        """Hidden states behind this layer; with `recompute` its insides are made again for the gradients."""
        if self.recompute and torch.is_grad_enabled():
            found: Tensor = checkpoint(self._run_layer, x_TD, step, use_reentrant=False, preserve_rng_state=False)
            return found
        return cast(Tensor, self._run_layer(x_TD, step))


class Whole(Part):
    """Embedding, blocks, norm and head; a call runs anything while all weights around the blocks are whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def forward(self, work: Any, *arguments: Any) -> Any:
        """What `work` gives."""
        return work(*arguments)


class Trainee:
    """A model that learns.

    Args:
        located: its files.
        device, dtype: to compute in; master weights are float32 (float64 with "float64").
        lora: adapters; None trains everything.
        seed: of what is drawn.
        recompute: activation checkpointing, a block at a time.
        learns: False freezes everything (a reference, a teacher).
        chat: a chat format in place of the model's own.
        tell: hears what was left out.
    Raises:
        BadFiles: the files are damaged, or not of an architecture that khola knows.
        AskedWrong: the adapters' pattern finds nothing.
    """

    def __init__(
        self,
        located: Located,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        lora: Lora | None = None,
        seed: int = 0,
        recompute: bool = False,
        learns: bool = True,
        chat: str = "",
        tell: Any = None,
    ) -> None:
        self.ops = interpreter(device, dtype, tell or _unheard)
        self.device, self.dtype = self.ops.device, dtype
        self.wide = torch.float64 if dtype == "float64" else torch.float32
        """Of the masters."""
        self._lora, self._learns, self._seed = lora, learns, seed
        self._rng = np.random.default_rng([seed, 0x10AA])
        self.masters: dict[str, Tensor] = {}
        """What learns, in float32, by name."""
        self.parameters: dict[str, nn.Parameter] = {}
        """What learns, in the dtype of the forward pass; the master itself where that is the same."""
        self._copies: dict[str, nn.Parameter] = {}
        self.whole = Whole()
        self._disk: dict[str, _Disk] = {}
        self._twin: Trainee | None = None
        self._chat = chat
        self._load(located, tell)
        for block in self.whole.blocks:
            cast(Block, block).recompute = recompute
        self.tokenizer: Tokenizer = tokenizer_of(located.path)
        self.chunk = max(16, losses.CHUNK_NUMBERS // self.config.vocab_size)
        """Rows whose logits are there at once."""

    def _load(self, located: Located, tell: Any) -> None:
        parts = as_folder(located.path)
        try:
            name, said = located.path.name, tell or _unheard
            raw, tensors = text_part(parts.config, dict(parts.tensors), name, said)
            self.architecture: Architecture = architecture_named(str(raw.get("model_type")), name)
            self.config = parse_config(self.architecture, raw, name)
            tree = assemble(self.architecture, self.config, tensors, cast(Any, _Taker()), file=name, tell=said)
            kinds = [stored.kind for stored in tensors.values() if len(stored.shape) > 1]
            self.origin = Origin(located=located, raw=parts.config, documents=parts.documents, kind=max(set(kinds), key=kinds.count))
            blocks = {f"{self.architecture.LAYERS}.{layer}.": Block(self, layer) for layer in range(self.config.num_hidden_layers)}
            self.whole.blocks.extend(blocks.values())
            for weight in tree.leaves():
                prefix = next((prefix for prefix in blocks if weight.name.startswith(prefix)), "")
                self._keep(blocks[prefix] if prefix else self.whole, prefix, weight.data)
                parts.forget()
            if self._lora is not None and self._learns and not self.masters:
                raise AskedWrong(
                    "no matrix of {model} matches the pattern {pattern!r}",
                    hint="lora.targets is a regular expression over names such as model.layers.0.self_attn.q_proj",
                    model=located.name,
                    pattern=self._lora.targets,
                )
        finally:
            parts.close()

    def _keep(self, part: Part, prefix: str, taken: _Taken) -> None:
        """One weight into its module; what learns also into the masters."""
        path, stored = taken.name.removeprefix(prefix), taken.stored
        self._disk[f"{taken.name}.weight"] = _disk(stored)
        adapted = self._lora is not None and len(stored.shape) == 2 and re.search(self._lora.targets, taken.name) is not None
        if adapted and self._lora is not None and self._lora.base != "dense" and stored.shape[1] % GROUP == 0:
            base = grouped(stored, self._lora.base, DTYPES[self.dtype], self.device)
            part.put_grouped(path, base)
            values = base.whole(torch.float32)
        else:
            values = self._numbers(stored)
            self._put(part, prefix, path, "weight", values, self._lora is None and not taken.exact, exact=taken.exact)
        if taken.bias is not None:
            self._disk[f"{taken.name}.bias"] = _disk(taken.bias)
            self._put(part, prefix, path, "bias", self._numbers(taken.bias), self._lora is None and not taken.exact, exact=taken.exact)
        if adapted and self._lora is not None:
            a_RN, b_DR = fresh(tuple(values.shape), self._lora.rank, self._rng)
            part.adapt(path, self._lora.scale, self._lora.dora)
            self._put(part, prefix, path, "lora_a", a_RN, True)
            self._put(part, prefix, path, "lora_b", b_DR, True)
            if self._lora.dora:
                self._put(part, prefix, path, "lora_magnitude", values.float().norm(dim=1), True)

    def _numbers(self, stored: Stored) -> Tensor:
        if isinstance(stored, Stack):
            return torch.stack([self._numbers(one) for one in stored.parts])
        return torch.from_numpy(np.array(stored.float32(), np.float32)).reshape(stored.shape).to(self.device, self.wide)

    def _put(self, part: Part, prefix: str, path: str, kind: str, values: Tensor, learns: bool, *, exact: bool = False) -> None:
        learns = learns and self._learns
        values = values.to(self.device, self.wide)
        part.put(path, kind, values if exact else values.to(DTYPES[self.dtype]), learns)
        if learns:
            name = f"{prefix}{path}.{kind}"
            parameter = cast(nn.Parameter, part._parameters[f"{path}.{kind}".replace(".", "/")])
            self.parameters[name] = parameter
            self.masters[name] = parameter.detach() if parameter.dtype is self.wide else values
            if parameter.dtype is not self.wide:
                self._copies[name] = parameter

    @property
    def name(self) -> str:
        """Of the model it was made from."""
        return self.origin.located.name

    @property
    def format(self) -> Format:
        """Its chat format.

        Raises:
            NoTemplate: khola knows none for it.
        """
        if self._chat:
            return format_named(self._chat)
        card = self.origin.located.card
        template = _template(self.origin.documents)
        found = (card.chat if card else "") or (format_of_template(template) if template else "") or ""
        if not found:
            raise NoTemplate(
                "{model} has no chat format that khola knows, so rows of messages cannot be written for it",
                hint="give rows with text, or with prompt and completion, or set chat to the name of a format",
                model=self.name,
            )
        return format_named(found)

    def hidden(self, batch: Batch) -> Tensor:
        """Normed hidden states of the trained rows, [R, D]."""
        return self.hidden_of(batch.ids_T, batch.step)

    def hidden_of(self, ids_T: NDArray[np.int32], step: Step) -> Tensor:
        """Normed hidden states of the wanted rows of any step, [R, D]."""
        outer = self._outer()
        x_TD = self.architecture.embed(ids_T, outer, self.config, self.ops)
        for block in self.whole.blocks:
            x_TD = block(x_TD, step)
        found: Tensor = self.architecture.norm(self.ops.rows(x_TD, step), outer, self.config, self.ops)
        return found

    def head(self, x_RD: Tensor) -> Tensor:
        """Logits, [R, V]."""
        found: Tensor = self.architecture.head(x_RD, self._outer(), self.config, self.ops)
        return found

    def head_weights(self) -> list[Tensor]:
        """Tensors around the blocks that learn: those that a gradient of logits may reach."""
        name = self._head_name().removesuffix("/weight").replace("/", ".")
        found = (self.whole._parameters.get(f"{name}.{kind}".replace(".", "/")) for kind in ("weight", "bias"))
        return [one for one in found if one is not None and one.requires_grad and torch.is_grad_enabled()]

    def _head_name(self) -> str:
        return ("model/embed_tokens" if self.config.tie_word_embeddings else "lm_head") + "/weight"

    def log_probs(self, batch: Batch) -> Tensor:
        """log p(target) of every trained row, [R] in float32, with gradients."""
        targets_R = torch.as_tensor(batch.targets_R, dtype=torch.long, device=self.device)
        return losses.log_probs(self.head, self.hidden(batch), targets_R, self.head_weights(), self.chunk)

    def cross_entropy(self, batch: Batch) -> Tensor:
        """The sum of -log p(target) over the trained rows, with gradients; quicker than the sum of `log_probs`."""
        targets_R = torch.as_tensor(batch.targets_R, dtype=torch.long, device=self.device)
        if self.ops.kernels is not None and self.architecture.head is causal.head:
            table = self.whole._parameters[self._head_name()]
            return self.ops.kernels.token_losses(self.hidden(batch), cast(Tensor, table), targets_R).sum()
        return losses.cross_entropy(self.head, self.hidden(batch), targets_R, self.head_weights(), self.chunk)

    @contextmanager
    def reference(self) -> Iterator[Trainee]:
        """The model as it was before training: without its adapters, or a frozen second copy; no gradients inside."""
        with torch.no_grad():
            if self._lora is None:
                if self._twin is None:
                    self._twin = Trainee(self.origin.located, device=str(self.device), dtype=self.dtype, learns=False)
                yield self._twin
                return
            for _, part in self._parts():
                part.adapted = False
            try:
                yield self
            finally:
                for _, part in self._parts():
                    part.adapted = True

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every tensor of the modules, what learns and what does not, by name."""
        for prefix, part in self._parts():
            for key, parameter in part._parameters.items():
                if parameter is not None:
                    yield prefix + key.replace("/", "."), parameter

    def publish(self) -> None:
        """Bring the masters' numbers into the forward pass's copies."""
        with torch.no_grad():
            for name, copy in self._copies.items():
                copy.copy_(self.masters[name])

    def adopt(self) -> None:
        """Take what the modules hold now for the parameters and masters: FSDP has put its own in their place, and needs no copies."""
        self._copies.clear()
        for name, parameter in self.named():
            if name in self.masters:
                self.parameters[name] = parameter
                self.masters[name] = cast(Any, parameter).to_local().detach()

    def _parts(self) -> Iterator[tuple[str, Part]]:
        """The modules, and how the names of their weights begin."""
        yield "", self.whole
        for layer, block in enumerate(self.whole.blocks):
            yield f"{self.architecture.LAYERS}.{layer}.", cast(Part, block)

    def exported(self, kind: str = "BF16") -> Iterator[StoredTensor]:
        """Every tensor by its name in the lab's checkpoint, adapters merged, rows back in the lab's order.

        Args:
            kind: number format of matrices; vectors are float32 where this is.
        """
        for prefix, part in self._parts():
            for weight in part.weights():
                name = f"{prefix}{weight.name}"
                yield from self._as_stored(f"{name}.weight", self._exact(f"{name}.weight", weight.data), kind)
                if weight.bias is not None:
                    yield from self._as_stored(f"{name}.bias", self._exact(f"{name}.bias", weight.bias), kind)

    def _exact(self, name: str, data: Any) -> Tensor:
        """A weight in float32: its master where it has one."""
        if name in self.masters:
            return self.masters[name].detach()
        if isinstance(data, Adapted):
            path = name.removesuffix(".weight")
            found = (self.masters.get(f"{path}.{kind}") for kind in ("lora_a", "lora_b", "lora_magnitude"))
            a_RN, b_DR, magnitude_D = found
            assert a_RN is not None and b_DR is not None
            return Adapted(data.base, a_RN, b_DR, data.scale, magnitude_D).merged()
        return data.whole(torch.float32) if isinstance(data, Grouped) else cast(Tensor, data).detach()

    def _as_stored(self, name: str, values: Tensor, kind: str) -> Iterator[StoredTensor]:
        """One tensor here as those that it is on disk."""
        disk, array = self._disk[name], values.to("cpu", torch.float32).numpy()
        if disk.order is not None:
            back = np.empty_like(array)
            back[disk.order] = array
            array = back
        parts = zip(disk.parts, array, strict=True) if disk.parts else [(disk.name, array)]
        for part, one in parts:
            yield in_memory(part, np.ascontiguousarray(one), kind if one.ndim > 1 else "F32")

    def _outer(self) -> Tree:
        return tree_of(self.whole.weights())
