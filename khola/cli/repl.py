"""A conversation on a terminal: lines in, answers out, commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khola.chat.message import Message
from khola.cli.conversation import Conversation
from khola.cli.figures import print_stats
from khola.cli.options import nearest
from khola.cli.ready import hint_better, hint_language
from khola.cli.talk import Talk
from khola.cli.terminal import Shown, print_stream, stops_on_interrupt
from khola.errors import AskedWrong, KholaError
from khola.fetch.places import path_of

if TYPE_CHECKING:
    from khola.api import Model
    from khola.cli.remote import Remote
    from khola.engine.request import Sampling, Usage

BLOCK = '"""'
"""Opens and closes a text of several lines."""

HELP = {
    "/system TEXT": "tell the model this before the conversation; without TEXT, show it",
    "/think MODE": "on, off or auto: whether the model thinks before it answers",
    "/regenerate": "answer the last question again",
    "/stats": "speed and token counts of the last answer",
    "/save FILE": "keep the conversation",
    "/load FILE": "go on with a kept conversation",
    "/clear": "forget the conversation",
    "/help": "this list",
    "/exit": "leave, like Ctrl-D",
}


class Repl:
    """One conversation with one model."""

    def __init__(
        self,
        model: Model | Remote,
        talk: Talk,
        ask: Callable[[], str],
        *,
        sampling: Sampling,
        conversation: Conversation,
        thinking: bool | None = None,
        stats: bool = False,
        **form: Any,
    ) -> None:
        """`ask` gives the next input; it raises EOFError to leave and KeyboardInterrupt when a line is given up; `form` of all answers."""
        self._model, self._talk, self._ask = model, talk, ask
        self._sampling, self._conversation = sampling, conversation
        self._thinking, self._stats, self._form = thinking, stats, form
        self._answers = 0
        self._usage: Usage | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/think": self._set_thinking,
            "/regenerate": self._regenerate,
            "/stats": self._show_stats,
            "/save": self._save,
            "/load": self._load,
            "/clear": self._clear,
            "/help": self._help,
            "/exit": self._exit,
        }

    def run(self) -> None:
        """Until Ctrl-D or /exit."""
        self._talk.aside("/help for commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                self._take(self._ask())
            except EOFError:
                return
            except KeyboardInterrupt:
                self._talk.aside("Ctrl-D or /exit leaves")
            except KholaError as error:
                self._talk.error(error)

    def _take(self, line: str) -> None:
        """A command, or a question to the model."""
        if not line.startswith("/"):
            text = unblocked(line)
            if text.strip():
                hint_language(self._model, text, self._talk)
                self._conversation.turns.append(Message(role="user", content=text))
                self._answer(self._sampling)
            return
        name, _, argument = line.partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            near = nearest(name, self._commands) or "/help"
            raise AskedWrong("there is no command {name}", hint="the nearest is {near}", name=name, near=near)
        command(argument.strip())

    def _answer(self, sampling: Sampling) -> None:
        """Stream one answer; a stopped one stays as far as it came, a failed one takes its question with it."""
        shown = Shown()
        try:
            with (
                stops_on_interrupt(self._talk) as stopped,
                closing(
                    self._model.stream(self._conversation.messages(), sampling=sampling, thinking=self._thinking, **self._form)
                ) as deltas,
            ):
                print_stream(deltas, self._talk, shown, stopped)
        except KeyboardInterrupt:
            self._talk.line()
        finally:
            if shown.text or shown.reason:
                self._conversation.turns.append(Message(role="assistant", content=shown.text, thinking=shown.thinking))
            else:
                self._conversation.turns.pop()
        if shown.reason is None:
            self._talk.aside("stopped; /regenerate answers again" if shown.text else "stopped; the question was dropped")
        if shown.usage is not None:
            self._usage = shown.usage
            if self._stats:
                print_stats(shown.usage, self._talk)
        self._answers += 1
        if self._answers == 1:
            hint_better(self._model, self._talk)

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = unblocked(text)
        else:
            self._talk.line(self._conversation.system)

    def _set_thinking(self, value: str) -> None:
        if value not in ("on", "off", "auto"):
            raise AskedWrong("/think is followed by on, off or auto")
        card = self._model.card
        if value == "on" and card is not None and card.thinking == "never":
            raise AskedWrong("{model} does not think", model=self._model.name)
        self._thinking = {"on": True, "off": False, "auto": None}[value]

    def _regenerate(self, _: str) -> None:
        """With a seed, the same question gets the same answer; so each new try moves the seed."""
        import msgspec

        self._conversation.back_to_question()
        seed = self._sampling.seed
        self._answer(self._sampling if seed is None else msgspec.structs.replace(self._sampling, seed=seed + self._answers))

    def _show_stats(self, _: str) -> None:
        if self._usage is None:
            raise AskedWrong("nothing was answered yet")
        print_stats(self._usage, self._talk)
        used = self._usage.prompt_tokens + self._usage.answer_tokens
        self._talk.say("context: {used} of {context} tokens", used=f"{used:,}", context=f"{self._model.context_tokens:,}")

    def _save(self, file: str) -> None:
        path = _path(file)
        self._conversation.save(path, self._model.name)
        self._talk.say("saved: {file}", file=str(path))

    def _load(self, file: str) -> None:
        path = _path(file)
        model = self._conversation.load(path)
        self._talk.say("loaded: {file}, {turns} turns", file=str(path), turns=len(self._conversation.turns))
        if model != self._model.name:
            self._talk.say("that conversation was with {other}; {model} goes on with it", other=model, model=self._model.name)

    def _clear(self, _: str) -> None:
        self._conversation.turns.clear()
        self._usage = None
        self._talk.aside("forgotten; the system text stays")

    def _help(self, _: str) -> None:
        for command, text in HELP.items():
            self._talk.line(f"{command:13} {self._talk.words(text)}")
        self._talk.line()
        self._talk.line(
            self._talk.words("Enter sends; Alt-Enter begins a new line; so does Enter between two lines of three quotation marks.")
        )
        self._talk.line(self._talk.words("Ctrl-C stops an answer. A space before a slash sends it as text."))

    def _exit(self, _: str) -> None:
        raise EOFError


def unblocked(text: str) -> str:
    """The text between two marks of a block; other text as it is."""
    stripped = text.strip()
    return stripped.removeprefix(BLOCK).removesuffix(BLOCK).strip("\n") if stripped.startswith(BLOCK) else text


def _path(file: str) -> Path:
    if not file:
        raise AskedWrong("the command needs a file name")
    return path_of(file)


def ask_on_terminal(talk: Talk) -> Callable[[], str]:
    """Read inputs with editing and a history that outlives the program, in the folder of `Settings.home`."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        text = event.current_buffer.text
        if text.lstrip().startswith(BLOCK) and (text.count(BLOCK) < 2 or not text.rstrip().endswith(BLOCK)):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History
    try:
        path = talk.settings.home / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        history = FileHistory(path)
    except OSError as error:
        talk.say("the history of inputs is not kept: {why}", why=str(error))
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        ">>> ", history=history, key_bindings=keys, multiline=True, prompt_continuation="... ", enable_history_search=True
    )
    return session.prompt
