"""`POST /v1/chat/completions`: what is asked, as jobs.

Source   OpenAI's API reference, "Create chat completion"; `reasoning`, `reasoning_content` and `thinking` of earlier turns as clients of
         vLLM, llama.cpp and Ollama send them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from khola.chat.conversation import conversation
from khola.chat.message import Message, Tool
from khola.errors import AskedWrong, BadSchema, UnknownOption
from khola.serve.access.limits import Limits
from khola.serve.backend import ChatJob
from khola.serve.dialects.openai.fields import Count, SamplingFields, at_most, kept, seeded
from khola.serve.http.body import meant

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
THOUGHT_TOKENS: dict[str, int | None] = {
    "minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768, "max": None,
}  # fmt: skip
"""How long a thought may be at most, by the effort that was asked for."""

NEUTRAL: dict[str, Sequence[Any]] = {
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "moderation": (), "functions": ([],),
    "function_call": ("none", "auto"), "return_progress": (False,), "add_generation_prompt": (True,),
}  # fmt: skip
"""Fields that khola does not follow, and the values of each that ask for nothing."""
FORGOTTEN = ("refusal", "audio", "annotations", "function_call")
"""Keys of an answer that clients send back in its turn; they must be empty."""
TOOL_CALL_KEYS = frozenset(("id", "type", "index", "function"))


class FunctionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Refuse a schema that calls cannot be held to wholly."""


class ToolBody(msgspec.Struct, forbid_unknown_fields=True):
    """A tool; other kinds than functions run on OpenAI's machines."""

    type: Literal["function"]
    function: FunctionBody


class FormatBody(msgspec.Struct, forbid_unknown_fields=True):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    """The schema itself, where llama.cpp's server has it."""


