"""Answers come apart the same way wherever the stream is cut."""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
from chat_conversations import CLOCK, WEATHER, assistant, tool, user
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat_formats import ALWAYS_THINK, MAY_THINK

from khola.chat.formats import NAMES, Parsed, format_named
from khola.chat.message import Asked, Control, Prompt, ToolCall
from khola.chat.parsing import template_parser

TOOLS = ("weather", "clock")
THINK = ("qwen3_thinking", "qwq", "deepseek_r1")
DHAKA = ToolCall(name="weather", arguments={"place": "ঢাকা"})
DHAKA_JSON = '{"name": "weather", "arguments": {"place": "ঢাকা"}}'
CLOCK_CALL = ToolCall(name="clock", arguments={})


def read(name: str, pieces: list[str], *, opened: bool | None = None, tools: tuple[str, ...] = ()) -> Parsed:
    """An answer in pieces, joined after parsing."""
    opened = name in THINK if opened is None else opened
    parser = format_named(name).parser(Prompt(parts=(), thinking_open=opened, tool_names=tools))
    found = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return Parsed(
        text="".join(one.text for one in found),
        thinking="".join(one.thinking for one in found),
        tool_calls=tuple(call for one in found for call in one.tool_calls),
    )


def check(name: str, answer: str, expected: Parsed, *, opened: bool | None = None, tools: tuple[str, ...] = ()) -> None:
    """Whole, letter by letter, and cut at every position and at pairs of positions."""
    assert read(name, [answer], opened=opened, tools=tools) == expected
    assert read(name, list(answer), opened=opened, tools=tools) == expected
    for cut in range(len(answer) + 1):
        assert read(name, [answer[:cut], answer[cut:]], opened=opened, tools=tools) == expected, answer[:cut]
    for one, two in list(combinations(range(len(answer) + 1), 2))[:: max(1, len(answer) // 8)]:
        assert read(name, [answer[:one], answer[one:two], answer[two:]], opened=opened, tools=tools) == expected


OPEN_THOUGHTS = {
    "hmm\n</think>\n\nParis": ("hmm", "Paris"),
    "<think>\nhmm\n</think>\n\nParis": ("hmm", "Paris"),
    "\n<think>\n\na\n\nb\n\n</think>Paris\n": ("a\n\nb", "Paris\n"),
    "</think>\n\nParis": ("", "Paris"),
    "\n\n</think>\n\nParis": ("", "Paris"),
    "<think></think>x": ("", "x"),
    "never closed": ("never closed", ""),
    "never closed\n</thin": ("never closed\n</thin", ""),
    "a < b </ c </thinker> d</think>e": ("a < b </ c </thinker> d", "e"),
    "a</think>```\n<think>code</think>\n``` </think> end": ("a", "```\n<think>code</think>\n``` </think> end"),
    "<think>a<think>b</think>c": ("a<think>b", "c"),
    "  spaced </think>  x": ("  spaced ", "  x"),
    "চিন্তা</think>\nউত্তর 👩‍👩‍👧": ("চিন্তা", "উত্তর 👩‍👩‍👧"),
    "": ("", ""),
    "<thi": ("<thi", ""),
    "\n\n": ("", ""),
}


@pytest.mark.parametrize("name", THINK)
@pytest.mark.parametrize("answer", OPEN_THOUGHTS)
def test_thoughts_of_a_prompt_that_opened_one(name: str, answer: str) -> None:
    thinking, text = OPEN_THOUGHTS[answer]
    check(name, answer, Parsed(text=text, thinking=thinking))


CLOSED_THOUGHTS = {
    "<think>\na\n</think>\n\nb": ("a", "b"),
    "\n <think>a</think>b": ("a", "b"),
    "plain <think>a</think>": ("", "plain <think>a</think>"),
    " <thin air": ("", " <thin air"),
    "<th": ("", "<th"),
    "<thank you": ("", "<thank you"),
    "": ("", ""),
}


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
@pytest.mark.parametrize("answer", CLOSED_THOUGHTS)
def test_thoughts_only_where_the_answer_begins_with_one(answer: str, name: str) -> None:
    thinking, text = CLOSED_THOUGHTS[answer]
    check(name, answer, Parsed(text=text, thinking=thinking), opened=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*ALWAYS_THINK, *MAY_THINK)])
def test_models_without_thoughts_may_write_the_marks(name: str) -> None:
    check(name, "<think>a</think>\n{b}", Parsed(text="<think>a</think>\n{b}"))


