"""What is asked in Anthropic's form, made into a job.

Source   Anthropic's Messages API, version 2023-06-01, and its `output_config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from khola.chat.message import Message, Tool, ToolCall
from khola.errors import AskedWrong, WrongModality
from khola.serve.backend import ChatJob
from khola.serve.http.body import meant

Mark = dict[str, Any] | None
"""`cache_control`: khola keeps every prompt's pages by itself, so a mark is taken and has no effect."""


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something in a body; a key that nobody knows is refused."""


class TextBlock(_Given, tag="text", frozen=True, kw_only=True):
    """A text."""

    text: str
    citations: list[Any] | None = None
    cache_control: Mark = None


class ImageBlock(_Given, tag="image", frozen=True, kw_only=True):
    """A picture, which is refused."""

    source: dict[str, Any]
    cache_control: Mark = None


class DocumentBlock(_Given, tag="document", frozen=True, kw_only=True):
    """A file, which is refused."""

    source: dict[str, Any]
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None
    cache_control: Mark = None


class ToolUseBlock(_Given, tag="tool_use", frozen=True, kw_only=True):
    """A call of an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    cache_control: Mark = None


class ToolResultBlock(_Given, tag="tool_result", frozen=True, kw_only=True):
    """What a call gave."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] = ""
    is_error: bool | None = None
    cache_control: Mark = None


class ThinkingBlock(_Given, tag="thinking", frozen=True, kw_only=True):
    """A thought of an earlier answer; whoever signed it."""

    thinking: str
    signature: str = ""


class RedactedBlock(_Given, tag="redacted_thinking", frozen=True, kw_only=True):
    """A thought that only another server can read, which is refused."""

    data: str


Block = TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedBlock


class Turn(_Given, frozen=True, kw_only=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class GivenTool(_Given, frozen=True, kw_only=True):
    """A function of the client's; tools that a server would run have types of their own and are refused."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str = ""
    strict: bool = False
    cache_control: Mark = None


class Choice(_Given, frozen=True, kw_only=True):
    """Whether a call may or must come."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(_Given, frozen=True, kw_only=True):
    """Whether the answer begins with a thought, and how long that may be."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class Schema(_Given, frozen=True, kw_only=True):
    """The form of an answer."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class Output(_Given, frozen=True, kw_only=True):
    """`output_config`."""

    format: Schema | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Body(_Given, frozen=True, kw_only=True):
    """Of /v1/messages, and of /v1/messages/count_tokens, which has fewer keys."""

    model: str
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1, max_length=2048)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    system: str | list[TextBlock] = ""
    stream: bool = False
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stop_sequences: Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]], msgspec.Meta(max_length=16)] = []
    tools: Annotated[list[GivenTool], msgspec.Meta(max_length=128)] = []
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: Output | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: Mark = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request, understood."""

    model: str
    job: ChatJob
    stream: bool = False
    one_call: bool = False
    """At most one call may be told."""
    shows_thought: bool = True
    ignored: tuple[str, ...] = ()
    """Keys that were taken and have no effect here."""


def asked(body: dict[str, Any], *, tenant: str = "", counting: bool = False) -> Asked:
    """What a body asks for.

    Args:
        tenant: whose cache may be shared.
        counting: only the prompt is wanted, so nothing has to bound the answer.
    Raises:
        AskedWrong, UnknownOption: a key or value that cannot be meant; the fact `param` names it.
        WrongModality: an image or a document.
    """
    given = meant(body, Body)
    if given.max_tokens is None and not counting:
        raise AskedWrong("max_tokens is missing", hint="say how many tokens the answer may have", param="max_tokens")
    choice = given.tool_choice or Choice(type="auto")
    thinking, budget = _thought(given)
    messages = [*_system(given.system), *_messages(given.messages)]
    form = given.output_config.format if given.output_config else None
    job = ChatJob(
        messages=tuple(messages),
        sampling=_sampling(given),
        tools=() if choice.type == "none" else tuple(map(_tool, given.tools)),
        tool_choice=_choice(choice, given.tools),
        one_call=choice.disable_parallel_tool_use,
        thinking=thinking,
        thinking_tokens=budget,
        continue_last=messages[-1].role == "assistant",
        form={"schema": form.schema} if form else {},
        tenant=tenant,
    )
    return Asked(
        model=given.model,
        job=job,
        stream=given.stream,
        one_call=choice.disable_parallel_tool_use,
        shows_thought=given.thinking is None or given.thinking.display != "omitted",
        ignored=_ignored(given),
    )


