"""What a model would take on this machine: memory, speed, time to fetch. Nothing is fetched and no weight is read.

Memory   weights as the interpreter keeps them + cache of the context + activations of one step + khola itself.
Speed    one stream is bound by reading every active weight and the cache once a token: bandwidth / bytes, of which programs reach
         a part that is stated as a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from khola.api.header import Header, KindCount, header_of, implemented
from khola.cards.card import Card
from khola.cards.catalogue import card, cards, config_of
from khola.cards.formats import COMMON, FORMATS, file_bytes
from khola.cards.sizes import Sizes, sizes_of
from khola.engine.admission import DEFAULT_CONTEXT_TOKENS
from khola.engine.states import slots_for
from khola.errors import AskedWrong, NoKernel, UnknownModel
from khola.loader.interpreter import chosen, require_cache, require_precise
from khola.native.probe import Machine, probe
from khola.ops.vocabulary import PAGE_TOKENS
from khola.settings import Settings

USEFUL_CONTEXT_TOKENS = 2048
"""A model that fits only with a shorter context, though it was trained for more, is not said to fit."""
STEP_TOKENS = 256
"""Prompt tokens that the engine computes at once."""
LOGIT_ROWS = 16
"""Rows of logits that are held at once."""
KHOLA_BYTES = 150_000_000
"""Python, the libraries and the tokenizer."""
BANDWIDTH_SHARE = (0.3, 0.9)
"""Of the measured bandwidth, what decoding reaches: from small models, where calls cost more than reading, to large ones."""
PRECISE_SHARE = (0.1, 0.9)
"""The same where nothing is rounded: from matrices of 4 bits, which have to be unpacked to float32, to those of 16."""
PULL_BYTES_S = 10_000_000
"""Assumed speed of fetching."""
WEIGHT_BYTES = {"numpy": 4, "torch": 4}
"""Bytes that an interpreter keeps of one weight; those it does not name keep weights packed."""
CACHE_BYTES = {"numpy": 4, "torch": 4}
"""Bytes that an interpreter keeps of one number of the cache; others keep 2."""
FORM_BYTES = {"int8": 1.0625, "float32": 4}
"""The same of a cache that is asked for; in int8 a code, and a scale of 2 bytes for at least 32 of them."""
PACKED_SHARE = {
    "f32": 0.5, "f8_e4m3": 2.0, "q6_k": 1.07, "q5_k": 1.09, "q5_k_m": 1.09, "q4_k": 1.11, "q4_k_m": 1.10, "mxfp4": 2.0, "iq4_nl": 1.89,
    "iq4_xs": 2.0, "q3_k": 1.46, "q3_k_m": 1.35, "q2_k": 2.1,
}  # fmt: skip
"""Bytes of packed weights for one byte in a file, where they differ: products of scales become scales, odd codes take 8 bits, and tiny
codes 4 (`khola/native/csrc/kh.h`)."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One number format of the weights, and what a run with it takes."""

    format: str
    exact: bool
    """Sizes are those of a file, not estimated."""
    file_bytes: int
    weight_bytes: int
    """Memory of the weights in the interpreter that was asked about."""
    total_bytes: int
    fits: bool
    longest_context: int
    """Tokens for which memory suffices, at most the trained ones; 0 when the weights alone do not fit."""
    packed_bytes: int
    """Memory in all in the native interpreter: weights packed, and a cache of 16 bits."""
    fits_packed: bool
    fits_disk: bool
    tokens_s: tuple[float, float]
    """From where to where the speed of one stream should lie; zeros when nothing was measured."""
    pull_s: float
    """Seconds to fetch the file at 10 MB/s; 0 for a file that is here."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model would take here."""

    name: str
    path: str
    """The file or folder that was looked into; empty when only the card was read."""
    architecture: str
    implemented: bool
    """Whether khola can run this architecture."""
    interpreter: str
    parameters: int
    active_parameters: int
    trained_context: int
    context: int
    cache_bytes: int
    """Memory of the cache at `context` in the interpreter."""
    cache_bytes_16: int
    """The same in 16 bits a number."""
    work_bytes: int
    """Activations of one step, states of one sequence and of its snapshots, and khola itself."""
    machine: Machine
    choices: tuple[Choice, ...]
    """From many bits to few."""
    best: str
    """Format of the choice that keeps most of the model and fits; empty when none does."""
    licences: tuple[str, ...]
    """Keys of the licences that apply; empty for files that no card describes."""
    relatives: tuple[str, ...]
    """Smaller models of the family that fit, when this one does not."""

    @property
    def fits(self) -> bool:
        """Whether khola can run it here at this context in some format."""
        return self.implemented and bool(self.best)


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is known of the model in question."""

    name: str
    sizes: Sizes
    trained: int
    architecture: str
    card: Card | None = None
    header: Header | None = None


def fit(
    name: str,
    *,
    settings: Settings,
    context: int | None = None,
    machine: Machine | None = None,
    interpreter: str = "auto",
    cache: str = "auto",
    precise: bool = False,
) -> Plan:
    """What a model would take on this machine.

    Args:
        name: of a card or a pulled model, or the path of a model file or a checkpoint's folder.
        context: tokens of prompt and answer; by default what the engine takes: 8,192, the trained length, or what fits into memory,
            whichever is least.
        machine: by default this one, measured.
        interpreter: what would compute it; "auto" is what `khola chat` would choose.
        cache: how the cache would keep numbers; see `khola.loader.load_model`.
        precise: whether the native interpreter would keep them in float32; see there.
    Raises:
        UnknownModel: neither a card nor a model on this disk has this name.
        UnknownOption: the interpreter has no such cache, or no precise arithmetic beside its own.
        NoKernel: it has none for this model.
        BadFiles: the file cannot be read, or its configuration has no sizes that khola can work out.
        AskedWrong: the context is not a positive number of at most the trained tokens.
    """
    subject = _subject(name, settings)
    here = machine or probe(settings.models)
    require_precise(precise, cache, interpreter)
    interpreter = chosen(settings) if interpreter == "auto" else interpreter
    require_cache(cache, interpreter)
    cache = "float32" if precise else cache
    if cache == "int8" and not subject.sizes.coded_cache:
        raise NoKernel("latents are kept in bfloat16; there is no cache of 8 bits for them", hint="leave the cache out, or say bf16")
    tokens = _default_context(subject, here, interpreter, cache) if context is None else _checked_context(context, subject)
    cost = _cost(subject.sizes, tokens, here, interpreter, cache)
    choices = tuple(_choice(known, subject, tokens, cost, here, interpreter) for known in _formats(subject))
    able = implemented(subject.architecture)
    best = next((choice.format for choice in choices if choice.fits), "")
    licences = (subject.card.licence, *subject.card.further_licences) if subject.card else ()
    return Plan(
        name=subject.name,
        path=str(subject.header.path) if subject.header else "",
        architecture=subject.architecture,
        implemented=able,
        interpreter=interpreter,
        parameters=subject.sizes.parameters,
        active_parameters=subject.sizes.active,
        trained_context=subject.trained,
        context=tokens,
        cache_bytes=cost.cache_token * tokens,
        cache_bytes_16=2 * subject.sizes.cache_per_token * tokens,
        work_bytes=cost.work,
        machine=here,
        choices=choices,
        best=best,
        licences=licences,
        relatives=_relatives(subject.card, tokens, here, interpreter, cache) if subject.card and not (best and able) else (),
    )


def wisest_that_fits(
    machine: Machine, *, language: str = "", context: int = USEFUL_CONTEXT_TOKENS, interpreter: str = "numpy"
) -> Card | None:
    """The chat model of the catalogue with most weights that fits; None when none does.

    Those with a file of known content come first; where none of them fits, whole checkpoints that anybody may fetch.

    Args:
        language: ISO 639-1 code that the lab must name; empty for any.
    """
    asked = [entry for entry in cards().values() if entry.chat and (not language or language in entry.languages)]
    filed = [entry for entry in asked if entry.files]
    whole = [entry for entry in asked if not entry.files and entry.weights == "open"]
    fitting = _fitting(filed, context, machine, interpreter) or _fitting(whole, context, machine, interpreter)
    return next(iter(fitting), None)


def _subject(name: str, settings: Settings) -> _Subject:
    header, found = header_of(name, settings)
    if header is not None:
        return _of_header(header, found)
    return _of_card(found or card(name))


def _of_card(found: Card) -> _Subject:
    if found.weights == "none":
        raise UnknownModel("the weights of {name} have not been published", hint="`khola show {name}` says more", name=found.name)
    sizes = sizes_of(config_of(found), found.name)
    return _Subject(name=found.name, sizes=sizes, trained=found.context, architecture=found.architecture, card=found)


def _of_header(header: Header, found: Card | None) -> _Subject:
    sizes = sizes_of(header.config, str(header.path))
    trained = header.config.get("max_position_embeddings")
    return _Subject(
        name=found.name if found else header.path.name,
        sizes=sizes,
        trained=trained if isinstance(trained, int) else DEFAULT_CONTEXT_TOKENS,
        architecture=header.architecture,
        card=found,
        header=header,
    )


def _default_context(subject: _Subject, machine: Machine, interpreter: str, cache: str) -> int:
    """Tokens that the engine would take by itself; as if memory were there when a useful context does not fit."""
    wanted = min(DEFAULT_CONTEXT_TOKENS, subject.trained)
    cost = _cost(subject.sizes, wanted, machine, interpreter, cache)
    longest = max(_choice(known, subject, wanted, cost, machine, interpreter).longest_context for known in _formats(subject))
    return longest if USEFUL_CONTEXT_TOKENS <= longest < wanted else wanted


def _checked_context(asked: int, subject: _Subject) -> int:
    if not 0 < asked <= subject.trained:
        raise AskedWrong(
            "a context of {asked} tokens is asked for; {name} was trained for {trained}",
            hint="ask for 1 to {trained} tokens",
            asked=asked,
            name=subject.name,
            trained=subject.trained,
        )
    return asked


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What does not depend on the format of the weights: bytes, and the part of the bandwidth that decoding reaches."""

    cache_token: int
    work: int
    available: int
    bandwidth_share: tuple[float, float]


