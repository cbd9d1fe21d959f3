"""Templates that came with a model's files, run only when the user trusts them, and only in a bounded process.

A template is a program written by whoever packed the file. khola knows the labs' published ones by hash and writes those formats itself
(`khola.chat.formats`); any other runs here, in `template_worker.py`: sandboxed, without files or network, 512 MiB of memory, killed half a
second after it was asked. Only plain JSON reaches it, and no letter of a speaker comes back as a control token (`protect.py`).
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from types import TracebackType
from typing import Any

from khola.chat.message import Asked, Message, Part, Prompt, Tool, ToolCall
from khola.chat.protect import LAST, Protection, protection
from khola.chat.template_worker import FORBIDDEN_EXIT, REQUEST_BYTES
from khola.chat.thinking import END, START
from khola.chat.turns import check_turns
from khola.errors import AskedWrong, BadTemplate, NoTemplate, OurFault, UnknownOption

SOURCE_BYTES = 256 << 10
DEADLINE_S = 0.5
_START_S = 20.0
_OPTIONS = ("enable_thinking", "thinking", "reasoning_effort", "date_string", "tools_in_user_message", "preserve_thinking")


class TemplateWorker:
    """One bounded process, kept between renderings of a conversation; a context manager.

    A rendering that breaks a bound ends the process; the next one starts another. Threads may share a worker and wait for each other.

    Args:
        deadline_s: seconds of wall time that one rendering may take.
    """

    def __init__(self, *, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = Lock()

    def __enter__(self) -> TemplateWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id while one runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if none runs, so that the first rendering need not wait for it.

        Raises:
            OurFault: it does not start.
        """
        if self._process is not None and self._process.poll() is None:
            return
        folders = [str(Path(spec.origin).parents[1]) for name in ("jinja2", "markupsafe") if (spec := find_spec(name)) and spec.origin]
        program = str(Path(__file__).with_name("template_worker.py"))
        self._process = subprocess.Popen(  # noqa: S603 - our own program, and no word of it comes from outside
            [sys.executable, "-I", "-S", program, *dict.fromkeys(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=None if sys.platform == "win32" else {},
            start_new_session=True,
        )
        if self._within(_START_S, self._read) != b"":
            self.close()
            raise OurFault("the process for chat templates does not start")

    def render(self, request: Mapping[str, Any]) -> str:
        """What a template prints.

        Raises:
            BadTemplate: it does not compile, breaks a bound, or refuses the conversation.
            AskedWrong: the conversation is too large.
        """
        body = json.dumps(request).encode()
        if len(body) > REQUEST_BYTES:
            raise AskedWrong("the conversation has {found} bytes; templates take up to {most}", found=len(body), most=REQUEST_BYTES)
        with self._turn:
            return self._rendered(body)

    def _rendered(self, body: bytes) -> str:
        """What is printed for one request; only one at a time may be under way."""
        self.start()
        found = self._within(self._deadline_s, lambda: self._ask(body))
        if found is None:
            code = self.close(patience_s=0.05)
            if code == FORBIDDEN_EXIT:
                raise BadTemplate("the chat template tried to leave its sandbox", hint="do not trust this file")
            raise BadTemplate("the chat template did not finish within {most_s} s", hint="do not trust this file", most_s=self._deadline_s)
        said = json.loads(found)
        if "printed" not in said:
            raise BadTemplate("the chat template refuses the conversation or is broken: {why}", why=said.get("error", ""))
        return str(said["printed"])

    def close(self, *, patience_s: float = 0.0) -> int | None:
        """End the process; gives its exit status, its own if it ends by itself within the patience."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()  # type: ignore[union-attr]
            except OSError:  # what was still to be written has no reader
                continue
        return process.wait()

    def _within(self, seconds: float, step: Any) -> bytes | None:
        """The result of a step; None if the process ended or was killed at the deadline."""
        timer = Timer(seconds, self._process.kill)  # type: ignore[union-attr]
        timer.daemon = True
        timer.start()
        try:
            return step()  # type: ignore[no-any-return]
        except OSError:
            return None
        except BaseException:
            # Interrupted: the answer that may still come must not be taken for the next one.
            self.close()
            raise
        finally:
            timer.cancel()

    def _ask(self, body: bytes) -> bytes | None:
        """One request and its answer."""
        pipe = self._process.stdin  # type: ignore[union-attr]
        pipe.write(struct.pack(">I", len(body)) + body)  # type: ignore[union-attr]
        pipe.flush()  # type: ignore[union-attr]
        return self._read()

    def _read(self) -> bytes | None:
        """One answer; None if the process ended."""
        pipe = self._process.stdout  # type: ignore[union-attr]
        head = pipe.read(4)  # type: ignore[union-attr]
        if len(head) < 4:
            return None
        size = struct.unpack(">I", head)[0]
        body = pipe.read(size) if size <= REQUEST_BYTES else b""  # type: ignore[union-attr]
        return body if len(body) == size else None


def render_template(
    source: str,
    messages: Sequence[Message],
    *,
    trusted: bool,
    control_tokens: Iterable[str],
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Tool] = (),
    thinking: bool | None = None,
    today: date | None = None,
    continue_last: bool = False,
    options: Mapping[str, bool | int | str] | None = None,
    worker: TemplateWorker | None = None,
) -> Prompt:
    """A conversation as an embedded template prints it.

    Args:
        source: the template, in jinja.
        messages: at least one turn.
        trusted: the user said, for this file, that its template may run.
        control_tokens: every added token of the vocabulary; only where the template itself writes one does it become a `Control`.
        bos_token: what the template knows under this name; likewise `eos_token`.
        tools: functions that the model may call.
        thinking: given to templates that can switch thoughts on and off.
        today: what `strftime_now` tells; None leaves it undefined, so that templates write their own date.
        continue_last: the last turn is an assistant's, and the answer goes on where it ends.
        options: further variables, of those that published templates know.
        worker: a process to use again; None starts one for this rendering alone.
    Raises:
        NoTemplate: the template is not trusted.
        BadTemplate: it is too large, does not compile, breaks a bound or refuses the conversation.
        UnknownOption: an option that no published template knows.
        AskedWrong: the conversation cannot be meant.
    """
    if not trusted:
        raise NoTemplate(
            "this model came with a chat template that khola does not know, and it was not run",
            hint="read it with `khola show --template`; if you trust whoever packed the file, allow it with --trust-template",
        )
    found = len(source.encode("utf-8", "surrogatepass"))
    if found > SOURCE_BYTES:
        raise BadTemplate("the chat template has {found} bytes; at most {most} are run", found=found, most=SOURCE_BYTES)
    check_turns(Asked(messages, continue_last=continue_last))
    guard = protection(frozenset(control_tokens))
    values: dict[str, Any] = {**_options(options), "bos_token": bos_token, "eos_token": eos_token}
    if thinking is not None:
        values |= {"enable_thinking": thinking, "thinking": thinking}
    last = len(messages) - 1
    none_for_calls = "is none" in source
    values["messages"] = [
        _message(message, guard, goes_on=continue_last and index == last, none_for_calls=none_for_calls)
        for index, message in enumerate(messages)
    ]
    values["tools"] = [_tool(tool, guard) for tool in tools] or None
    values["add_generation_prompt"] = not continue_last
    request = {"source": source, "values": plain_json(values), "today": today.isoformat() if today else ""}
    if worker is not None:
        printed = worker.render(request)
    else:
        with TemplateWorker() as once:
            printed = once.render(request)
    if continue_last:
        printed = _cut(printed)
    parts = guard.parts(printed)
    return Prompt(parts=parts, thinking_open=_ends_in_thought(parts), tool_names=tuple(tool.name for tool in tools))


def plain_json(value: Any) -> Any:
    """The same value if it is plain JSON: exactly None, bool, int, float, str, list and dict with str keys.

    Raises:
        AskedWrong: something else is in it; a template must not meet objects that have methods of their own.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [plain_json(item) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: plain_json(item) for key, item in value.items()}
    raise AskedWrong("a value of type {kind} cannot be given to a chat template; plain JSON can", kind=type(value).__name__)


def _options(options: Mapping[str, bool | int | str] | None) -> dict[str, Any]:
    """Options that published templates know."""
    for name, value in (options or {}).items():
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise UnknownOption("chat templates take no option {name!r}", hint="known options: {known}", name=name, known=known)
        if type(value) not in (bool, int, str):
            raise AskedWrong(
                "the template option {name} is {kind}; expected a truth value, a number or a text", name=name, kind=type(value).__name__
            )
    return dict(options or {})


def _message(message: Message, guard: Protection, *, goes_on: bool, none_for_calls: bool) -> dict[str, Any]:
    """A message as templates know it."""
    plain_json([message.content, message.thinking, message.name, message.tool_call_id])
    assistant = message.role == "assistant"
    content: str | None = guard.shield(message.content, spare=(START, END) if assistant else (), joins=True)
    if goes_on:
        content = (content or "").rstrip() + LAST
    if message.tool_calls and not content and none_for_calls:
        content = None
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.thinking:
        made["reasoning_content"] = guard.shield(message.thinking)
    if message.tool_calls:
        made["tool_calls"] = [_call(call, guard) for call in message.tool_calls]
    for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value:
            made[key] = guard.shield(value)
    return made


def _call(call: ToolCall, guard: Protection) -> dict[str, Any]:
    """A call as templates know it."""
    function = {"name": guard.shield(call.name), "arguments": guard.shield(plain_json(call.arguments))}
    return {"id": guard.shield(call.id), "type": "function", "function": function}


def _tool(tool: Tool, guard: Protection) -> dict[str, Any]:
    """A tool as templates know it."""
    about = {"name": tool.name, "description": tool.description, "parameters": plain_json(tool.parameters)}
    return {"type": "function", "function": guard.shield(plain_json(about))}


def _cut(printed: str) -> str:
    """What was printed up to the end of the last turn's text."""
    if printed.count(LAST) != 1:
        raise BadTemplate("the chat template does not print the last turn once, so it cannot be continued")
    return printed[: printed.index(LAST)]


def _ends_in_thought(parts: Sequence[Part]) -> bool:
    """Whether a prompt ends behind the mark that opens a thought."""
    text = "".join(part if isinstance(part, str) else part.token for part in parts[-2:])
    return text.rstrip().endswith(START)
