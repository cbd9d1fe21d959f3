"""Tools and calls of every lab: what is offered, what comes back out of a stream however it is cut, and what can be required."""

from __future__ import annotations

import json
import time
from itertools import combinations

import msgspec
import pytest
from chat_conversations import CLOCK, WEATHER, assistant, system, tool, user
from chat_lab import HERE
from test_chat_formats import CALL_TOOLS, HYBRID

from khola.chat.formats import Parsed, format_named
from khola.chat.message import Asked, Message, Prompt, Tool, ToolCall

THOUGHT = "ভাবি: 🤔\n\nwhat now?"
NESTED = ToolCall(name="weather", arguments={"place": 'ঢাকা 🌧 "a" </tool_call> ``` }\n', "days": 2})
CODE = ToolCall(
    name="run", arguments={"code": "if a < b:\n    print('<x>')\n\n", "deep": {"ক": [1, None, {"x": True}]}, "times": 3, "dry": False}
)
RUN = Tool(
    name="run",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string"}, "deep": {"type": "object"}, "times": {"type": "integer"}, "dry": {"type": "boolean"}},
    },
)
OFFERED = (WEATHER, CLOCK, RUN)
SAYS_NOTHING = ("glm4", "glm4_0414", "glm_z1", "llama3_1", "llama3_2")
"""Where a call is the whole answer."""


def read(name: str, prompt: Prompt, pieces: list[str]) -> Parsed:
    """An answer in pieces, joined after parsing."""
    parser = format_named(name).parser(prompt)
    found = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return Parsed(
        text="".join(one.text for one in found),
        thinking="".join(one.thinking for one in found),
        tool_calls=tuple(call for one in found for call in one.tool_calls),
    )


def without_ids(parsed: Parsed) -> Parsed:
    """The same calls as a caller knows them."""
    calls = tuple(ToolCall(name=call.name, arguments=call.arguments) for call in parsed.tool_calls)
    return Parsed(text=parsed.text, thinking=parsed.thinking, tool_calls=calls)


