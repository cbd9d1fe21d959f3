"""Card and files become a ready model: the only place where files meet architectures.

```
name -> find -> GGUF file or checkpoint folder -> configuration, tensors, vocabulary -> assemble -> Loaded
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from khola.cards.card import Card
from khola.chat.formats import format_named, format_of_template
from khola.errors import BadConfig, BadTokenizer, KholaError, NoKernel, UnknownOption
from khola.loader.assemble import assemble
from khola.loader.beside import Beside
from khola.loader.find import Located, find
from khola.loader.interpreter import interpreter_named, unheard
from khola.loader.loaded import Loaded
from khola.loader.memory import Room
from khola.loader.shells import text_part
from khola.loader.whole_ups import with_whole_ups
from khola.models import architecture as architecture_named
from khola.nn import decoder, second_token
from khola.nn.specs import Architecture, parse_config
from khola.ops.vocabulary import Forward, Interpreter, Stored
from khola.settings import Settings
from khola.store.gguf import GgufFile, read_gguf
from khola.store.names import checkpoint_tensors, config_from_gguf
from khola.store.safetensors import Checkpoint, read_checkpoint
from khola.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from khola.ops.native_ops import NativeOps

NUMBER_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
"""Of a weight in the interpreters that do not keep weights packed, by what they compute in."""

Tell = Callable[..., None]
"""Called with a sentence and its facts when something unusual, but harmless, was found."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the files of one model hold, whatever their format."""

    config: Mapping[str, Any]
    config_file: str
    """Where the configuration stands, for messages."""
    stored: Mapping[str, Stored]
    tokenizer: Beside[Tokenizer]
    template: str
    files: tuple[str, ...]
    release: Callable[[], None]
    """Lets what was read of the files leave memory."""
    close: Callable[[], None]
    """Lets the files go; what was taken from them stays."""


def load_model(
    name: str,
    *,
    settings: Settings,
    interpreter: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
    cache: str = "auto",
    stream: bool = False,
    second_token: bool = False,
    precise: bool = False,
    available_bytes: int | None = None,
    tell: Tell | None = None,
) -> Loaded:
    """A model, ready for the engine.

    Args:
        name: a path, a card's name, or a name in the library of this disk.
        settings: where things lie, and how many threads to use.
        interpreter: "native", "numpy" or "torch"; "auto" is native where this machine and this model allow it, else numpy.
        device: of the torch interpreter, "cpu" or "cuda".
        dtype: numbers to compute with; numpy takes "float32" or "float64", torch also "bfloat16".
        cache: how the cache keeps numbers: "auto" is the interpreter's own way; the native one has "bf16", which is its own, and "int8".
        stream: weights that do not fit into memory may stay on the disk and are read as they are needed; native only.
        second_token: also load the layer that guesses the token after the next one; requests may guess with it.
        precise: the native interpreter rounds nothing but sums: inputs of products, keys and values stay in float32.
        available_bytes: memory that weights may take; None: what is free now.
        tell: hears about what was ignored or found superfluous, and why the interpreter is not the native one.
    Raises:
        UnknownModel, NotPulled: the name leads to no files here.
        UnknownOption: the interpreter, its cache in such numbers, its precise arithmetic, or a layer that guesses is not to be had.
        BadFiles: the files are damaged, or not those of an architecture that khola knows.
        NoMemory: the weights do not fit, and may not stream.
        NoDisk: they would have to stream, and there is no room for them in packed form.
    """
    located = find(name, settings)
    said = unheard if tell is None else tell
    ops = interpreter_named(interpreter, settings, device, dtype, cache, said, precise=precise)
    parts = _folder_parts(located.path, said) if located.path.is_dir() else _gguf_parts(located.path)
    room = Room(
        name=located.name,
        config=parts.config,
        file=Path(parts.files[0]),
        number_bytes=NUMBER_BYTES.get(dtype, 0) if device == "cpu" else 0,
        stream=stream,
        available_bytes=available_bytes,
    )
    try:
        return _ready(located, parts, ops, settings, room, said, second_token)
    except NoKernel as wrong:
        if interpreter != "auto" or ops.name != "native":
            raise
        said("numpy runs the model, several times slower than native would: {reason}", reason=str(wrong))
        return _ready(located, parts, interpreter_named("numpy", settings, cache=cache), settings, room, said, second_token)
    finally:
        parts.close()


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer in a model's files, without its weights.

    Args:
        path: a GGUF file, or a folder with a safetensors checkpoint.
    Raises:
        BadFiles: the files are damaged, or there is no tokenizer in them.
    """
    parts = _folder_parts(path, unheard) if path.is_dir() else _gguf_parts(path)
    try:
        return parts.tokenizer.result()
    finally:
        parts.close()


def _ready(located: Located, parts: Parts, ops: Interpreter, settings: Settings, room: Room, tell: Tell, further: bool) -> Loaded:
    """A model whose weights are in the interpreter's last form, so that its files may be closed."""
    file = located.path.name
    architecture = _architecture(located, parts.config, parts.config_file)
    config = parse_config(architecture, parts.config, parts.config_file)
    if further and not config.further_layers:
        raise UnknownOption(
            "{name} has no layer that guesses a second token in a form that khola knows",
            hint="leave second_token out: the answers are the same",
            name=located.name,
        )
    if ops.name != "native":
        room.require_whole(parts.stored)
    weights = assemble(architecture, config, parts.stored, ops, file=file, tell=tell, further=further)
    passes: list[Forward] = [
        lambda ids_T, step, ops: decoder.logits(ids_T, architecture, weights, config, step, ops),
        lambda ids_T, step, ops: decoder.hidden(ids_T, architecture, weights, config, step, ops),
    ]
    if further:
        passes.append(lambda ids_T, step, ops: second_token.logits(ids_T, architecture, weights, config, step, ops))
    _settle(ops, passes, parts, settings, room, tell)
    tokenizer = _tokenizer(parts, config.vocab_size, file)
    card = located.card
    chat_format = (card.chat if card else "") or (format_of_template(parts.template) if parts.template else "") or ""
    return Loaded(
        name=located.name,
        card=card,
        architecture=architecture,
        config=config,
        weights=weights,
        ops=ops,
        cache=architecture.cache(second_token.with_layer(config) if further else config),
        tokenizer=tokenizer,
        context_tokens=(card.context if card and card.context else 0) or config.max_position_embeddings,
        vocab_tokens=config.vocab_size,
        chat_format=chat_format,
        template=parts.template,
        stop_ids=tokenizer.end_ids | _card_stops(card, chat_format, tokenizer),
        weight_bytes=sum(ops.weight_bytes(weight) for weight in weights.leaves()),
        sampling=dict(card.sampling) if card else {},
        files=parts.files,
        second_token=further,
    )


