"""The main program of an engine process: one model, asked over the socket that is its standard input.

The process ends when the socket does: whoever started it closed it, or died. What is heavy is imported behind `give_up`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khola.errors import AskedWrong, KholaError
from khola.serve.engines import wire
from khola.serve.engines.alone import give_up
from khola.settings import Settings

if TYPE_CHECKING:
    from khola.api.model import Model
    from khola.serve.engines.dispatch import Link

SERVED_ROWS = 64
"""Answers that are computed at once, unless others are asked for: 1.4 times the tokens of 16 where 64 clients ask at once."""
SWITCH_S = 0.0005
"""How long a thread that computes in Python may keep the one that steps waiting: a tenth of Python's own choice."""
BROKEN_EXIT = 65
"""Exit status after a frame that no message follows."""


def opened(ask: wire.Ask, link: Link, *, network: bool) -> Model:
    """The model that the first message names.

    Raises:
        AskedWrong: the first message names none.
        KholaError: it cannot be loaded; see `khola.api.load`.
    """
    from khola.api import load
    from khola.api.fit import KHOLA_BYTES
    from khola.api.garbage import uncollected

    if not isinstance(ask, wire.Open):
        raise AskedWrong("an engine process is first told which model to open")
    options = {"rows": SERVED_ROWS, **ask.options}
    with uncollected():
        model = load(ask.name, settings=settings_from(ask.settings), tell=lambda text, **facts: _note(link, text, facts), **options)
    stats, weights = model.stats(), model.loaded.weight_bytes
    tokenizer = model.loaded.tokenizer
    tokenizer.keep_nothing()  # callers must not learn each other's words from the time that theirs take
    begins = tokenizer.token(tokenizer.bos_id) if tokenizer.adds_bos and tokenizer.bos_id is not None else ""
    ends = tokenizer.token(min(tokenizer.end_ids)) if tokenizer.end_ids else ""
    memory_bytes = weights + stats.cache_bytes + KHOLA_BYTES
    link.send(wire.Ready(ask.number, model.context_tokens, memory_bytes, network, begins, ends))
    return model


def settings_from(sent: Mapping[str, Any]) -> Settings:
    """Settings as `khola.serve.engines.process` sends them."""
    paths = {"home": Path(sent["home"]), "user_home": Path(sent["user_home"])}
    return Settings(**{**sent, **paths})


def _note(link: Link, text: str, facts: Mapping[str, Any]) -> None:
    link.send(wire.Note(text, {name: wire.plain(value) for name, value in facts.items()}))


def main() -> None:
    """Serve one model until standard input, which is a socket, ends."""
    network = give_up()
    from khola.serve.engines.dispatch import Link, Worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    link = Link(connection)
    status = 0
    try:
        first = wire.asked(next(link.frames, b""))
        try:
            model = opened(first, link, network=network)
        except KholaError as error:
            link.send(wire.wrong(first.number, error))
        else:
            Worker(link, model).run()
    except KholaError as error:
        sys.stderr.write(f"{error}\n")
        status = BROKEN_EXIT
    sys.stderr.flush()
    # Not `sys.exit`: a step that computes must not keep the process alive.
    os._exit(status)


if __name__ == "__main__":
    main()