MARKED = {
    f"<tool_call>\n{DHAKA_JSON}\n</tool_call>": ("", (DHAKA,)),
    f"Sure.\n\n<tool_call>\n{DHAKA_JSON}\n</tool_call>": ("Sure.", (DHAKA,)),
    f'<tool_call>{DHAKA_JSON}</tool_call>\n<tool_call>\n{{"name": "clock"}}\n</tool_call>\n': ("", (DHAKA, CLOCK_CALL)),
    f"a\n<tool_call>\n{DHAKA_JSON}\n</tool_call>\nb\n": ("ab\n", (DHAKA,)),
    f"<tool_call>\n{DHAKA_JSON}": ("", (DHAKA,)),
    "<tool_call>\n{not json}\n</tool_call> x": ("<tool_call>\n{not json}\n</tool_call> x", ()),
    "<tool_call>\n[1]\n</tool_call>": ("<tool_call>\n[1]\n</tool_call>", ()),
    '<tool_call>{"name": "weather", "arguments": "{\\"place\\": \\"ঢাকা\\"}"}</tool_call>': ("", (DHAKA,)),
    '<tool_call>{"name": "weather", "arguments": {"place": "</tool_call>"}}</tool_call>': (
        "",
        (ToolCall(name="weather", arguments={"place": "</tool_call>"}),),
    ),
    "one < two <tool two\n\n": ("one < two <tool two\n\n", ()),
    "<tool_call>": ("<tool_call>", ()),
    '<tool_call>{"name": "w': ('<tool_call>{"name": "w', ()),
    "ends\n\n<tool_ca": ("ends\n\n<tool_ca", ()),
    "": ("", ()),
}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen2_5_math", "qwen3", "qwen3_instruct"])
@pytest.mark.parametrize("answer", MARKED)
def test_calls_between_marks(name: str, answer: str) -> None:
    text, calls = MARKED[answer]
    check(name, answer, Parsed(text=text, tool_calls=calls), tools=TOOLS)


NAMED = {
    'weather\n{"place": "ঢাকা"}': ("", (DHAKA,)),
    ' weather \n\n {"place": "ঢাকা"}\n': ("", (DHAKA,)),
    "clock\n{}": ("", (CLOCK_CALL,)),
    "\nSunny.": ("Sunny.", ()),
    "\n\nSunny.\n": ("\nSunny.\n", ()),
    "Sunny.": ("Sunny.", ()),
    "weather\nis fine": ("weather\nis fine", ()),
    "weather": ("weather", ()),
    "weather\n{broken": ("weather\n{broken", ()),
    "weather\n[1]": ("weather\n[1]", ()),
    'weather\n{"a": 1} and more': ('weather\n{"a": 1} and more', ()),
    'forecast\n{"place": "ঢাকা"}': ('forecast\n{"place": "ঢাকা"}', ()),
    '\nweather\n{"place": "ঢাকা"}': ('weather\n{"place": "ঢাকা"}', ()),
    "\n": ("", ()),
    "": ("", ()),
    "ক\n{}": ("ক\n{}", ()),
}


@pytest.mark.parametrize("name", ["glm4", "glm4_0414"])
@pytest.mark.parametrize("answer", NAMED)
def test_calls_named_on_the_first_line(name: str, answer: str) -> None:
    text, calls = NAMED[answer]
    check(name, answer, Parsed(text=text, tool_calls=calls), tools=TOOLS)
    check(name, answer, Parsed(text=answer.removeprefix("\n")))


def test_calls_behind_thoughts() -> None:
    thought = "I need <tool_call>s</tool_call>\n</think>\n\n"
    expected = Parsed(thinking="I need <tool_call>s</tool_call>", tool_calls=(DHAKA,))
    check("qwq", f"{thought}<tool_call>\n{DHAKA_JSON}\n</tool_call>", expected, tools=TOOLS)
    check("qwen3_thinking", f"{thought}<tool_call>\n{DHAKA_JSON}\n</tool_call>", expected, tools=TOOLS)
    check("qwen3", f"<think>\n{thought}<tool_call>\n{DHAKA_JSON}\n</tool_call>", expected, tools=TOOLS)


@pytest.mark.parametrize("name", NAMES)
def test_without_tools_nothing_is_a_call(name: str) -> None:
    for answer in (f"<tool_call>\n{DHAKA_JSON}\n</tool_call>", '{"name": "weather", "parameters": {}}', "[clock()]"):
        check(name, answer, Parsed(text=answer), opened=False)


