"""Qwen's ChatML with calls in tags: Qwen3-Coder, which never thinks, and the models from Qwen3.5 on, which may.

Source: the chat templates in the lab's files (Qwen/Qwen3-Coder-30B-A3B-Instruct, Qwen/Qwen3.5-2B, Qwen/Qwen3.5-4B, Qwen/Qwen3.6-27B).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from khola.chat.chatml import IM_END, IM_START
from khola.chat.conversation import role_order
from khola.chat.message import Asked, Control, Message, Part, Prompt, Tool
from khola.chat.parsing import AnswerParser
from khola.chat.qwen3 import BEGIN, CLOSING, last_question
from khola.chat.thinking import END, OPENING, START, ThinkingSplitter, without_thoughts
from khola.chat.tool_calls import END as CALL_END
from khola.chat.tool_calls import RESULT, RESULT_END, MarkedCalls, tool_json
from khola.chat.tool_calls import START as CALL
from khola.chat.turns import check_thinking, check_turns, imaged, joined
from khola.chat.xml_calls import as_text, xml_call, xml_calls
from khola.errors import AskedWrong

_RESULT, _RESULT_END = Control(RESULT, plain=True), Control(RESULT_END, plain=True)
_CALL, _CALL_END = Control(CALL, plain=True), Control(CALL_END, plain=True)
_IMAGE = (Control("<|vision_start|>"), Control("<|image_pad|>"), Control("<|vision_end|>"))
_CODER = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
_EXAMPLE = (
    "\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n<parameter=example_parameter_2>\n{value_2}\n"
    "</parameter>\n</function>\n"
)
_ADVICE = (
    "- Required parameters MUST be specified\n- You may provide optional reasoning for your function call in natural language BEFORE the "
    "function call, but NOT after\n- If there is no function call available, answer the question like normal with your current knowledge "
    "and do not tell the user about function calls\n</IMPORTANT>"
)


class Coder:
    """Qwen3-Coder's turns."""

    name = "qwen3_coder"

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`."""
        check_turns(asked)
        check_thinking(self.name, asked.thinking)
        given = asked.messages[0].role == "system"
        parts: list[Part] = []
        if given or asked.tools:
            offered = _coder_tools(asked.tools) if asked.tools else []
            parts += [IM_START, f"system\n{asked.messages[0].content if given else _CODER}", *offered, IM_END, "\n"]
        spoken = asked.messages[1:] if given else asked.messages
        for index, message in enumerate(spoken):
            if message.role == "tool":
                parts += _result(spoken, index, ("\n",), (_RESULT, f"\n{message.content}\n", _RESULT_END, "\n"))
            elif message.tool_calls:
                said = f"\n{message.content.strip()}\n" if message.content.strip() else ""
                calls = [part for call in message.tool_calls for part in ("\n", *xml_call(call))]
                parts += [IM_START, "assistant", said, *calls, IM_END, "\n"]
            else:
                parts += [IM_START, f"{message.role}\n{message.content}", IM_END, "\n"]
        whole = parts[:-2] if asked.continue_last else [*parts, *BEGIN]
        return Prompt(parts=joined(whole), opening=BEGIN, tool_names=tuple(tool.name for tool in asked.tools), tools=tuple(asked.tools))

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        return AnswerParser(calls=MarkedCalls(xml_calls(prompt.tools)) if prompt.tool_names else None)


@dataclass(frozen=True)
class Hybrid:
    """The turns of Qwen3.5 and what came after it."""

    name: str
    thinks: bool = True
    """Whether an answer begins with a thought where nobody says."""
    json_words: bool = False
    """Whether true, false and null in a call are written so; else as Python writes them."""

    def render(self, asked: Asked) -> Prompt:
        """See `Format.render`. Texts lose their outer spaces; behind the last question thoughts are kept, empty ones too."""
        check_turns(asked, images=("user", "assistant", "tool"))
        spoken = [Message(role=m.role, content=m.content.strip(), thinking=m.thinking, tool_calls=m.tool_calls) for m in asked.messages]
        question = last_question(spoken)
        if spoken[question].role != "user" or any(message.role == "system" for message in spoken[1:]):
            raise AskedWrong(
                "{name}: expected a user's turn, and a system turn at the start only; the roles are: {roles}",
                name=self.name,
                roles=role_order(asked.messages),
            )
        parts = _system(spoken[0], asked.tools)
        for index, message in enumerate(spoken):
            if message.role == "tool":
                parts += _result(spoken, index, (), ("\n", _RESULT, "\n", *imaged(message.content, _IMAGE), "\n", _RESULT_END))
            elif message.role == "assistant":
                parts += self._answer(message, recent=index > question)
            elif message.role == "user":
                parts += [IM_START, "user\n", *imaged(message.content, _IMAGE), IM_END, "\n"]
        opened = self.thinks if asked.thinking is None else asked.thinking
        if asked.continue_last:
            opened = bool(asked.messages[-1].thinking and not asked.messages[-1].content)
            if opened:
                # The turn that was written is taken back and begun anew within its thought.
                parts = [*parts[: len(parts) - len(self._answer(spoken[-1], recent=True))], *BEGIN, *OPENING, asked.messages[-1].thinking]
            else:
                parts = parts[:-2]
        else:
            parts += [*BEGIN, *OPENING, *(() if opened else ("\n", *CLOSING))]
        return Prompt(
            parts=joined(parts), thinking_open=opened, tool_names=tuple(tool.name for tool in asked.tools), tools=tuple(asked.tools)
        )

    def parser(self, prompt: Prompt) -> AnswerParser:
        """See `Format.parser`."""
        calls = MarkedCalls(xml_calls(prompt.tools)) if prompt.tool_names else None
        return AnswerParser(thinking=ThinkingSplitter(opened=prompt.thinking_open), calls=calls)

    def _answer(self, message: Message, *, recent: bool) -> list[Part]:
        """An assistant's turn."""
        thought, content = message.thinking, message.content
        if not thought and END in content:
            thought = content.split(END)[0].rstrip("\n").split(START)[-1].lstrip("\n")
            content = without_thoughts(content).lstrip("\n")
        parts: list[Part] = [*BEGIN, *((*OPENING, thought.strip() + "\n", *CLOSING) if recent else ()), *imaged(content, _IMAGE)]
        for place, call in enumerate(message.tool_calls):
            parts += ["\n" if place else "\n\n" if content.strip() else "", *xml_call(call, json_words=self.json_words)]
        return [*parts, IM_END, "\n"]


def _result(messages: Sequence[Message], index: int, head: tuple[Part, ...], body: tuple[Part, ...]) -> list[Part]:
    """A tool's answer; neighbouring ones share one user turn, which does not begin where a conversation does."""
    first = index > 0 and messages[index - 1].role != "tool"
    last = index == len(messages) - 1 or messages[index + 1].role != "tool"
    return [*((IM_START, "user", *head) if first else ()), *body, *((IM_END, "\n") if last else ())]


def _coder_tools(tools: Sequence[Tool]) -> list[Part]:
    """The end of a system turn that offers tools in tags."""
    written = "\n\n# Tools\n\nYou have access to the following tools:\n\n<tools>"
    for tool in tools:
        written += f"\n<function>\n<name>{tool.name}</name>\n<description>{tool.description.strip()}</description>\n<parameters>"
        properties = tool.parameters.get("properties")
        for name, fields in (properties if isinstance(properties, Mapping) else {}).items():
            written += f"\n<parameter>\n<name>{name}</name>"
            known: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
            written += f"\n<type>{known['type']!s}</type>" if "type" in known else ""
            written += f"\n<description>{str(known['description']).strip()}</description>" if "description" in known else ""
            written += _more(known, ("name", "type", "description")) + "\n</parameter>"
        written += _more(tool.parameters, ("type", "properties")) + "\n</parameters>\n</function>"
    ask = "\n</tools>\n\nIf you choose to call a tool ONLY reply in the following format with NO suffix:\n\n"
    remind = (
        "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: the tool calling block MUST begin with an opening "
    )
    example = _EXAMPLE.format(value_2="value_2")
    return [written + ask, _CALL, example, _CALL_END, remind, _CALL, " tag and end with a closing ", _CALL_END, " tag.\n" + _ADVICE]


def _more(fields: Mapping[str, Any], told: Sequence[str]) -> str:
    """Whatever else a schema says, a tag for each key."""
    return "".join(f"\n<{key}>{as_text(value)}</{key}>" for key, value in fields.items() if key not in told)


def _system(first: Message, tools: Sequence[Tool]) -> list[Part]:
    """The system turn: tools, then what was given."""
    given = first.role == "system"
    if not tools:
        return [IM_START, f"system\n{first.content}", IM_END, "\n"] if given else []
    listed = "# Tools\n\nYou have access to the following functions:\n\n<tools>" + "".join("\n" + tool_json(tool) for tool in tools)
    ask = "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    remind = (
        "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: an inner <function=...></function> block must be "
        "nested within "
    )
    example = _EXAMPLE.format(value_2="This is the value for the second parameter\nthat can span\nmultiple lines")
    tail = " XML tags\n" + _ADVICE + (f"\n\n{first.content}" if given and first.content else "")
    return [IM_START, f"system\n{listed}{ask}", _CALL, example, _CALL_END, remind, _CALL, _CALL_END, tail, IM_END, "\n"]