def _cost(sizes: Sizes, tokens: int, machine: Machine, interpreter: str, cache: str) -> _Cost:
    activations = 4 * STEP_TOKENS * (4 * sizes.hidden + 2 * sizes.widest)
    number = FORM_BYTES.get(cache, CACHE_BYTES.get(interpreter, 2))
    return _Cost(
        cache_token=math.ceil(number * sizes.cache_per_token),
        work=activations + 4 * LOGIT_ROWS * sizes.vocabulary + 4 * sizes.state * slots_for(1) + KHOLA_BYTES,
        available=machine.available_bytes,
        bandwidth_share=PRECISE_SHARE if cache == "float32" else BANDWIDTH_SHARE,
    )


@dataclass(frozen=True, kw_only=True)
class _Format:
    """A format in question: its name, the length of its file, whether that is known."""

    name: str
    bytes: int
    exact: bool = False
    here: bool = False
    parameters: int = 0
    """Weights in the file; 0 where the card's count holds. Files may hold a tied head twice."""
    kinds: tuple[KindCount, ...] = ()
    """What the file holds, where it is here."""

    @property
    def packed_bytes(self) -> int:
        """Memory of the weights in the native interpreter."""
        if self.kinds:
            return int(sum(kind.bytes * PACKED_SHARE.get(kind.kind.lower(), 1.0) for kind in self.kinds))
        return int(self.bytes * PACKED_SHARE.get(self.name, 1.0))