def _settle(ops: Interpreter, passes: Sequence[Forward], parts: Parts, settings: Settings, room: Room, tell: Tell) -> None:
    """Bring the weights of the forward passes into the interpreter's last form."""
    if ops.name != "native":
        ops.settle(passes, parts.release)
        return
    from khola.loader import packed_cache

    origin = packed_cache.Origin(files=parts.files, stored=parts.stored)
    packed_cache.settle(cast("NativeOps", ops), passes, origin, settings, room, parts.release, tell)


def _tokenizer(parts: Parts, rows: int, file: str) -> Tokenizer:
    """The tokenizer, which must fit the embedding.

    Raises:
        BadTokenizer: its tables contradict themselves, or it has more tokens than the embedding has rows.
    """
    tokenizer = parts.tokenizer.result()
    if tokenizer.size > rows:
        raise BadTokenizer(
            "{file}: the tokenizer has {found} tokens, but the model's embedding has {expected} rows",
            file=file,
            found=tokenizer.size,
            expected=rows,
        )
    return tokenizer


def _architecture(located: Located, config: Mapping[str, Any], file: str) -> Architecture:
    """The architecture that the files name; the card must not say otherwise.

    Raises:
        BadConfig: the files name none, or another than the card.
    """
    named = config.get("model_type")
    if not isinstance(named, str):
        raise BadConfig(
            "{file}: model_type is {found}; expected the name of an architecture", file=file, key="model_type", found=repr(named)[:80]
        )
    found = architecture_named(named, file)
    if located.card is not None and found is not architecture_named(located.card.architecture):
        raise BadConfig(
            "{file} is of the architecture {found}, but the card of {name} says {expected}",
            hint="the file is not what its name says; pull it again with `khola pull {name} --repair`",
            file=file,
            found=named,
            expected=located.card.architecture,
            name=located.name,
        )
    return found


def _card_stops(card: Card | None, chat_format: str, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a turn by the card and by the chat format, as far as this vocabulary has them."""
    stops = set(card.stop_ids) if card else set()
    if chat_format:
        stops |= {known for token in format_named(chat_format).STOPS if (known := tokenizer.id_of(token)) is not None}
    return frozenset(stops)


def _gguf_parts(path: Path) -> Parts:
    file: GgufFile = read_gguf(path)
    try:
        template = file.metadata.get("tokenizer.chat_template", "")
        tokenizer = Beside(lambda: Tokenizer.from_gguf(file.metadata, path.name))
        return Parts(
            config=config_from_gguf(file.metadata, file.tensors, file=path.name),
            config_file=path.name,
            stored=with_whole_ups(checkpoint_tensors(file)),
            tokenizer=tokenizer,
            template=template if isinstance(template, str) else "",
            files=(str(path),),
            release=file.release,
            close=file.close,
        )
    except KholaError:
        file.close()
        raise


def _folder_parts(path: Path, tell: Tell) -> Parts:
    checkpoint: Checkpoint = read_checkpoint(path)
    try:
        if checkpoint.tokenizer_path is None:
            raise BadTokenizer("{folder}: there is no tokenizer.json", folder=path.name)
        tokenizer_path = checkpoint.tokenizer_path
        # The scales of 8-bit weights are part of the tensors by now.
        plain = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
        config, tensors = text_part(plain, checkpoint.tensors, path.name, tell)
        return Parts(
            config=config,
            config_file=f"{path.name}/config.json",
            stored=tensors,
            tokenizer=Beside(lambda: Tokenizer.from_json(tokenizer_path)),
            template=checkpoint.chat_template or "",
            files=tuple(str(file.path) for file in checkpoint.files),
            release=checkpoint.release,
            close=checkpoint.close,
        )
    except KholaError:
        checkpoint.close()
        raise
