"""Models on their way to this disk: threads that fetch, and how far each of them is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, final

import msgspec

from khola.errors import AskedWrong, Busy, Cancelled, KholaError, NotFound
from khola.fetch.progress import Progress
from khola.settings import Settings

MOST_PULLS = 2
"""At once."""

Fetch = Callable[[str, Callable[[Progress], None]], None]
"""Brings a model of a name to this disk and tells how far it is."""


class Pull(msgspec.Struct, kw_only=True):
    """One model on its way."""

    model: str
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    file: str = ""
    stage: str = ""
    done: int = 0
    """Bytes of the file, as `total`; 0 while nobody has said."""
    total: int = 0
    speed: float = 0.0
    """Bytes a second."""
    left_s: float | None = None
    error: str = ""
    """Why it failed, in English; `error_bn` in Bengali."""
    error_bn: str = ""
    version: int = 0
    """Grows with every change."""


@final
class Pulls:
    """All of one server, those that ended included until they are asked for again."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pulls: dict[str, Pull] = {}
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Pull]:
        """How far each is, now."""
        with self._lock:
            return [msgspec.structs.replace(pull) for pull in self._pulls.values()]

    def start(self, model: str) -> Pull:
        """Begin to fetch, or go on where an earlier pull stopped; does nothing while one is running.

        Raises:
            Busy: as many pulls as may run are running.
        """
        with self._lock:
            known = self._pulls.get(model)
            if known and known.state == "running":
                return msgspec.structs.replace(known)
            if sum(pull.state == "running" for pull in self._pulls.values()) >= MOST_PULLS:
                raise Busy("{count} models are being fetched already", hint="wait until one of them is here", count=MOST_PULLS)
            pull = self._pulls[model] = Pull(model=model)
            stop = self._stops[model] = threading.Event()
            threading.Thread(target=self._run, args=(pull, stop), name=f"pull {model}", daemon=True).start()
            return msgspec.structs.replace(pull)

    def cancel(self, model: str) -> Pull:
        """Stop fetching; what is here stays, and the next pull goes on from it.

        Raises:
            NotFound: nobody asked for this model.
        """
        with self._lock:
            if model not in self._pulls:
                raise NotFound("there is no {key!r} here", key=model[:80])
            self._stops[model].set()
            return msgspec.structs.replace(self._pulls[model])

    def _run(self, pull: Pull, stop: threading.Event) -> None:
        def tell(progress: Progress) -> None:
            if stop.is_set():
                raise Cancelled("nothing was fetched")
            far = {"file": progress.file, "stage": progress.stage, "done": progress.done, "total": progress.total}
            self._note(pull, **far, speed=progress.speed, left_s=progress.left_s)

        try:
            self._fetch(pull.model, tell)
        except Cancelled:
            self._note(pull, state="cancelled", left_s=None)
        except KholaError as wrong:
            told = [" ".join(filter(None, (wrong.told(language), wrong.hint(language)))) for language in ("en", "bn")]
            self._note(pull, state="failed", error=told[0], error_bn=told[1], left_s=None)
        except Exception as wrong:
            self._note(pull, state="failed", error=type(wrong).__name__, error_bn=type(wrong).__name__, left_s=None)
            raise
        else:
            self._note(pull, state="done", done=pull.total, left_s=None)

    def _note(self, pull: Pull, **changes: object) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(pull, name, value)
            pull.version += 1


def fetcher(settings: Settings) -> Fetch:
    """Pulls by the catalogue, as `khola pull` does."""

    def fetch(model: str, tell: Callable[[Progress], None]) -> None:
        from khola.api.library import pull
        from khola.cards.catalogue import cards

        if model not in cards():
            raise AskedWrong("{name} is not in the catalogue", hint="`khola pull` takes models from other places", name=model[:80])
        pull(model, settings=settings, progress=tell)

    return fetch
