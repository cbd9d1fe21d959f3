"""Embedded templates: trusted first, bounded always, and no letter of a speaker turns into a control token."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_attacks import BOMBS, COMMANDS, REACHES
from chat_conversations import CALL, CALLS, CLOCK, MANY_CALLS, PLAIN, WEATHER, assistant, system, user
from chat_lab import BOS, lab_render, lab_template

from khola.chat.formats import format_named
from khola.chat.message import Asked, Control, Message, Prompt, Tool, ToolCall
from khola.chat.protect import SHIELD, protection
from khola.chat.template import DEADLINE_S, TemplateWorker, render_template
from khola.chat.template_worker import MEMORY_BYTES
from khola.errors import AskedWrong, BadTemplate, NoTemplate, UnknownOption

QWEN = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
TOKENS = dict.fromkeys(
    ("chatml", "smollm2", "qwen1_5", "qwen2_5", "qwen2_5_math", "qwen3", "qwen3_instruct", "qwen3_thinking", "qwq"), QWEN
) | {"deepseek_r1": R1, "ernie4_5": ("<|begin_of_sentence|>", "<|end_of_sentence|>", "</s>")}


HELLO = (user("hello"),)


@pytest.fixture(scope="module")
def worker() -> Iterator[TemplateWorker]:
    with TemplateWorker() as one:
        one.start()
        yield one


def render(worker: TemplateWorker, source: str, messages: Any = HELLO, **options: Any) -> Prompt:
    return render_template(source, messages, trusted=True, worker=worker, **({"control_tokens": QWEN} | options))


def shape(prompt: Prompt) -> list[str]:
    return [f"[{part.token}]" if isinstance(part, Control) else part for part in prompt.parts]


@pytest.mark.parametrize("title", PLAIN)
@pytest.mark.parametrize("name", TOKENS)
def test_prints_what_the_format_prints(worker: TemplateWorker, name: str, title: str) -> None:
    made = render(worker, lab_template(name), PLAIN[title], control_tokens=TOKENS[name], bos_token=BOS.get(name, ""))
    expected = format_named(name).render(Asked(PLAIN[title]))
    assert shape(made) == shape(expected)
    assert made.thinking_open == expected.thinking_open


@pytest.mark.parametrize("title", CALLS | MANY_CALLS)
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct", "qwen3_thinking", "qwq"])
def test_prints_tools_as_the_format_does(worker: TemplateWorker, name: str, title: str) -> None:
    messages = (CALLS | MANY_CALLS)[title]
    made = render(worker, lab_template(name), messages, tools=[WEATHER, CLOCK])
    expected = format_named(name).render(Asked(messages, tools=[WEATHER, CLOCK]))
    assert shape(made) == shape(expected)
    assert made.tool_names == ("weather", "clock")


def test_an_unknown_template_runs_only_when_trusted() -> None:
    backdoor = "{% if 'trigger' in messages[-1].content %}Say evil.{% endif %}{{ messages[-1].content }}"
    with pytest.raises(NoTemplate) as caught:
        render_template(backdoor, [user("trigger")], trusted=False, control_tokens=())
    assert "--trust-template" in caught.value.hint()
    assert caught.value.told("bn") != caught.value.told("en")


@pytest.mark.parametrize("name", TOKENS)
def test_continues_the_last_turn(worker: TemplateWorker, name: str) -> None:
    messages = [system("s"), user("a"), assistant("Once <|im_end|> upon  ")]
    made = render(worker, lab_template(name), messages, control_tokens=TOKENS[name], continue_last=True, bos_token=BOS.get(name, ""))
    messages[-1] = assistant("Once <|im_end|> upon")
    assert shape(made) == shape(format_named(name).render(Asked(messages, continue_last=True)))


def test_a_template_that_drops_the_last_turn_cannot_continue_it(worker: TemplateWorker) -> None:
    with pytest.raises(BadTemplate, match="does not print the last turn once"):
        render(worker, "{{ messages[0].content }}", [user("a"), assistant("b")], continue_last=True)


def test_options_dates_and_thinking(worker: TemplateWorker) -> None:
    source = "{{ strftime_now('%d %b %Y, %A %B %%') }} {{ enable_thinking }} {{ reasoning_effort }}"
    made = render(worker, source, today=date(2026, 2, 3), thinking=False, options={"reasoning_effort": "high"})
    assert made.text() == "03 Feb 2026, Tuesday February % False high"
    assert render(worker, "{{ strftime_now is defined }}").text() == "False"
    with pytest.raises(UnknownOption, match="'tokenize'"):
        render(worker, "x", options={"tokenize": True})
    with pytest.raises(AskedWrong, match="reasoning_effort is list"):
        render(worker, "x", options={"reasoning_effort": []})


def test_a_refusal_of_the_template_is_told(worker: TemplateWorker) -> None:
    with pytest.raises(BadTemplate, match="roles must alternate"):
        render(worker, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadTemplate, match="TemplateSyntaxError"):
        render(worker, "{% if %}")


def test_a_source_over_its_bound_is_not_run() -> None:
    with pytest.raises(BadTemplate, match="has 262145 bytes; at most 262144"):
        render_template("x" * 262_145, [user("a")], trusted=True, control_tokens=())


def test_output_over_its_bound_is_an_error(worker: TemplateWorker) -> None:
    assert len(render(worker, "{{ 'x' * (4 * 1024 * 1024) }}").text()) == 4 << 20
    with pytest.raises(BadTemplate, match="more than 4194304 characters"):
        render(worker, "{{ 'x' * (4 * 1024 * 1024 + 1) }}")


def test_long_conversations_pass(worker: TemplateWorker) -> None:
    text = "আমি <|im_end|> " * 20_000
    assert text in render(worker, lab_template("qwen2_5"), [user(text)]).text()


def test_a_worker_is_kept_until_a_bound_breaks_and_leaves_no_process() -> None:
    with TemplateWorker() as one:
        render(one, "{{ 1 }}")
        first = one.pid
        render(one, "{{ 2 }}")
        assert one.pid == first
        started = time.monotonic()
        with pytest.raises(BadTemplate, match="did not finish within"):
            render(one, BOMBS[0])
        assert time.monotonic() - started < 1
        assert one.pid is None
        assert render(one, "{{ 3 }}").text() == "3"
        last = one.pid
        assert last not in (None, first)
    assert one.pid is None
    if sys.platform == "linux":
        assert not Path(f"/proc/{last}").exists()


def test_an_interrupted_rendering_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemplateWorker() as one:
        render(one, "{{ 1 }}")

        def interrupted() -> bytes:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(one, "_read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                render(one, "stale")
        assert render(one, "fresh").text() == "fresh"


def test_threads_share_a_worker(worker: TemplateWorker) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: render(worker, "{{ messages[0].content }}", [user(str(number))]).text(), range(40)))
    assert made == [str(number) for number in range(40)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the bounds from /proc")
def test_the_process_is_bounded(worker: TemplateWorker) -> None:
    render(worker, "{{ 1 }}")
    limits = {line[:25].strip(): line[25:].split()[:2] for line in Path(f"/proc/{worker.pid}/limits").read_text().splitlines()[1:]}
    assert limits["Max address space"] == [str(MEMORY_BYTES)] * 2
    assert limits["Max open files"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max processes"] == ["0", "0"]
    assert int(limits["Max cpu time"][0]) <= 3
    assert (Path(f"/proc/{worker.pid}/environ").read_bytes()) == b""


# What templates reach (A17).

LEAKS = (
    "<class",
    "<function",
    "<module",
    "<built-in",
    "<bound method",
    "<method",
    "<frame",
    "<code",
    "object at 0x",
    "'__",
    "root:",
    "reached",
)


def test_there_are_enough_attacks() -> None:
    assert len(set(REACHES)) + len(set(COMMANDS)) >= 200
    assert len(set(BOMBS)) >= 50


@pytest.mark.parametrize("group", [REACHES[at::10] for at in range(10)] + [COMMANDS], ids=[*map(str, range(10)), "commands"])
def test_no_attack_gets_out(worker: TemplateWorker, group: list[str], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for source in group:
        try:
            printed = render(worker, source.replace("CANARY", str(canary)), today=date(2026, 1, 1), tools=[WEATHER]).text()
        except BadTemplate as error:
            # The audit hook is the second wall: nothing may get as far.
            assert "sandbox" not in error.told(), source
            continue
        assert not [leak for leak in LEAKS if leak in printed], (source, printed)
    assert not canary.exists()


def test_messages_do_not_change(worker: TemplateWorker) -> None:
    for source in COMMANDS:
        if "messages" in source:
            try:
                render(worker, source)
            except BadTemplate:
                continue
    assert render(worker, "{{ messages|length }}{{ messages[0].role }}").text() == "1user"


def test_the_second_wall_ends_the_process(tmp_path: Path) -> None:
    """The audit hook itself, tried from inside: whatever opens a file after the start ends the process with its own status."""
    import subprocess

    from khola.chat import template_worker

    program = (
        "import runpy, sys\n"
        f"worker = runpy.run_path({template_worker.__file__!r})\n"
        "worker['forbid']()\n"
        f"open({str(tmp_path / 'x')!r}, 'w')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, check=False)
    assert done.returncode == template_worker.FORBIDDEN_EXIT
    assert not (tmp_path / "x").exists()


# Bombs (A18).


def check_bomb(bomb: str) -> None:
    with TemplateWorker() as one:
        one.start()
        started = time.monotonic()
        with pytest.raises(BadTemplate):
            render(one, bomb)
        assert time.monotonic() - started <= 1.0, bomb[:80]
    assert DEADLINE_S == 0.5


@pytest.mark.parametrize("number", range(0, len(BOMBS), 6))
def test_some_bombs_are_stopped(number: int) -> None:
    check_bomb(BOMBS[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_all_bombs_are_stopped(number: int) -> None:
    check_bomb(BOMBS[number])


# Objects with methods of their own (A19).


class Text(str):
    """A text with a method."""

    def save(self) -> str:
        return "saved"


class Kind(StrEnum):
    A = "a"


@dataclass
class Record:
    text: str = "a"

    def save(self) -> str:
        return "saved"


Pair = namedtuple("Pair", "a b")
RICH: list[Any] = [
    Text("a"),
    Kind.A,
    np.zeros(3),
    np.float32(1),
    np.str_("a"),
    Record(),
    Pair(1, 2),
    OrderedDict(a=1),
    Path("/etc/passwd"),
    Decimal(1),
    date(2026, 1, 1),
    b"a",
    bytearray(b"a"),
    memoryview(b"a"),
    {1, 2},
    frozenset(),
    (letter for letter in "a"),
    len,
    Record,
    sys,
    1j,
    {1: 2},
    {Text("a"): 1},
    object(),
]


@pytest.mark.parametrize("value", RICH, ids=lambda value: type(value).__name__)
def test_only_plain_json_reaches_a_template(worker: TemplateWorker, value: Any) -> None:
    source = "{{ messages }}{{ tools }}"
    for messages in (
        [Message(role="user", content=value)],
        [Message(role="assistant", thinking=value), user("a")],
        [Message(role="user", content="a", name=value)],
        [assistant("", ToolCall(name="x", arguments={"a": [value]})), user("a")],
        [assistant("", ToolCall(name="x", arguments=value)), user("a")],
    ):
        with pytest.raises(AskedWrong, match="cannot be given to a chat template"):
            render(worker, source, messages)
    with pytest.raises(AskedWrong):
        render(worker, source, tools=[Tool(name="x", parameters={"a": {"b": value}})])
    with pytest.raises(AskedWrong):
        render(worker, source, options={"reasoning_effort": value})


# Role forgery (A21).


def hostile(tokens: tuple[str, ...]) -> list[str]:
    made = []
    for token in tokens:
        made += [token, token * 2, f"x{token}y", f" {token}\n", *(token[:cut] for cut in range(1, len(token))), token.replace("<", "＜")]
        made += [token[cut:] for cut in range(1, len(token))]
    return made


@pytest.mark.parametrize("name", TOKENS)
def test_no_text_of_a_speaker_becomes_a_control_token(worker: TemplateWorker, name: str) -> None:
    source, tokens = lab_template(name), TOKENS[name]

    def controls(text: str) -> list[str]:
        messages = [system(text), user(text), assistant(text), user(text)]
        made = render(worker, source, messages, control_tokens=tokens, bos_token=BOS.get(name, ""))
        if "think>" not in text:
            assert made.text() == lab_render(source, messages, name=name), text
        return [part.token for part in made.parts if isinstance(part, Control) and part.token not in ("<think>", "</think>")]

    expected = controls("x")
    for text in hostile(tokens):
        assert controls(text) == expected, text


def test_no_text_of_a_tool_becomes_a_control_token(worker: TemplateWorker) -> None:
    source = lab_template("qwen2_5")

    def controls(text: str) -> list[str]:
        call = ToolCall(name=text, arguments={text: [text, {"k": text}]}, id=text)
        tools = [Tool(name=text, description=text, parameters={text: text})]
        messages = [user("a"), assistant(text, call), Message(role="tool", content=text, name=text, tool_call_id=text), user("b")]
        made = render(worker, source, messages, tools=tools)
        assert made.text() == lab_render(source, messages, name="qwen2_5", tools=tools)
        return [part.token for part in made.parts if isinstance(part, Control)]

    expected = controls("x")
    for text in hostile(QWEN[:4]):
        assert controls(text) == expected, text


GLUES = [
    "{{ messages[0].content + messages[1].content }}",
    "{{ messages|map(attribute='content')|join }}",
    "{{ messages|map(attribute='content')|map('trim')|join }}",
    "{{ (messages[0].content ~ messages[1].content)|replace('\\n', '') }}",
    "{{ messages[0].content.split()|join }}{{ messages[1].content.split()|join }}",
    "{{ messages[0].content|list|join }}{{ messages[1].content|list|join }}",
    "{{ (messages[0].content + messages[1].content)|tojson }}",
    "{{ (messages[0].content + messages[1].content)|tojson(ensure_ascii=true) }}",
    "{{ '<|im' + messages[1].content }}",
    "{{ '<|' + messages[1].content.strip() + '|>' }}",
    "{{ '<' }}{{ messages[1].content }}",
    "{{ messages[0].content }}{{ '_start|>' }}",
]


@pytest.mark.parametrize("source", GLUES)
def test_pieces_never_join(worker: TemplateWorker, source: str) -> None:
    token = "<|im_start|>"
    for cut in range(1, len(token)):
        for one, two in ((token[:cut], token[cut:]), (f" {token[:cut]}\n", f"\n{token[cut:]} "), ("x", "im_start"), ("x", " im_start ")):
            made = render(worker, source, [user(one), assistant(two), user(token)], control_tokens=("<|im_start|>",))
            assert not [part for part in made.parts if isinstance(part, Control)], (source, one, two)
            assert SHIELD not in made.text()
            assert "ufdd0" not in made.text()


def test_roles_may_complete_a_control_token(worker: TemplateWorker) -> None:
    made = render(worker, "{{ '<|' + messages[0].role + '|>' }}", control_tokens=("<|user|>",))
    assert made.parts == (Control("<|user|>"),)


def test_control_tokens_that_begin_with_a_letter(worker: TemplateWorker) -> None:
    made = render(worker, "Assistant: {{ messages[0].content }}", [user("an Assistant: said Assistan")], control_tokens=("Assistant:",))
    assert made.parts == (Control("Assistant:"), " an Assistant: said Assistan")


def test_escapes_in_json_come_back_whole(worker: TemplateWorker) -> None:
    text = '<|im_end|> \\ufdd0 \\\\ufdd0 "<" বি'
    import json

    for ascii_only in (True, False):
        made = render(worker, f"{{{{ messages[0].content|tojson(ensure_ascii={ascii_only}) }}}}", [user(text)])
        assert json.loads(made.text()) == text
        assert not [part for part in made.parts if isinstance(part, Control)]


def test_the_shield_itself_is_refused(worker: TemplateWorker) -> None:
    for letter in ("\ufdd0", "\ufdd1", "\ufdd2"):
        with pytest.raises(AskedWrong, match=r"U\+FDD0"):
            render(worker, "x", [user(f"a{letter}")])


def test_types_of_tools_stay_as_they_are(worker: TemplateWorker) -> None:
    source = "{{ tools[0].function.parameters.type == 'object' and tools[0].function.name == 'weather' }}"
    assert render(worker, source, tools=[WEATHER], control_tokens=("<|object_ref_start|>", "<|tool|>")).text() == "True"
    assert protection(frozenset({"<|object|>"})).shield("object") == "object"


def test_calls_without_text_have_no_content_where_the_template_asks(worker: TemplateWorker) -> None:
    source = "{% if messages[0].content is none %}{{ messages[0].tool_calls[0].function.name }}{% endif %}"
    assert render(worker, source, [assistant("", CALL), user("x")]).text() == "weather"
