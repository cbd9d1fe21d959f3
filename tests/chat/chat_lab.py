"""The labs' templates rendered as the reference library renders them, for comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from khola.chat.message import IMAGE, Message, Tool

HERE = Path(__file__).parent
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
DEEPSEEK = ("deepseek_r1", "deepseek_v3_first", "deepseek_v3", "deepseek_r1_0528", "deepseek_v3_1")
DROPS_TEXT = ("deepseek_r1", "deepseek_v3_first")
"""Templates that print calls only where there is no text."""
LATER_QWEN = {
    "qwen3_5_small": {
        "is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- else %}\n        {{- '<think>\\n' }}": (
            "is true %}\n        {{- '<think>\\n' }}\n    {%- else %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}"
        ),
    },
    "qwen3_6": {
        "{%- if loop.index0 > ns.last_query_index %}": (
            "{%- if (preserve_thinking is defined and preserve_thinking is true) or (loop.index0 > ns.last_query_index) %}"
        ),
        "args_value | tojson | safe if args_value is mapping or (args_value is sequence and args_value is not string) "
        "else args_value | string": ("args_value | string if args_value is string else args_value | tojson | safe"),
    },
}
"""What these templates say in the place of Qwen3.5-4B's words."""
BOS = (
    {"llama2": "<s>"}
    | dict.fromkeys(("llama3", "llama3_1", "llama3_2"), "<|begin_of_text|>")
    | dict.fromkeys(DEEPSEEK, "<｜begin▁of▁sentence｜>")
)


def lab_template(name: str) -> str:
    """The source of a template that is kept here, or made of one that is."""
    if name == "chatml":
        whole = lab_template("smollm2")
        middle = whole[whole.index("{% if loop.first") : whole.index("{% endif %}") + len("{% endif %}")]
        return whole.replace(middle, "")
    if name == "qwen1_5":
        return lab_template("smollm2").replace(SMOLLM2_SYSTEM, "You are a helpful assistant.")
    if name == "qwen2_5_math":
        return lab_template("qwen2_5").replace(QWEN2_5_SYSTEM, r"Please reason step by step, and put your final answer within \\boxed{}.")
    if name in LATER_QWEN:
        whole = lab_template("qwen3_5")
        for ours, theirs in LATER_QWEN[name].items():
            whole = whole.replace(ours, theirs)
        return whole
    if name == "qwen3_thinking":
        whole = lab_template("qwen3")
        start = whole.index("    {{- '<|im_start|>assistant\\n' }}")
        return whole[:start] + "    {{- '<|im_start|>assistant\\n<think>\\n' }}\n{%- endif %}"
    return (HERE / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def lab_messages(messages: Sequence[Message], *, name: str = "") -> list[dict[str, Any]]:
    """Messages as the reference library passes them; DeepSeek's templates want arguments as text, the first no content beside calls."""
    made = []
    for message in messages:
        one: dict[str, Any] = {
            "role": message.role,
            "content": lab_content(message.content) if IMAGE in message.content else message.content,
        }
        if message.name:
            one["name"] = message.name
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.arguments, ensure_ascii=False) if name in DEEPSEEK else call.arguments,
                    },
                }
                for call in message.tool_calls
            ]
            if name in DROPS_TEXT:
                one["content"] = None
        made.append(one)
    return made


def lab_content(text: str) -> list[dict[str, str]]:
    """Texts and images as typed parts."""
    first, *others = text.split(IMAGE)
    return [{"type": "text", "text": first}, *(part for other in others for part in ({"type": "image"}, {"type": "text", "text": other}))]


def minimax_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as MiniMax's template wants them: contents in parts, results of functions by name, calls as the model writes them."""
    made: list[dict[str, Any]] = []
    called: list[str] = []
    for message in messages:
        text = message.content
        for call in message.tool_calls:
            text += f"<function_call>```typescript\nfunctions.{call.name}({json.dumps(call.arguments, ensure_ascii=False)})\n```"
            called.append(call.name)
        one: dict[str, Any] = {"role": message.role, "content": lab_content(text)}
        if message.role == "tool":
            one |= {"role": "function", "name": message.name or (called.pop(0) if called else "")}
        made.append(one)
    return made


def kimi_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as Kimi's template wants them: ids that count the calls of the conversation, and results with theirs."""
    made, told, unanswered = lab_messages(messages), 0, list[str]()
    for message, one in zip(messages, made, strict=True):
        for call in one.get("tool_calls", ()):
            call["id"] = f"functions.{call['function']['name']}:{told}"
            unanswered.append(call["id"])
            told += 1
        if message.role == "tool":
            one["tool_call_id"] = unanswered.pop(0) if unanswered else f"functions.{message.name or 'unknown'}:{told}"
    return made


def glm_messages(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Messages as GLM-4's template wants them: tools in a turn without text, each call a turn whose metadata is the tool's name."""
    made: list[dict[str, Any]] = [{"role": "system", "tools": lab_tools(tools)}] if tools else []
    for message in messages:
        role = "observation" if message.role == "tool" else message.role
        if message.content or not message.tool_calls:
            made.append({"role": role, "content": message.content})
        for call in message.tool_calls:
            made.append({"role": role, "metadata": call.name, "content": json.dumps(call.arguments, ensure_ascii=False)})
    return made


def lab_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Tools as the reference library passes them."""
    return [
        {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}
        for tool in tools
    ] or None


def lab_render(
    source: str,
    messages: Sequence[Message],
    *,
    name: str,
    tools: Sequence[Tool] = (),
    thinking: bool | None = None,
    today: date | None = None,
    answer: bool = True,
) -> str:
    """What a lab's template prints."""

    values: dict[str, Any] = {
        "messages": _messages(messages, tools, name),
        "bos_token": BOS.get(name, ""),
        "eos_token": "</s>" if name == "llama2" else "",
        "add_generation_prompt": answer,
    }
    if tools:
        values["tools"] = lab_tools(tools)
    if thinking is not None:
        values["enable_thinking"] = values["thinking"] = thinking
    if today:
        values |= {"strftime_now": today.strftime, "date_string": today.strftime("%d %b %Y")}
    return _compiled(source).render(values)


def _messages(messages: Sequence[Message], tools: Sequence[Tool], name: str) -> list[dict[str, Any]]:
    """Messages as one template wants them."""
    if name in ("glm4", "glm4_0414", "glm_z1"):
        return glm_messages(messages, tools if name == "glm4" else ())
    if name == "kimi_k2":
        return kimi_messages(messages)
    return minimax_messages(messages) if name == "minimax" else lab_messages(messages, name=name)


@cache
def _compiled(source: str) -> jinja2.Template:
    """A template in the reference library's dialect."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # What the reference library needs to find answers in a prompt prints nothing.
    return environment.from_string(source.replace("{% generation %}{% endgeneration %}", ""))
