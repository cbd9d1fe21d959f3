"""`POST /v1/responses`: what is asked, as a job; and items of earlier turns as messages.

Source   OpenAI's API reference, "Create a model response" and "Input items".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from khola.chat.message import Message
from khola.errors import AskedWrong, UnknownOption, WrongModality
from khola.serve.access.limits import Limits
from khola.serve.backend import ChatJob
from khola.serve.dialects.openai.chat_body import Effort, FormatBody, FunctionBody, choice_of, form_of, messages_of, thinking_of, tools_of
from khola.serve.dialects.openai.fields import HARMLESS, LEAST_TOP_P, Count, StreamOptions, Temperature, TopP, at_most, kept
from khola.serve.http.body import meant

Items = list[dict[str, Any]]

NEUTRAL: dict[str, Sequence[Any]] = {
    "truncation": ("disabled",), "conversation": (), "prompt": (), "context_management": ([],), "moderation": (),
}  # fmt: skip
"""Fields that khola does not follow, and the values of each that ask for nothing."""
WITHOUT_EFFECT = HARMLESS - {"metadata", "store"} | {"max_tool_calls"}
"""Fields without effect; `max_tool_calls` counts calls of OpenAI's own tools alone."""
METADATA = 16
"""Entries, as OpenAI allows."""
LOGPROBS = "message.output_text.logprobs"
INCLUDES = (LOGPROBS, "reasoning.encrypted_content")
"""What may be included; thoughts are told openly, so nothing encrypted goes with them."""
TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
"""Parts that are text."""


class ResponseTool(FunctionBody, kw_only=True, forbid_unknown_fields=True):
    """A function; tools of other types run on OpenAI's machines."""

    type: Literal["function"]


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextBody(msgspec.Struct, forbid_unknown_fields=True):
    """Wishes for the text of an answer."""

    format: TextFormat | None = None
    verbosity: str | None = None
    """Taken without effect, as in chats."""


class ReasoningBody(msgspec.Struct, forbid_unknown_fields=True):
    """Wishes for the thought; a summary cannot be had, for the thought is told whole."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be asked of a response."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Count | None = None
    include: list[str] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    metadata: dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A response, understood but for what stands before it."""

    body: ResponseBody
    items: Items
    """The turns that are new."""
    logprobs: int | None
    schema_name: str
    ignored: tuple[str, ...]


def asked(body: Mapping[str, Any], limits: Limits) -> Asked:
    """Understand a body.

    Raises:
        UnknownOption: a field that khola does not know or follow.
        AskedWrong: a value cannot be meant. The fact `param` names the field.
    """
    fields, ignored = kept(body, neutral=NEUTRAL, harmless=WITHOUT_EFFECT)
    given = meant(fields, ResponseBody)
    if given.background and (given.stream or given.store is False):
        raise AskedWrong("{param} needs store, and cannot stream", hint="ask for it by its id", param="background")
    at_most("metadata", len(given.metadata or {}), METADATA)
    unknown = [name for name in given.include or () if name not in INCLUDES]
    if unknown:
        raise UnknownOption("{param}: there is no {name!r} to include", param="include", name=unknown[0][:100])
    at_most("top_logprobs", given.top_logprobs or 0, limits.logprobs)
    wanted = bool(given.top_logprobs) or LOGPROBS in (given.include or ())
    items = [{"type": "message", "role": "user", "content": given.input}] if isinstance(given.input, str) else given.input
    at_most("input", len(items), limits.messages)
    return Asked(
        body=given,
        items=items,
        logprobs=(given.top_logprobs or 0) if wanted else None,
        schema_name=_form(given)[1],
        ignored=tuple(ignored),
    )


def job_of(found: Asked, before: Items, limits: Limits, tenant: str = "") -> ChatJob:
    """The job.

    Args:
        before: items of the responses that this one follows.
    Raises:
        AskedWrong, WrongModality, UnknownOption: an item cannot be meant.
    """
    given = found.body
    tools, choice = choice_of(given.tool_choice, tools_of(given.tools or (), limits))
    form, _ = _form(given)
    effort = given.reasoning.effort if given.reasoning else None
    thinking, thinking_tokens = thinking_of(effort, None)
    wishes = {
        "temperature": given.temperature,
        "top_p": None if given.top_p is None else max(given.top_p, LEAST_TOP_P),
        "max_tokens": given.max_output_tokens,
        "logprobs": found.logprobs,
    }
    return ChatJob(
        messages=turns_of([*before, *found.items], given.instructions, limits),
        sampling={name: value for name, value in wishes.items() if value is not None},
        tools=tools,
        tool_choice=choice,
        one_call=given.parallel_tool_calls is False,
        thinking=thinking,
        thinking_tokens=thinking_tokens,
        form=form,
        tenant=tenant,
    )