def shared(one: str, other: str) -> int:
    """How many letters two texts begin with together."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def answer_of(name: str, message: Message) -> tuple[Prompt, str]:
    """A prompt, and the answer to it that the format writes into a history."""
    form = format_named(name)
    asked = form.render(Asked([user("a")], tools=OFFERED))
    before = (
        form.render(Asked([user("a")], thinking=True if name in HYBRID else None)).text().removesuffix("<think>\n").removesuffix("<think>")
    )
    after = form.render(Asked([user("a"), message, tool("1")])).text()
    answer = after[shared(before, after) :]
    ends = [answer.find(stop) for stop in form.STOPS if stop in answer]
    answer = answer[: min(ends)] if ends else answer
    if asked.thinking_open and THOUGHT not in answer:
        answer = f"{THOUGHT}\n</think>\n\n{answer}"
    return asked, answer


@pytest.mark.parametrize("name", CALL_TOOLS)
def test_what_a_format_writes_it_reads_back_however_it_is_cut(name: str) -> None:
    text = "" if name in SAYS_NOTHING else "দেখি। 👀"
    calls = (NESTED,) if name in SAYS_NOTHING else (NESTED, CODE)
    prompt, answer = answer_of(name, Message(role="assistant", thinking=THOUGHT, content=text, tool_calls=calls))
    expected = Parsed(text=text, thinking=THOUGHT if THOUGHT in answer else "", tool_calls=calls)
    assert bool(expected.thinking) == (prompt.thinking_open or name in ("qwen3", *HYBRID))
    assert without_ids(read(name, prompt, [answer])) == expected
    assert without_ids(read(name, prompt, list(answer))) == expected
    for cut in range(len(answer) + 1):
        assert without_ids(read(name, prompt, [answer[:cut], answer[cut:]])) == expected, answer[:cut]
    for one, two in list(combinations(range(len(answer) + 1), 2))[:: len(answer) * 2]:
        assert without_ids(read(name, prompt, [answer[:one], answer[one:two], answer[two:]])) == expected


DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
PLACE = "<parameter=place>\n2\n</parameter>\n"
CLOCK_CALL = ToolCall(name="clock", arguments={})
TABLE: dict[tuple[str, str], tuple[str, tuple[ToolCall, ...]]] = {
    ("deepseek_v3", DEEPSEEK.format("function<｜tool▁sep｜>clock\n```json\n{}\n```")): ("", (CLOCK_CALL,)),
    ("deepseek_v3", "So.\n\n" + DEEPSEEK.format("function<｜tool▁sep｜>clock\n```\n{}\n```\n") + "\n"): ("So.", (CLOCK_CALL,)),
    ("deepseek_v3", DEEPSEEK.format("function<｜tool▁sep｜>clock\n{}")): (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n{}<｜tool▁call▁end｜>", (),
    ),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```"): ("", (CLOCK_CALL,)),
    ("deepseek_v3_1", DEEPSEEK.format("clock<｜tool▁sep｜>{}")): ("", (CLOCK_CALL,)),
    ("deepseek_v3_1", DEEPSEEK.format("clock<｜tool▁sep｜>[]")): ("<｜tool▁call▁begin｜>clock<｜tool▁sep｜>[]<｜tool▁call▁end｜>", ()),
    ("deepseek_v3_1", "a <｜tool▁cal"): ("a <｜tool▁cal", ()),
    ("deepseek_r1_0528", "<think>\nx\n</think>\n\n" + DEEPSEEK.format("function<｜tool▁sep｜>clock\n```json\n{}\n```")): (
        "", (CLOCK_CALL,),
    ),
    ("kimi_k2", KIMI.format("functions.clock:7<|tool_call_argument_begin|>{}")): (
        "", (ToolCall(name="clock", arguments={}, id="functions.clock:7"),),
    ),
    ("kimi_k2", KIMI.format("clock<|tool_call_argument_begin|> {} ")): ("", (ToolCall(name="clock", arguments={}, id="clock"),)),
    ("kimi_k2", KIMI.format("functions.clock:0{}")): ("<|tool_call_begin|>functions.clock:0{}<|tool_call_end|>", ()),
    ("minimax", "```typescript\nfunctions.clock({})\n```"): ("", (CLOCK_CALL,)),
    ("minimax", "<function_call>```typescript\nfunctions.clock({})\nfunctions.clock({})\n```\n"): ("", (CLOCK_CALL, CLOCK_CALL)),
    ("minimax", "Use\n```typescript\nlet a = 1\n```\n"): ("Use```typescript\nlet a = 1\n```\n", ()),
    ("qwen3_coder", "<tool_call>\n<function=clock>\n</function>\n</tool_call>"): ("", (CLOCK_CALL,)),
    ("qwen3_coder", f"Now.\n<tool_call>\n<function=weather>\n{PLACE}<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"): (
        "Now.", (ToolCall(name="weather", arguments={"place": "2", "days": 2}),),
    ),
    ("qwen3_coder", "<tool_call>\n<function=weather>\n<parameter=days>\nsoon\n</parameter>\n</function>\n</tool_call>"): (
        "", (ToolCall(name="weather", arguments={"days": "soon"}),),
    ),
    ("qwen3_coder", "<tool_call>\n<function=clock>\nwhat?\n</function>\n</tool_call>"): (
        "<tool_call>\n<function=clock>\nwhat?\n</function>\n</tool_call>", (),
    ),
    ("ernie4_5_thinking", "x\n</think>\n\n<response>\nঢাকা 🌧\n</response>\n"): ("ঢাকা 🌧", ()),
    ("ernie4_5_thinking", 'x\n</think>\n\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\n'): ("", (CLOCK_CALL,)),
    ("glm_z1", "x\n</think>\n\nclock\n{}"): ("", (CLOCK_CALL,)),
    ("glm_z1", "x\n</think>\n\nclock is a word"): ("clock is a word", ()),
}  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), TABLE)
def test_calls_and_what_only_looks_like_one(name: str, answer: str) -> None:
    text, calls = TABLE[name, answer]
    prompt = format_named(name).render(Asked([user("a")], tools=OFFERED))
    whole = read(name, prompt, [answer])
    assert (whole.text, whole.tool_calls) == (text, calls)
    for cut in range(len(answer) + 1):
        assert read(name, prompt, [answer[:cut], answer[cut:]]) == whole, answer[:cut]


def test_answers_in_marks_lose_them_without_tools_too() -> None:
    prompt = format_named("ernie4_5_thinking").render(Asked([user("a")]))
    answer = 'x\n</think>\n\n<response>\n<tool_call>{"name": "clock"}</tool_call>\n</response>\n'
    for cut in range(len(answer) + 1):
        assert read("ernie4_5_thinking", prompt, [answer[:cut], answer[cut:]]) == Parsed(
            text='<tool_call>{"name": "clock"}</tool_call>', thinking="x"
        )


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v3_1", "kimi_k2", "minimax", "qwen3_coder"])
def test_a_flood_is_read_in_linear_time(name: str) -> None:
    prompt = format_named(name).render(Asked([user("a")], tools=OFFERED))
    grammar = answer_of(name, Message(role="assistant", tool_calls=(CLOCK_CALL,)))[1]
    begun = grammar[: grammar.index("clock")]
    for flood in (" ", "\n", "<", "</parameter>", "<parameter=a>", "{", '"', "functions.", "\n```"):
        answer = begun + "clock" + flood * (60_000 // len(flood))
        began = time.process_time()
        found = read(name, prompt, [answer[at : at + 500] for at in range(0, len(answer), 500)])
        assert time.process_time() - began < 1.0, flood
        assert not found.tool_calls or name == "kimi_k2"


# Tools that no template prints, in the words of the labs' cards and libraries.


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_r1_0528", "deepseek_v3_1", "ernie4_5_thinking"])
def test_tools_are_offered_in_the_words_of_the_labs(name: str) -> None:
    recorded = json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    for one in recorded["printed"].values():
        messages, tools = msgspec.convert((one["messages"], one["tools"]), tuple[list[Message], list[Tool]])
        assert format_named(name).render(Asked(messages, tools=tools)).text() == one["prompt"]
    prompt = format_named(name).render(Asked([system("s"), user("a")], tools=OFFERED))
    bare = format_named(name).render(Asked([system("s"), user("a")]))
    same = shared(prompt.text(), bare.text())
    assert all(offered.name in prompt.text()[same:] for offered in OFFERED)
    assert prompt.text().endswith(bare.text()[same:])


def test_ids_of_kimi_count_the_calls_of_the_conversation() -> None:
    form = format_named("kimi_k2")
    turns = [user("a"), assistant("", CLOCK_CALL, CLOCK_CALL), tool("1"), tool("2"), assistant("", CLOCK_CALL), tool("3")]
    prompt = form.render(Asked(turns, tools=OFFERED))
    for number in range(3):
        assert prompt.text().count(f"functions.clock:{number}") == 2
    found = form.parser(prompt).call_form
    assert found is not None and found.between[0] == ":3"