def _formats(subject: _Subject) -> list[_Format]:
    """What there is to choose from: the file in hand, else the known files, else what models are usually offered in."""
    if subject.header:
        header = subject.header
        return [
            _Format(name=header.format, bytes=header.tensor_bytes, exact=True, here=True, parameters=header.parameters, kinds=header.kinds)
        ]
    native = ("f8_e4m3",) if subject.architecture == "deepseek_v3" else ()
    known = {file.format: file for file in subject.card.files} if subject.card else {}
    names = sorted({*COMMON, *native, *known}, key=lambda name: list(FORMATS).index(name) if name in FORMATS else len(FORMATS))
    return [
        _Format(name=name, bytes=known[name].bytes, exact=True)
        if name in known
        else _Format(name=name, bytes=file_bytes(subject.sizes, name))
        for name in names
    ]


def _choice(known: _Format, subject: _Subject, tokens: int, cost: _Cost, machine: Machine, interpreter: str) -> Choice:
    sizes = subject.sizes
    each = WEIGHT_BYTES.get(interpreter)
    weights = known.packed_bytes if each is None else each * max(sizes.parameters, known.parameters)
    total = weights + cost.cache_token * tokens + cost.work
    packed = known.packed_bytes + 2 * sizes.cache_per_token * tokens + cost.work
    room = cost.available - weights - cost.work
    longest = min(subject.trained, max(0, room) // cost.cache_token // PAGE_TOKENS * PAGE_TOKENS)
    read = weights * sizes.active / max(1, sizes.parameters) + cost.cache_token * tokens / 2
    return Choice(
        format=known.name,
        exact=known.exact,
        file_bytes=known.bytes,
        weight_bytes=weights,
        total_bytes=total,
        fits=total <= cost.available,
        longest_context=longest,
        packed_bytes=packed,
        fits_packed=packed <= cost.available,
        fits_disk=known.here or known.bytes <= machine.disk_free_bytes,
        tokens_s=(machine.read_bytes_s * cost.bandwidth_share[0] / read, machine.read_bytes_s * cost.bandwidth_share[1] / read),
        pull_s=0.0 if known.here else known.bytes / PULL_BYTES_S,
    )


def _relatives(found: Card, tokens: int, machine: Machine, interpreter: str, cache: str) -> tuple[str, ...]:
    """Up to three smaller models of the family that fit: those of the most similar name first, the largest of them first."""
    own = sizes_of(config_of(found), found.name).parameters
    family = [entry for entry in cards().values() if entry.family == found.family and entry.weights != "none"]
    kin = [entry for entry in family if bool(entry.chat) == bool(found.chat)]
    smaller = [entry for entry in kin if sizes_of(config_of(entry), entry.name).parameters < own]
    fitting = _fitting(smaller, tokens, machine, interpreter, cache)
    fitting.sort(key=lambda entry: -_shared_start(entry.name, found.name))
    return tuple(entry.name for entry in fitting[:3])


def _fitting(entries: Sequence[Card], tokens: int, machine: Machine, interpreter: str, cache: str = "auto") -> list[Card]:
    """Those of the cards that khola can run here, with most weights first."""
    counted: list[tuple[int, Card]] = []
    for entry in entries:
        if not implemented(entry.architecture):
            continue
        subject = _of_card(entry)
        least = min(entry.context, tokens)
        cost = _cost(subject.sizes, least, machine, interpreter, cache)
        if any(_choice(known, subject, least, cost, machine, interpreter).fits for known in _formats(subject)):
            counted.append((subject.sizes.parameters, entry))
    by_size: Callable[[tuple[int, Card]], tuple[int, str]] = lambda pair: (-pair[0], pair[1].name)  # noqa: E731
    return [entry for _, entry in sorted(counted, key=by_size)]


def _shared_start(one: str, other: str) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