def _form(given: ResponseBody) -> tuple[dict[str, Any], str]:
    """The form of the answer, and the name of its schema."""
    wanted = given.text.format if given.text else None
    if wanted is None or wanted.type != "json_schema":
        return form_of(None if wanted is None else FormatBody(wanted.type), None)
    return form_of(FormatBody("json_schema", {"name": wanted.name or "schema", "schema": wanted.schema}), None, "text.format")


def turns_of(items: Sequence[Mapping[str, Any]], instructions: str | None, limits: Limits) -> tuple[Message, ...]:
    """The conversation that items tell: a thought, a text and calls next to each other are one turn of the assistant's.

    Raises:
        AskedWrong, WrongModality, UnknownOption: an item cannot be meant; the fact `param` names it.
    """
    turns: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    names: dict[str, str] = {}
    for at, item in enumerate(items):
        kind, param = item.get("type", "message"), f"input[{at}]"
        if kind == "message":
            role, text = item.get("role"), text_of(item.get("content"), f"{param}.content", limits)
            if role == "assistant" and _open(turns) and "content" not in turns[-1]:
                turns[-1]["content"] = text
            else:
                turns.append({"role": role, "content": text})
        elif kind == "reasoning":
            turn = _assistant(turns, fresh=True)
            turn["thinking"] = text_of(item.get("content") or item.get("summary") or [], f"{param}.content", limits)
        elif kind == "function_call":
            names[str(item.get("call_id"))] = str(item.get("name"))
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            _assistant(turns).setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "function_call_output":
            text = text_of(item.get("output"), f"{param}.output", limits)
            call = item.get("call_id")
            turns.append({"role": "tool", "content": text, "tool_call_id": call, "name": names.get(str(call), "")})
        else:
            raise UnknownOption("{param}: items of the type {kind!r} are not supported here", param=param, kind=str(kind)[:100])
    return messages_of(turns, limits, "input")


def _open(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last turn is an assistant's that may go on."""
    return bool(turns) and turns[-1]["role"] == "assistant"


def _assistant(turns: list[dict[str, Any]], *, fresh: bool = False) -> dict[str, Any]:
    """The assistant's turn that goes on, or a new one."""
    if fresh or not _open(turns):
        turns.append({"role": "assistant"})
    return turns[-1]


def text_of(content: Any, param: str, limits: Limits) -> str:
    """The text of an item, from a string or parts.

    Raises:
        WrongModality: a part is an image, a file or a sound.
        AskedWrong: it is neither.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise AskedWrong("{param}: expected a text or a list of parts", param=param)
    at_most(param, len(content), limits.parts)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in TEXTS:
            raise WrongModality("{param}: a part has the type {kind!r}; this model reads text only", param=param, kind=str(kind)[:100])
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise AskedWrong("{param}: a part has no text", param=param)
        texts.append(text)
    return "".join(texts)


def with_ids(items: Sequence[Mapping[str, Any]], number: Callable[[], str]) -> Items:
    """Items as they are told again: each with an id, and texts as parts."""
    return [_with_id(item, number) for item in items]


def _with_id(item: Mapping[str, Any], number: Callable[[], str]) -> dict[str, Any]:
    """One item."""
    found = {"id": f"item_{number()}", "type": "message", "status": "completed", **item}
    if found["type"] == "message" and isinstance(found.get("content"), str):
        part: dict[str, Any] = {"type": "input_text", "text": found["content"]}
        said = {"type": "output_text", "annotations": [], "logprobs": []} if found.get("role") == "assistant" else {}
        found["content"] = [part | said]
    return found


def page_of(items: Items, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of items, the last one first unless told otherwise.

    Raises:
        AskedWrong: a value of the query cannot be meant.
        UnknownOption: the query has a field that is not followed.
    """
    unknown = [name for name in query if name not in ("limit", "order", "after")]
    if unknown:
        raise UnknownOption("{param} is not supported here", hint="leave it out", param=unknown[0][:100])
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise AskedWrong("{param} is {found!r}; expected 1 to 100", param="limit", found=limit[:40])
    if order not in ("asc", "desc"):
        raise AskedWrong("{param} is {found!r}; expected asc or desc", param="order", found=order[:40])
    all_items = items if order == "asc" else items[::-1]
    ids = [item["id"] for item in all_items]
    if after is not None and after not in ids:
        raise AskedWrong("{param} is {found!r}, which is the id of none of them", param="after", found=after[:128])
    start = 0 if after is None else ids.index(after) + 1
    page = all_items[start : start + int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": "", "last_id": ""}
    return {"object": "list", "data": page, **ends, "has_more": start + len(page) < len(items)}