WHOLE = {
    '{"name": "weather", "parameters": {"place": "ঢাকা"}}': ("", (DHAKA,)),
    ' \n<|python_tag|>{"name": "weather", "parameters": {"place": "ঢাকা"}}\n': ("", (DHAKA,)),
    '{"type": "function", "function": {"name": "clock", "parameters": {}}}': ("", (CLOCK_CALL,)),
    '{"type": "function", "name": "clock", "parameters": {}}': ("", (CLOCK_CALL,)),
    '{"name": "clock", "parameters": {}}; {"name": "weather", "parameters": {"place": "ঢাকা"}}': ("", (CLOCK_CALL, DHAKA)),
    '{"name": "Rahim", "age": 3}': ('{"name": "Rahim", "age": 3}', ()),
    '{"answer": 42}': ('{"answer": 42}', ()),
    '{"name": "clock", "parameters": {}} and more': ('{"name": "clock", "parameters": {}} and more', ()),
    '{"name": "clock", "parameters"': ('{"name": "clock", "parameters"', ()),
    "Plain text {": ("Plain text {", ()),
    " \n": (" \n", ()),
    "": ("", ()),
}
PYTHON = {
    "[weather(place='ঢাকা'), clock()]": ("", (DHAKA, CLOCK_CALL)),
    "[weather(place='x', days=[1, {'a': None}])]": ("", (ToolCall(name="weather", arguments={"place": "x", "days": [1, {"a": None}]}),)),
    "[1] is a note": ("[1] is a note", ()),
    "[weather(place=open('/etc/passwd'))]": ("[weather(place=open('/etc/passwd'))]", ()),
    "[weather('x')]": ("[weather('x')]", ()),
    "[clock(), 3]": ("[clock(), 3]", ()),
    "[unknown()]": ("[unknown()]", ()),
    "[clock(": ("[clock(", ()),
    "[clock(" + "(" * 300: ("[clock(" + "(" * 300, ()),
}


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
@pytest.mark.parametrize("answer", WHOLE)
def test_calls_that_are_the_whole_answer(name: str, answer: str) -> None:
    text, calls = WHOLE[answer]
    check(name, answer, Parsed(text=text, tool_calls=calls), tools=TOOLS)


@pytest.mark.parametrize("answer", PYTHON)
def test_calls_in_python(answer: str) -> None:
    text, calls = PYTHON[answer]
    if len(answer) > 100:
        assert read("llama3_2", [answer], tools=TOOLS) == Parsed(text=text, tool_calls=calls)
    else:
        check("llama3_2", answer, Parsed(text=text, tool_calls=calls), tools=TOOLS)
    assert read("llama3_1", [answer], tools=TOOLS) == Parsed(text=answer)


def test_text_is_given_out_at_once() -> None:
    for name, first in (("llama3_2", "Paris is"), ("llama3_2", "{3"), ("llama3_1", "[w"), ("qwen2_5", "Paris is"), ("qwq", "Let me")):
        opened = name == "qwq"
        parser = format_named(name).parser(Prompt(parts=(), thinking_open=opened, tool_names=TOOLS))
        found = parser.push(first)
        assert (found.thinking if opened else found.text) == first


def test_deep_nesting_is_text() -> None:
    deep = '{"name": "clock", "parameters": ' + "[" * 100_000
    assert read("llama3_1", [deep], tools=TOOLS).text == deep
    marked = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert read("qwen2_5", [marked], tools=TOOLS).text == marked


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", DHAKA_JSON, "\n", "a", "<", "</think>", "<think>", '"', "{"]), max_size=9),
    st.lists(st.integers(0, 120), max_size=5),
)
def test_cuts_never_matter(words: list[str], cuts: list[int]) -> None:
    answer = "".join(words)
    at = sorted({min(cut, len(answer)) for cut in cuts} | {0, len(answer)})
    pieces = [answer[one:two] for one, two in pairwise(at)]
    for name in ("qwen2_5", "qwq", "llama3_2", "deepseek_r1"):
        assert read(name, pieces, tools=TOOLS) == read(name, [answer], tools=TOOLS)


def test_what_a_format_writes_it_reads_back() -> None:
    call = ToolCall(name="weather", arguments={"place": 'a "b" \n </tool_call> ঢাকা', "days": [1, None, {"x": True}]})
    for name in ("qwen2_5", "qwq", "llama3_1", "llama3_2"):
        form = format_named(name)
        before = form.render(Asked([user("a")], tools=[WEATHER, CLOCK]))
        after = form.render(Asked([user("a"), assistant("", call), tool("1")], tools=[WEATHER, CLOCK])).text()
        answer = after.removeprefix(before.text().removesuffix("<think>\n").removesuffix("\n"))
        answer = answer[: answer.index(form.STOPS[0])]
        assert read(name, [answer], opened=False, tools=before.tool_names).tool_calls == (call,)
        assert json.dumps(call.arguments, ensure_ascii=False) in answer


def test_template_answers_are_read_by_the_common_marks() -> None:
    prompt = Prompt(parts=(Control("x"),), thinking_open=True, tool_names=("weather",))
    parser = template_parser(prompt)
    found = parser.push(f"hm</think>ok<tool_call>{DHAKA_JSON}</tool_call>")
    assert found == Parsed(thinking="hm", text="ok", tool_calls=(DHAKA,))
    assert parser.finish() == Parsed()
