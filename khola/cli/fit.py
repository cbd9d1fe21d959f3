"""`khola fit`: what a model would take on this machine, before anything is fetched."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from khola.cli import options as o
from khola.cli.talk import Talk

if TYPE_CHECKING:
    from khola.api.fit import Choice, Plan


def fit(
    model: o.ModelName,
    context: o.Context = None,
    interpreter: o.Interpreter = "auto",
    cache: o.Cache = "auto",
    precise: o.Precise = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Print the plan; the exit code is 0 whether or not the model fits.

    Raises:
        UnknownModel: neither a card, nor a model on this disk, nor a file.
        UnknownOption: the interpreter has no such cache, or no precise arithmetic beside its own.
        BadFiles: the file cannot be read.
    """
    from khola.api.fit import fit as plan_of

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    plan = plan_of(model, settings=talk.settings, context=context, interpreter=interpreter, cache=cache, precise=precise)
    if json:
        talk.data({**asdict(plan), "fits": plan.fits, "licences": [_licence(key) for key in plan.licences]})
        return
    _print(plan, talk)


def _licence(key: str) -> dict[str, object]:
    import msgspec

    from khola.cards.catalogue import licence

    built: dict[str, object] = msgspec.to_builtins(licence(key))
    return {"key": key, **built}


def _print(plan: Plan, talk: Talk) -> None:
    from khola.cli.licence_words import licence_pairs
    from khola.cli.tables import print_pairs, print_table, size

    machine, words = plan.machine, talk.words
    print_pairs(
        talk,
        [
            (words("model"), _model_line(plan, talk)),
            (
                words("machine"),
                words(
                    "{cores} cores, {free} of {memory} memory free, reads {speed} a second, {disk} disk free",
                    cores=machine.cores,
                    free=size(machine.available_bytes),
                    memory=size(machine.memory_bytes),
                    speed=size(machine.read_bytes_s),
                    disk=size(machine.disk_free_bytes),
                ),
            ),
            (
                words("weights"),
                words(
                    "kept packed by {interpreter}, in about as many bits as the file has"
                    if plan.interpreter == "native"
                    else "kept as float32 by {interpreter}, whatever the format of the file",
                    interpreter=plan.interpreter,
                ),
            ),
            (
                words("cache"),
                words(
                    "{bytes} for {tokens} tokens ({bytes_16} in 16 bits)",
                    bytes=size(plan.cache_bytes),
                    tokens=f"{plan.context:,}",
                    bytes_16=size(plan.cache_bytes_16),
                ),
            ),
            (words("the rest"), words("{bytes} for one step and khola itself", bytes=size(plan.work_bytes))),
        ],
    )
    talk.line()
    columns = [words("format"), words("file"), words("memory"), words("fits"), words("longest context"), words("tokens/s")]
    columns += [words("to fetch"), words("memory if packed"), words("fits packed")]
    print_table(talk, columns, [_row(choice, talk) for choice in plan.choices], right=(1, 2, 4, 5, 6, 7))
    talk.line()
    for sentence in _verdict(plan, talk):
        talk.line(sentence)
    if plan.licences:
        talk.line()
        print_pairs(talk, licence_pairs(plan.licences, talk))


def _model_line(plan: Plan, talk: Talk) -> str:
    facts = {"name": plan.name, "parameters": f"{plan.parameters:,}", "context": f"{plan.trained_context:,}"}
    if plan.active_parameters < plan.parameters // 2:
        active = f"{plan.active_parameters:,}"
        return talk.words("{name}: {parameters} weights, {active} of them for one token, context {context} tokens", active=active, **facts)
    return talk.words("{name}: {parameters} weights, context {context} tokens", **facts)


def _row(choice: Choice, talk: Talk) -> list[str]:
    from khola.cli.tables import duration, size

    low, high = choice.tokens_s
    return [
        choice.format,
        size(choice.file_bytes) if choice.exact else f"~{size(choice.file_bytes)}",
        size(choice.total_bytes),
        talk.words("yes") if choice.fits else talk.words("no"),
        f"{choice.longest_context:,}" if choice.longest_context else "-",
        f"{low:.2g}-{high:.2g}" if choice.fits else "-",
        duration(choice.pull_s, talk) if choice.pull_s else talk.words("is here"),
        size(choice.packed_bytes),
        talk.words("yes") if choice.fits_packed else talk.words("no"),
    ]


def _verdict(plan: Plan, talk: Talk) -> list[str]:
    """Whether it fits, and what to do when it does not."""
    from khola.cli.tables import size

    least = min(plan.choices, key=lambda choice: (choice.total_bytes, choice.packed_bytes))
    said = []
    if plan.best:
        said.append(talk.words("It fits this machine with {tokens} tokens of context.", tokens=f"{plan.context:,}"))
    else:
        said.append(
            talk.words(
                "It does not fit this machine: it needs {needed} of memory, and {free} are free.",
                needed=size(least.total_bytes),
                free=size(plan.machine.available_bytes),
            )
        )
    if not plan.implemented:
        said.append(talk.words("khola does not run the architecture {architecture} yet.", architecture=plan.architecture))
    if not any(choice.fits_disk for choice in plan.choices):
        said.append(talk.words("The disk has no room for any of its files."))
    if plan.relatives:
        said.append(talk.words("Smaller relatives that fit: {names}", names=", ".join(plan.relatives)))
    said.append(talk.words("Speeds are estimates for one stream: 30 to 90 % of the measured bandwidth. Fetching is counted at 10 MB/s."))
    return said