class TemplateBody(msgspec.Struct, forbid_unknown_fields=True):
    """Wishes for the chat format, under the names that vLLM's clients use."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: Count | None = None


class ChatBody(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """What may be asked of a chat."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    messages: list[dict[str, Any]]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: FormatBody | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateBody | None = None
    continue_final_message: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A chat, understood."""

    model: str
    jobs: tuple[ChatJob, ...]
    """One for each answer."""
    stream: bool
    usage: bool
    """Whether a stream tells what it cost."""
    logprobs: bool
    one_call: bool
    """Whether an answer has one call at most."""
    schema_name: str
    """Of the form of the answer, for errors; empty where it has none."""
    ignored: tuple[str, ...]
    """Fields without effect."""


def asked(body: Mapping[str, Any], limits: Limits, tenant: str = "") -> Asked:
    """Understand a body.

    Raises:
        UnknownOption: a field that khola does not know or follow.
        BadSchema: the schema of the answer cannot be followed.
        WrongModality: a part of a message is not text.
        AskedWrong: a value cannot be meant. The fact `param` of all of them names the field.
    """
    fields, ignored = kept(body, neutral=NEUTRAL)
    chat = meant(fields, ChatBody)
    form, schema_name = form_of(chat.response_format, chat.grammar)
    tools = tools_of([tool.function for tool in chat.tools or ()], limits)
    tools, choice = choice_of(chat.tool_choice, tools)
    thinking, thinking_tokens = thinking_of(chat.reasoning_effort, chat.chat_template_kwargs)
    job = ChatJob(
        messages=messages_of(chat.messages, limits),
        sampling=_sampling(chat, limits),
        tools=tools,
        tool_choice=choice,
        one_call=chat.parallel_tool_calls is False,
        thinking=thinking,
        thinking_tokens=thinking_tokens,
        continue_last=bool(chat.continue_final_message),
        form=form,
        tenant=tenant,
    )
    jobs = tuple(msgspec.structs.replace(job, sampling=seeded(job.sampling, index)) for index in range(chat.n or 1))
    return Asked(
        model=chat.model,
        jobs=jobs,
        stream=bool(chat.stream),
        usage=bool(chat.stream_options and chat.stream_options.include_usage),
        logprobs=bool(chat.logprobs),
        one_call=chat.parallel_tool_calls is False,
        schema_name=schema_name,
        ignored=tuple(ignored),
    )


def _sampling(chat: ChatBody, limits: Limits) -> dict[str, Any]:
    found = chat.sampling(limits)
    most = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    if chat.max_tokens is not None and chat.max_tokens != most:
        raise AskedWrong("{param} and max_completion_tokens say different numbers", hint="give one of them", param="max_tokens")
    if chat.top_logprobs and not chat.logprobs:
        raise AskedWrong("{param} needs logprobs", hint="set logprobs to true", param="top_logprobs")
    at_most("top_logprobs", chat.top_logprobs or 0, limits.logprobs)
    lengths = {} if most is None else {"max_tokens": most}
    return {**found, **lengths, **({"logprobs": chat.top_logprobs or 0} if chat.logprobs else {})}


def messages_of(given: Sequence[Mapping[str, Any]], limits: Limits, param: str = "") -> tuple[Message, ...]:
    """The turns of a conversation.

    Args:
        given: messages.
        param: names what they were made from, where that is not `messages`.
    Raises:
        AskedWrong: and what it is in `conversation`; the fact `param` names the message.
    """
    at_most("messages", len(given), limits.messages)
    plain = [_plain(message, index, limits) for index, message in enumerate(given)]
    try:
        return conversation(plain)
    except AskedWrong as error:
        at = error.facts.get("index")
        error.facts.setdefault("param", param or ("messages" if at is None else f"messages[{at}]"))
        raise


def _plain(message: Mapping[str, Any], index: int, limits: Limits) -> dict[str, Any]:
    """A message under the keys that `conversation` knows."""
    found = {key: value for key, value in message.items() if value is not None and not (key in FORGOTTEN and value in ([], {}, ""))}
    if found.get("role") == "developer":
        found["role"] = "system"
    thoughts = {found.pop(key) for key in ("reasoning", "reasoning_content", "thinking") if isinstance(found.get(key), str)}
    if len(thoughts) > 1:
        raise AskedWrong("{param}: reasoning and reasoning_content differ", hint="send one of them", param=f"messages[{index}]")
    if thoughts and found.get("role") == "assistant":
        found["thinking"] = thoughts.pop()
    if isinstance(found.get("content"), list):
        at_most(f"messages[{index}].content", len(found["content"]), limits.parts)
    for call in found.get("tool_calls") or ():
        unknown = sorted(set(call) - TOOL_CALL_KEYS) if isinstance(call, Mapping) else []
        if unknown:
            raise UnknownOption("there is no field {param} here in a call", param=f"messages[{index}].tool_calls.{unknown[0]}")
    return found


def tools_of(functions: Sequence[FunctionBody], limits: Limits) -> tuple[Tool, ...]:
    """The tools that are offered.

    Raises:
        AskedWrong: there are too many, or two have one name.
    """
    at_most("tools", len(functions), limits.tools)
    names = [function.name for function in functions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise AskedWrong("{param} has two functions of the name {name}", param="tools", name=twice[0])
    return tuple(
        Tool(name=one.name, description=one.description or "", parameters=one.parameters or {}, strict=bool(one.strict))
        for one in functions
    )


def choice_of(choice: str | Mapping[str, Any] | None, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str | None]:
    """The tools that stay offered, and which call must come.

    Args:
        choice: "none", "auto", "required", one function by its name, or some that are allowed.
        tools: that were offered.
    Raises:
        AskedWrong: the choice cannot be meant.
    """
    if choice == "none":
        return (), None
    if choice is None or choice == "auto":
        return tools, "auto" if tools else None
    if choice == "required" and tools:
        return tools, "required"
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if isinstance(listed, list) and listed:
            return choice_of(allowed.get("mode", "auto"), tuple(_named(one, tools) for one in listed))
    elif isinstance(choice, Mapping) and choice.get("type") == "function":
        tool = _named(choice, tools)
        return ((tool,), "required") if tool.name in ("auto", "required") else (tools, tool.name)
    raise AskedWrong("{param} cannot be meant", hint="none, auto, required, or the name of a tool that is offered", param="tool_choice")


def _named(choice: Any, tools: Sequence[Tool]) -> Tool:
    """The tool that a choice names; in chats the name stands in `function`, in responses beside the type."""
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    for tool in tools:
        if tool.name == name:
            return tool
    raise AskedWrong("{param} names {name!r}, which is not offered", param="tool_choice", name=str(name)[:100])


def form_of(given: FormatBody | None, grammar: str | None, param: str = "response_format") -> tuple[dict[str, Any], str]:
    """The form of an answer for the engine, and the name of its schema.

    Raises:
        BadSchema: the schema is missing or cannot be followed.
        AskedWrong: two forms are asked for.
    """
    if given is None or given.type == "text":
        return ({"grammar": grammar} if grammar is not None else {}), ""
    if grammar is not None:
        raise AskedWrong("{param} and response_format cannot both hold for one answer", hint="leave one out", param="grammar")
    named = given.json_schema or {}
    schema = given.schema if given.schema is not None else named.get("schema")
    name = str(named.get("name", "schema"))
    if schema is None and given.type == "json_object":
        return {"json_object": True}, ""
    if not isinstance(schema, dict):
        raise BadSchema("Invalid schema for response_format {name!r}: it is missing", name=name, param=param)
    return {"schema": check_schema(schema, name, param)}, name


def check_schema(schema: dict[str, Any], name: str, param: str) -> dict[str, Any]:
    """The schema, if an answer can be held to it.

    Raises:
        BadSchema: it cannot; in the words that LangChain looks for.
    """
    from khola.engine.json_schema import checked_schema, read_schema

    try:
        checked_schema(read_schema(schema))
    except BadSchema as error:
        raise invalid_schema(error, name, param) from None
    return schema


def invalid_schema(error: BadSchema, name: str, param: str) -> BadSchema:
    """The same error in the words that LangChain looks for."""
    return BadSchema("Invalid schema for response_format {name!r}: {why}", name=name, why=error.told(), param=param)


def thinking_of(effort: str | None, wishes: TemplateBody | None) -> tuple[bool | None, int | None]:
    """Whether the answer begins with a thought, and how long that may be.

    Raises:
        AskedWrong: the two ways to say it differ.
    """
    thinking, tokens = (None, None) if effort is None else (effort != "none", THOUGHT_TOKENS.get(effort))
    for wish in () if wishes is None else (wishes.enable_thinking, wishes.thinking):
        if wish is not None and thinking not in (None, wish):
            raise AskedWrong("{param} and reasoning_effort differ", hint="give one of them", param="chat_template_kwargs")
        thinking = thinking if wish is None else wish
    return thinking, tokens if wishes is None or wishes.thinking_budget is None else wishes.thinking_budget
