"""`khola serve`: models over HTTP, for programs and for the page."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from khola.cli import options as o
from khola.cli.talk import Talk
from khola.errors import Forbidden, UnknownOption

if TYPE_CHECKING:
    from khola.serve.access.guard import Auth, Guard
    from khola.serve.access.limits import Limits
    from khola.serve.backend import Backend
    from khola.serve.log import Log

HOST, PORT = "127.0.0.1", 11500
"""The port is none of those that other model servers take (1234, 8000, 8080, 11434), and below those that systems give to clients."""
AUTH_WORDS = {
    "keys": "every request needs a key",
    "local": "programs of this machine may ask without a key; loading and unloading need one",
    "none": "anyone who reaches this address may ask anything: no key is needed",
}


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", autocompletion=o.model_names, show_default=False, help="Models to offer; default: all here."),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = HOST,
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")] = PORT,
    engine: Annotated[
        Literal["auto", "echo"], typer.Option("--engine", help="What answers; echo says again what it hears, to test clients with.")
    ] = "auto",
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", parser=Path, help="Keys; every request then needs one of them.")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no key, whoever can reach the address.")] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", metavar="ORIGIN", help="A site whose pages may ask; may be given several times.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A name by which the server is reached; may be given often.")
    ] = None,
    idle: Annotated[
        float, typer.Option("--idle", min=0, metavar="MINUTES", help="Unload a model that nobody asks for so long; 0 never.")
    ] = 5.0,
    memory: Annotated[float | None, typer.Option("--memory", min=0, metavar="GB", help="Memory for all models together.")] = None,
    context: o.Context = None,
    cache: o.Cache = "auto",
    deadline: Annotated[float, typer.Option("--deadline", min=1, metavar="SECONDS", help="Longest time for one answer.")] = 600.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0, metavar="SECONDS", help="Time for running answers when the server is stopped.")
    ] = 30.0,
    raw_utf8: Annotated[bool, typer.Option("--raw-utf8", help="Do not escape letters in JSON.")] = False,
    log: Annotated[Path | None, typer.Option("--log", metavar="FILE", parser=Path, help="Write a line of JSON for every request.")] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    lang: o.Lang = None,
) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C; running answers are then ended first.

    Raises:
        UnknownModel, NotPulled: a name leads to no files here.
        Forbidden: the address can be reached from elsewhere, and nobody would need a key.
        AskedWrong: the address cannot be listened on.
    """
    from khola.serve.access.limits import Limits
    from khola.serve.run import listen, serve
    from khola.serve.service import Service

    talk = o.talk_of(json=json, quiet=quiet, lang=lang)
    limits = Limits(deadline_s=deadline, drain_s=drain)
    guard = _guard(host, key_file, no_auth, cors_origin or [], allow_host or [], limits, talk)
    written = _log(log, talk)
    options = {"context": context, "cache": cache}

    async def run() -> None:
        backend = _backend(engine, models or [], talk, idle_s=60 * idle, memory_gb=memory, options=options)
        sockets = listen(host, port)
        guard.listens_on(sockets[0].getsockname()[1])
        service = Service(backend=backend, settings=talk.settings, limits=limits, guard=guard, log=written, raw_utf8=raw_utf8)
        await serve(service, sockets, ready=lambda _: _announce(host, guard, limits, engine, models or [], talk))

    asyncio.run(run())


def _guard(
    host: str, key_file: Path | None, no_auth: bool, origins: list[str], names: list[str], limits: Limits, talk: Talk
) -> Guard:  # fmt: skip
    """Who may ask.

    Raises:
        Forbidden: the address can be reached from elsewhere, and nobody would need a key.
        UnknownOption: options that contradict each other.
    """
    from khola.serve.access.guard import Guard
    from khola.serve.access.keys import FILE, Keys
    from khola.serve.run import is_loopback

    if no_auth and key_file is not None:
        raise UnknownOption("--no-auth and --key-file contradict each other", hint="leave one of them out")
    keys = Keys(key_file or talk.settings.home / FILE)
    if key_file is not None and not keys.all():
        raise Forbidden("there is no key in {file}", hint="khola key new --key-file {file}", file=str(key_file))
    if not is_loopback(host) and not no_auth and not keys.all():
        raise Forbidden(
            "{host} can be reached from other machines, and there is no key yet",
            hint="make one with `khola key new`, or write --no-auth if everyone may use it",
            host=host,
        )
    auth: Auth = "none" if no_auth else "keys" if key_file is not None or not is_loopback(host) else "local"
    own = [] if host in ("0.0.0.0", "::", "[::]") else [f"[{host}]" if ":" in host and not host.startswith("[") else host]  # noqa: S104  names, not an address to bind
    return Guard(auth=auth, keys=keys, hosts=(*own, *names), origins=tuple(_origins(origins)), limits=limits)


def _origins(origins: list[str]) -> list[str]:
    """Origins as browsers write them.

    Raises:
        UnknownOption: one is no origin; "*" is none.
    """
    import re

    for origin in origins:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/*?#]+", origin):
            raise UnknownOption("--cors-origin {origin}: expected one like https://example.org, without a path", origin=origin)
    return origins


def _backend(
    engine: str, models: list[str], talk: Talk, *, idle_s: float, memory_gb: float | None, options: dict[str, Any]
) -> Backend:  # fmt: skip
    """What answers.

    Raises:
        UnknownModel, NotPulled: a name leads to no files here.
    """
    if engine == "echo":
        from khola.serve.engines.echo import Echo

        return Echo(offered=models or ["echo"])
    from khola.serve.engines.pool import Engines

    return Engines(
        talk.settings,
        offered=models or None,
        budget_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        idle_s=idle_s or None,
        options={name: value for name, value in options.items() if value is not None},
        tell=talk.say,
    )


def _log(path: Path | None, talk: Talk) -> Log:
    """Lines for a file; without one, for standard error where no person reads it."""
    from khola.serve.log import Log, opened

    if path is not None:
        return Log(opened(path))
    return Log(None if talk.quiet or talk.err.isatty() else talk.err)


def _announce(host: str, guard: Guard, limits: Limits, engine: str, models: list[str], talk: Talk) -> None:
    """Say where the server is and what it allows."""
    from khola.serve.run import is_loopback

    address = f"http://{f'[{host}]' if ':' in host else host}:{guard.port}"
    if talk.json:
        talk.data({"address": address, "page": f"{address}/#key={guard.page_key}", "auth": guard.auth, "engine": engine, "models": models})
        talk.out.flush()
        return
    talk.say("khola answers at {address}/v1", address=address)
    talk.say("its page, which may also load and unload: {page}", page=f"{address}/#key={guard.page_key}")
    talk.say(AUTH_WORDS[guard.auth])
    if guard.auth == "none" and not is_loopback(host):
        talk.say("warning: {host} can be reached from other machines", host=host)
    if os.name == "posix" and os.geteuid() == 0:
        talk.say("warning: this runs as root; it needs no more rights than to read its models")
    talk.say("models: {models}", models=", ".join(models) or talk.words("all on this disk"))
    talk.say(
        "limits: {queue} requests at once, {each} for each key, {seconds} s for an answer, bodies of {size} MB",
        queue=limits.queue,
        each=limits.in_flight,
        seconds=int(limits.deadline_s),
        size=limits.body_bytes >> 20,
    )
    talk.say("Ctrl-C stops it")
