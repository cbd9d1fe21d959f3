"""`khola show`: a card in words, or what the header of a model file says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import NoTemplate, NotPulled

if TYPE_CHECKING:
    from khola.api.header import Comparison, Header
    from khola.cards.card import Card
    from khola.cards.sizes import Sizes

WEIGHTS = {"open": "open", "gated": "open, after the lab's terms are accepted on its page", "none": "not published"}
THINKING = {"never": "never", "always": "always", "optional": "when asked"}
LISTED_TENSORS = 12

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", autocompletion=o.model_names, show_default=False, help="Name of a card, or path of a model file."),
]
Prompt = Annotated[str | None, typer.Option("--prompt", help="Print this user turn as the model's chat format writes it.")]
Architecture = Annotated[str | None, typer.Option("--architecture", help="Compare the file's tensors with those of this architecture.")]


def show(
    model: Model = None,
    prompt: Prompt = None,
    architecture: Architecture = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Print one model, or every model that khola knows.

    Raises:
        UnknownModel: neither a card nor a file.
        NotPulled: an architecture is to be compared, and the model's files are not here.
        BadFiles: the file cannot be read.
        NoTemplate: a prompt is asked for, and the model has no chat format that khola knows.
    """
    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    if model is None:
        _print_all(talk)
        return
    header, card = _found(model, talk, architecture is not None)
    if prompt is not None:
        _print_prompt(prompt, header, card, talk)
    elif header is not None:
        _print_header(header, card, architecture, talk)
    elif card is not None:
        _print_card(card, talk)


def _found(model: str, talk: Talk, file_wanted: bool) -> tuple[Header | None, Card | None]:
    """The card of a name; of a path, of a model without a card, and when a file is wanted, the header."""
    from khola.api.header import header_of
    from khola.cards.catalogue import cards

    known = cards().get(model.lower())
    if known is not None and not file_wanted:
        return None, known
    header, card = header_of(model, talk.settings)
    if header is None and file_wanted:
        text = "{name} is not on this disk, so its tensors cannot be compared"
        raise NotPulled(text, hint="`khola pull {name}` fetches it", name=card.name if card else model)
    return header, card


def _print_all(talk: Talk) -> None:
    """Every card, one a line."""
    import msgspec

    from khola.cards.catalogue import cards
    from khola.cli.tables import print_table

    known = sorted(cards().values(), key=lambda card: (card.family, card.released, card.name))
    if talk.json:
        talk.data([msgspec.to_builtins(card) for card in known])
        return
    columns = [
        talk.words("model"),
        talk.words("weights"),
        talk.words("context"),
        talk.words("licence"),
        talk.words("lab"),
        talk.words("released"),
    ]
    rows = [
        [card.name, card.parameters, f"{card.context:,}", card.licence, f"{card.lab} ({card.country})", card.released] for card in known
    ]
    print_table(talk, columns, rows, right=(1, 2))


def _print_card(card: Card, talk: Talk) -> None:
    import msgspec

    from khola.cards.catalogue import config_of, licence
    from khola.cards.sizes import sizes_of
    from khola.cli.licence_words import licence_pairs
    from khola.cli.tables import print_pairs, size

    config = config_of(card)
    sizes = sizes_of(config, card.name) if config else None
    keys = (card.licence, *card.further_licences)
    if talk.json:
        built: dict[str, Any] = msgspec.to_builtins(card)
        licences = [{"key": key, **msgspec.to_builtins(licence(key))} for key in keys]
        talk.data(
            {
                **built,
                "config": config,
                "sizes": {**asdict(sizes), "parameters": sizes.parameters, "active": sizes.active} if sizes else None,
                "licences": licences,
            }
        )
        return
    words = talk.words
    pairs = [
        (words("model"), f"{card.title}  ({card.name})"),
        (words("about"), card.about),
        (words("lab"), f"{card.lab}, {card.country}"),
        (words("released"), card.released),
        (words("made from"), ""),
        (words("weights"), _weights(card, sizes, talk)),
        (words("architecture"), _shape(card, config, talk) if config else ""),
        (words("context"), _context(card, sizes, talk)),
        (words("languages"), ", ".join(card.languages)),
        (words("chat format"), card.chat or words("none; `khola complete` continues a text with it")),
        (words("thinks"), words(THINKING[card.thinking]) if card.chat else ""),
        (words("sampling"), ", ".join(f"{name} {value}" for name, value in card.sampling.items())),
        *licence_pairs(keys, talk),
        *((words("file"), f"{file.name}, {size(file.bytes)}, SHA-256 {file.sha256[:16]}…") for file in card.files),
        *((words("source"), source) for source in (*(source for file in card.files for source in file.sources), *card.sources)),
        *((words("facts from"), fact) for fact in card.facts),
    ]
    place = next(place for place, (label, _) in enumerate(pairs) if label == words("made from"))
    pairs[place : place + 1] = _ancestors(card, talk)
    print_pairs(talk, _once([(label, value) for label, value in pairs if value]))


