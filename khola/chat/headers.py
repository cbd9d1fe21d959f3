"""The headers of Llama 3 and later: `<|start_header_id|>`role`<|end_header_id|>`, a blank line, text without outer spaces, `<|eot_id|>`.

Source: meta-llama/llama-models, `llama3_1/prompt_format.md`, `llama3_2/text_prompt_format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from khola.chat.conversation import role_order
from khola.chat.message import Asked, Control, Message, Part, Prompt
from khola.chat.parsing import AnswerParser
from khola.chat.tool_calls import WholeAnswerCalls, as_json, tool_json
from khola.chat.turns import check_bare_calls, check_thinking, check_turns, joined
from khola.errors import AskedWrong

STOPS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
BOS = Control("<|begin_of_text|>")
_HEADER, _HEADER_END, _END = Control("<|start_header_id|>"), Control("<|end_header_id|>"), Control("<|eot_id|>")
_TEMPLATE_DATE = date(2024, 7, 26)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ASK_FOR_CALL = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given "
    'prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


@dataclass(frozen=True, kw_only=True)
class DatedHeaders:
    """The format of Llama 3.1 and later."""

    name: str
    python_calls: bool = False
    """Whether calls also come as a Python list."""

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`; without `today` the date is the template's own, 26 July 2024."""
        check_thinking(self.name, asked.thinking)
        parts = _dated_turns(self.name, asked)
        return Prompt(parts=parts, opening=answer_begins(), tool_names=tuple(tool.name for tool in asked.tools))

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        return AnswerParser(calls=WholeAnswerCalls(prompt.tool_names, python=self.python_calls) if prompt.tool_names else None)


def turn(role: str, text: str) -> tuple[Part, ...]:
    """One whole turn."""
    return (_HEADER, role, _HEADER_END, f"\n\n{text}", _END)


def answer_begins() -> tuple[Part, ...]:
    """The head of the assistant's turn."""
    return (_HEADER, "assistant", _HEADER_END, "\n\n")


def _dated_turns(name: str, asked: Asked) -> tuple[Part, ...]:
    """A conversation as Llama 3.1, 3.2 and 3.3 read it; tools are told in the first user turn.

    Raises:
        AskedWrong: tools without a first user turn, several calls or text beside a call in one turn.
    """
    check_turns(asked)
    messages, tools = asked.messages, asked.tools
    system = messages[0].content.strip() if messages[0].role == "system" else ""
    rest = messages[1:] if messages[0].role == "system" else messages
    day = asked.today or _TEMPLATE_DATE
    dates = f"Cutting Knowledge Date: December 2023\nToday Date: {day.day:02d} {_MONTHS[day.month - 1]} {day.year}\n\n"
    parts: list[Part] = [BOS, *turn("system", ("Environment: ipython\n" if tools else "") + dates + system)]
    if tools:
        if not rest or rest[0].role != "user":
            raise AskedWrong("{name}: tools need a user's turn to stand in; the roles are: {roles}", name=name, roles=role_order(messages))
        listed = "".join(tool_json(tool, indent=4) + "\n\n" for tool in tools)
        parts += turn("user", _ASK_FOR_CALL + listed + rest[0].content.strip())
        rest = rest[1:]
    for message in rest:
        parts += _turn(name, message)
    return joined(parts[:-1] if asked.continue_last else [*parts, *answer_begins()])


def _turn(name: str, message: Message) -> tuple[Part, ...]:
    """One turn behind the system turn."""
    if message.role == "tool":
        return turn("ipython", as_json(message.content))
    if not message.tool_calls:
        return turn(message.role, message.content.strip())
    if len(message.tool_calls) > 1:
        raise AskedWrong("{name}: one turn calls one tool; this one calls {count}", name=name, count=len(message.tool_calls))
    check_bare_calls(name, message)
    call = message.tool_calls[0]
    return turn("assistant", f'{{"name": "{call.name}", "parameters": {as_json(call.arguments)}}}')