def _sampling(given: Body) -> dict[str, Any]:
    """The options that were given; the rest is what the model's lab recommends."""
    said = {name: getattr(given, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}
    said["stop"] = tuple(given.stop_sequences) or None
    return {name: value for name, value in said.items() if value is not None}


def _thought(given: Body) -> tuple[bool | None, int | None]:
    """Whether to think, and for how many tokens; a body that does not say leaves it to the lab."""
    if given.thinking is None:
        return None, None
    budget = given.thinking.budget_tokens
    if given.thinking.type == "enabled" and budget is None:
        raise AskedWrong(
            "thinking.budget_tokens is missing", hint="say how many tokens the thought may have", param="thinking.budget_tokens"
        )
    if given.thinking.type != "enabled" and budget is not None:
        raise AskedWrong("only enabled thinking has a budget, and thinking is {found}", param="thinking", found=given.thinking.type)
    if budget is not None and given.max_tokens is not None and budget >= given.max_tokens:
        raise AskedWrong(
            "thinking.budget_tokens is {found}; expected less than max_tokens, which is {limit}",
            param="thinking.budget_tokens",
            found=budget,
            limit=given.max_tokens,
        )
    return given.thinking.type != "disabled", budget


def _tool(tool: GivenTool) -> Tool:
    """A tool; its arguments are held to its schema, where it is not strict as far as that can be."""
    return Tool(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)


def _choice(choice: Choice, tools: Sequence[GivenTool]) -> str | None:
    """What `ChatJob.tool_choice` takes."""
    if choice.type in ("none", "auto"):
        return "auto" if tools and choice.type == "auto" else None
    names = [tool.name for tool in tools]
    if not names or (choice.type == "tool" and choice.name not in names):
        known = ", ".join(names) or "-"
        raise AskedWrong(
            "tool_choice asks for the tool {name!r}; the tools are: {known}", param="tool_choice", name=choice.name or "any", known=known
        )
    return choice.name if choice.type == "tool" else "required"


def _system(given: str | list[TextBlock]) -> list[Message]:
    text = given if isinstance(given, str) else "\n\n".join(block.text for block in given)
    return [Message(role="system", content=text)] if text else []


def _messages(turns: Sequence[Turn]) -> list[Message]:
    """Turns of one speaker that follow each other are one turn, as Anthropic has it."""
    names: dict[str, str] = {}
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        blocks = [TextBlock(text=turn.content)] if isinstance(turn.content, str) else turn.content
        made = [_assistant(blocks, index, names)] if turn.role == "assistant" else _others(turn.role, blocks, index, names)
        for message in made:
            if messages and message.role == messages[-1].role != "tool":
                messages[-1] = _joined(messages[-1], message)
            else:
                messages.append(message)
    return messages


def _joined(first: Message, second: Message) -> Message:
    return Message(
        role=first.role,
        content="\n\n".join(text for text in (first.content, second.content) if text),
        thinking="\n\n".join(text for text in (first.thinking, second.thinking) if text),
        tool_calls=(*first.tool_calls, *second.tool_calls),
    )


def _assistant(blocks: Iterable[Block], index: int, names: dict[str, str]) -> Message:
    """An earlier answer; `names` learns which call has which tool."""
    texts, thoughts, calls = [], [], []
    for place, block in enumerate(blocks):
        where = f"messages[{index}].content[{place}]"
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                names[block.id] = block.name
                calls.append(ToolCall(name=block.name, arguments=block.input, id=block.id))
            case _:
                raise _refused(block, "assistant", where)
    return Message(role="assistant", content="".join(texts), thinking="\n\n".join(thoughts), tool_calls=tuple(calls))


def _others(role: Literal["user", "system"], blocks: Iterable[Block], index: int, names: dict[str, str]) -> list[Message]:
    """A turn of the user's: its texts are one message, and every result is one of its own, in their order."""
    made: list[Message] = []
    texts: list[str] = []

    def said() -> list[Message]:
        content = "".join(texts)
        texts.clear()
        return [Message(role=role, content=content)] if content else []

    for place, block in enumerate(blocks):
        where = f"messages[{index}].content[{place}]"
        match block:
            case TextBlock():
                texts.append(block.text)
            case ToolResultBlock() if role == "user":
                made += [*said(), _result(block, where, names)]
            case _:
                raise _refused(block, role, where)
    last = said()
    return made + last if made or last else [Message(role=role)]


def _result(block: ToolResultBlock, where: str, names: dict[str, str]) -> Message:
    """A result; the model is told of a failure in words, for no chat format has a mark for it."""
    if block.tool_use_id not in names:
        raise AskedWrong("there is no call {id!r} that this result could answer", param=f"{where}.tool_use_id", id=block.tool_use_id)
    texts = []
    for place, part in enumerate([TextBlock(text=block.content)] if isinstance(block.content, str) else block.content):
        if not isinstance(part, TextBlock):
            raise _refused(part, "user", f"{where}.content[{place}]")
        texts.append(part.text)
    content = ("Error: " if block.is_error else "") + "".join(texts)
    return Message(role="tool", content=content, tool_call_id=block.tool_use_id, name=names[block.tool_use_id])


def _refused(block: Block, role: str, where: str) -> AskedWrong:
    """Why a block cannot stand where it does."""
    kind = type(block).__struct_config__.tag
    if isinstance(block, ImageBlock | DocumentBlock):
        return WrongModality("{param} is of type {kind}; this model reads text only", param=where, kind=kind)
    if isinstance(block, RedactedBlock):
        return AskedWrong("{param} is a thought that only the server that wrote it can read", hint="leave it out", param=where)
    return AskedWrong("{param} is of type {kind}, which a turn of role {role} cannot have", param=where, kind=kind, role=role)


def _ignored(given: Body) -> tuple[str, ...]:
    """Keys without effect, by name."""
    found = [name for name in ("metadata", "service_tier") if getattr(given, name) is not None]
    blocks = [block for turn in given.messages if not isinstance(turn.content, str) for block in turn.content]
    marked: list[Any] = [given, *given.tools, *blocks, *(given.system if not isinstance(given.system, str) else [])]
    if any(isinstance(part, _MARKED) and part.cache_control is not None for part in marked):
        found.append("cache_control")
    if given.output_config is not None and given.output_config.effort is not None:
        found.append("output_config.effort")
    return tuple(found)


_MARKED = Body | GivenTool | TextBlock | ToolUseBlock | ToolResultBlock