def _once(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same label is written once for pairs that follow each other."""
    return [(label if place == 0 or pairs[place - 1][0] != label else "", value) for place, (label, value) in enumerate(pairs)]


def _context(card: Card, sizes: Sizes | None, talk: Talk) -> str:
    from khola.cli.tables import size

    tokens = f"{card.context:,}"
    if sizes is None:
        return talk.words("{tokens} tokens", tokens=tokens)
    return talk.words("{tokens} tokens; {bytes} of cache a token in 16 bits", tokens=tokens, bytes=size(2 * sizes.cache_per_token))


def _weights(card: Card, sizes: Sizes | None, talk: Talk) -> str:
    if sizes is None:
        return talk.words(WEIGHTS[card.weights])
    said = talk.words("{published} ({exact})", published=card.parameters, exact=f"{sizes.parameters:,}")
    if card.active_parameters:
        said = talk.words("{all}, {active} of them for one token", all=said, active=card.active_parameters)
    return f"{said}; {talk.words(WEIGHTS[card.weights])}"


def _shape(card: Card, config: dict[str, Any], talk: Talk) -> str:
    from khola.api.header import implemented

    said = talk.words(
        "{name}: {layers} layers, width {width}, {heads} heads, vocabulary {vocabulary}",
        name=card.architecture,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        vocabulary=f"{config['vocab_size']:,}",
    )
    return said if implemented(card.architecture) else f"{said}; {talk.words('khola does not run it yet')}"


def _ancestors(card: Card, talk: Talk) -> list[tuple[str, str]]:
    """The chain of parents, each with how the child was made from it, as an indented tree."""
    from khola.cli.lineage import how_words
    from khola.lineage.tree import tree_of_card

    return [
        (talk.words("made from"), f"{'  ' * (kin.depth - 1)}{kin.name}: {how_words(kin.how, talk)}, {kin.lab} {kin.released[:4]}")
        for kin in tree_of_card(card)
        if kin.depth
    ]


def _print_prompt(prompt: str, header: Header | None, card: Card | None, talk: Talk) -> None:
    """One user turn as the chat format writes it, up to where the answer begins."""
    from khola.chat.formats import format_named, format_of_template
    from khola.chat.message import Asked, Control, Message

    name = (card.chat if card else "") or (header and format_of_template(header.template)) or ""
    if not name:
        raise NoTemplate(
            "{name} has no chat format that khola knows",
            hint="base models continue a text: `khola complete`",
            name=card.name if card else str(header.path) if header else "",
        )
    rendered = format_named(name).render(Asked([Message(role="user", content=prompt)]))
    if talk.json:
        parts = [{"control": part.token} if isinstance(part, Control) else {"text": part} for part in rendered.parts]
        talk.data({"format": name, "prompt": rendered.text(), "parts": parts, "thinking_open": rendered.thinking_open})
    else:
        talk.line(rendered.text())


def _print_header(header: Header, card: Card | None, architecture: str | None, talk: Talk) -> None:
    from khola.api.header import compare, implemented
    from khola.chat.formats import format_of_template
    from khola.cli.tables import print_pairs, print_table, size

    known = format_of_template(header.template) if header.template else None
    beside = compare(header, architecture or "") if architecture or implemented(header.architecture) else None
    if talk.json:
        talk.data(_header_data(header, card, known, beside))
        return
    words = talk.words
    runs = "" if implemented(header.architecture) else f"; {words('khola does not run it yet')}"
    template = (
        words("none")
        if not header.template
        else known or words("one that khola does not know, SHA-256 {hash}", hash=header.template_sha256[:16])
    )
    pairs = [
        (words("file"), str(header.path)),
        (words("model"), card.name if card else header.title),
        (words("kind"), f"{header.container}, {header.format}"),
        (words("architecture"), f"{header.architecture or '?'}{runs}"),
        (
            words("weights"),
            words(
                "{count} in {tensors} tensors, {bytes}",
                count=f"{header.parameters:,}",
                tensors=len(header.shapes),
                bytes=size(header.tensor_bytes),
            ),
        ),
        (words("chat template"), template),
        *(
            (words("configuration") if place == 0 else "", f"{key} = {value}")
            for place, (key, value) in enumerate(sorted(header.config.items()))
        ),
        *(_comparison(beside, talk) if beside else ()),
    ]
    print_pairs(talk, [(label, value) for label, value in pairs if value])
    talk.line()
    rows = [[kind.kind, str(kind.tensors), f"{kind.weights:,}", size(kind.bytes)] for kind in header.kinds]
    print_table(talk, [words("format"), words("tensors"), words("weights"), words("bytes")], rows, right=(1, 2, 3))


def _header_data(header: Header, card: Card | None, known: str | None, beside: Comparison | None) -> dict[str, Any]:
    data = asdict(header)
    data.pop("template")
    return {
        **data,
        "path": str(header.path),
        "model": card.name if card else None,
        "format": header.format,
        "parameters": header.parameters,
        "tensor_bytes": header.tensor_bytes,
        "template_sha256": header.template_sha256 or None,
        "template_format": known,
        "comparison": {**asdict(beside), "agrees": beside.agrees} if beside else None,
    }


def _comparison(beside: Comparison, talk: Talk) -> list[tuple[str, str]]:
    """Whether the tensors are those of an architecture, and the first of those that are not."""
    label = talk.words("tensors")
    if beside.agrees:
        return [(label, talk.words("all that {architecture} needs, and no others", architecture=beside.architecture))]
    pairs = []
    for found, sentence in (
        (
            beside.missing,
            talk.words("{count} that {architecture} needs are missing:", count=len(beside.missing), architecture=beside.architecture),
        ),
        (
            beside.unexpected,
            talk.words("{count} that {architecture} does not know:", count=len(beside.unexpected), architecture=beside.architecture),
        ),
    ):
        if found:
            pairs += [(label, sentence), *((label, f"  {name}") for name in found[:LISTED_TENSORS])]
            pairs += [(label, "  …")] if len(found) > LISTED_TENSORS else []
    for name, expected, shape in beside.misshapen[:LISTED_TENSORS]:
        pairs.append(
            (
                label,
                talk.words(
                    "{name} is {found}; {architecture} needs {expected}",
                    name=name,
                    found=list(shape),
                    architecture=beside.architecture,
                    expected=list(expected),
                ),
            )
        )
    return _once(pairs)
