"""What is asked in Ollama's form, made into a job.

Source   https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from khola.chat.message import Message, Tool, ToolCall
from khola.errors import AskedWrong, UnknownOption, WrongModality
from khola.serve.backend import ChatJob, Job, TextJob
from khola.serve.http.body import meant

KeepAlive = str | int | float | None
"""Seconds, or a duration like "5m"; 0 unloads the model behind the answer, everything else is the server's own business."""


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something in a body; a key that nobody knows is refused."""


class Function(_Given, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    description: str | None = ""
    parameters: dict[str, Any] | None = None


class GivenTool(_Given, frozen=True, kw_only=True):
    """A tool."""

    function: Function
    type: Literal["function"] | None = "function"


class CalledFunction(_Given, frozen=True, kw_only=True):
    """What a call calls."""

    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None


class Call(_Given, frozen=True, kw_only=True):
    """A call of an earlier answer."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] | None = None


class Turn(_Given, frozen=True, kw_only=True):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Options(_Given, rename={"repetition_penalty": "repeat_penalty"}, frozen=True, kw_only=True):
    """`options`; the names of the first group are those of `khola.engine.request.Sampling`, but for `repeat_penalty`."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-100, le=100)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-100, le=100)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: Annotated[int, msgspec.Meta(ge=-2)] | None = None
    """-1 and -2 are "until the context is full"."""
    num_ctx: Annotated[int, msgspec.Meta(ge=1)] | None = None

    repeat_last_n: int | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    numa: bool | None = None


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
NEUTRAL = {"repeat_last_n": -1, "typical_p": 1, "tfs_z": 1, "mirostat": 0}
"""Options that khola does not have, and the values at which they do nothing."""
PLACEMENT = ("num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa")
"""Options that say how to compute and not what: the server was told that when it was started."""


class _Answered(_Given, frozen=True, kw_only=True):
    """What /api/chat and /api/generate share."""

    model: str
    stream: bool = True
    format: Literal["json", ""] | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    truncate: bool | None = None
    shift: bool | None = None


class ChatBody(_Answered, frozen=True, kw_only=True):
    """Of /api/chat."""

    messages: Annotated[list[Turn], msgspec.Meta(max_length=2048)] = []
    tools: Annotated[list[GivenTool], msgspec.Meta(max_length=128)] | None = None


class GenerateBody(_Answered, frozen=True, kw_only=True):
    """Of /api/generate."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool = False


class EmbedBody(_Given, frozen=True, kw_only=True):
    """Of /api/embed."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(max_length=256)]
    truncate: bool | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class EmbeddingsBody(_Given, frozen=True, kw_only=True):
    """Of /api/embeddings, which is older."""

    model: str
    prompt: str
    options: Options | None = None
    keep_alive: KeepAlive = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request, understood."""

    model: str
    job: Job | None
    """None only loads the model, or unloads it."""
    stream: bool = True
    window: int | None = None
    """`num_ctx`: tokens that prompt and answer may have together."""
    unload: bool = False
    """Unload the model behind the answer."""
    logprobs: bool = False
    ignored: tuple[str, ...] = ()
    """Keys that were taken and have no effect here."""


def asked_chat(body: dict[str, Any], *, tenant: str = "") -> Asked:
    """What a body of /api/chat asks for.

    Raises:
        AskedWrong, UnknownOption: a key or value that cannot be meant; the fact `param` names it.
        WrongModality: an image.
    """
    given = meant(body, ChatBody)
    messages = _messages(given.messages)
    job = ChatJob(
        messages=messages,
        sampling=_sampling(given),
        tools=tuple(_tool(tool.function) for tool in given.tools or ()),
        thinking=None if given.think is None else bool(given.think),
        continue_last=bool(messages) and messages[-1].role == "assistant",
        form=_form(given.format),
        tenant=tenant,
    )
    return _asked(given, job if messages else None)


def asked_generate(body: dict[str, Any], *, tenant: str = "") -> Asked:
    """What a body of /api/generate asks for; errors as in `asked_chat`."""
    given = meant(body, GenerateBody)
    for name, value in (("suffix", given.suffix), ("template", given.template), ("context", given.context)):
        if value:
            raise UnknownOption("khola does not take {param}", hint=_INSTEAD[name], param=name)
    if given.images:
        raise WrongModality("{param} is of type {kind}; this model reads text only", param="images", kind="image")
    sampling, form = _sampling(given), _form(given.format)
    if given.raw and (given.system or given.think is not None):
        name = "system" if given.system else "think"
        raise AskedWrong("a raw prompt stands as it is, and {param} is given too", hint="take raw or {param} out", param=name)
    job: Job
    if given.raw:
        job = TextJob(prompt=given.prompt, sampling=sampling, form=form, tenant=tenant)
    else:
        system = (Message(role="system", content=given.system),) if given.system else ()
        thinking = None if given.think is None else bool(given.think)
        messages = (*system, Message(role="user", content=given.prompt))
        job = ChatJob(messages=messages, sampling=sampling, thinking=thinking, form=form, tenant=tenant)
    return _asked(given, job if given.prompt else None)


_INSTEAD = {
    "suffix": "none of its models fills gaps; put the text in front of the gap into prompt",
    "template": "a model has the chat format of its lab; with raw, the prompt stands as you write it",
    "context": "send the earlier turns to /api/chat; khola finds them in its cache",
}


def asked_embed(body: dict[str, Any]) -> tuple[str, list[str], int | None, tuple[str, ...]]:
    """Model, texts, how many dimensions are wanted, and ignored keys; errors as in `asked_chat`."""
    given = meant(body, EmbedBody)
    if given.truncate:
        raise _cuts_nothing("truncate")
    return given.model, [given.input] if isinstance(given.input, str) else given.input, given.dimensions, _ignored(given)


def asked_embeddings(body: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Model, text and ignored keys; errors as in `asked_chat`."""
    given = meant(body, EmbeddingsBody)
    return given.model, given.prompt, _ignored(given)


def _asked(given: _Answered, job: Job | None) -> Asked:
    for name in ("truncate", "shift"):
        if getattr(given, name):
            raise _cuts_nothing(name)
    return Asked(
        model=given.model,
        job=job,
        stream=given.stream,
        window=given.options.num_ctx if given.options else None,
        unload=_seconds(given.keep_alive) == 0,
        logprobs=given.logprobs,
        ignored=_ignored(given),
    )


def _cuts_nothing(name: str) -> UnknownOption:
    return UnknownOption("khola cuts no prompt short, so {param} cannot be true", hint="take {param} out, or send less", param=name)


def _sampling(given: _Answered) -> dict[str, Any]:
    """The options that were given; the rest is what the model's lab recommends.

    Raises:
        UnknownOption: an option that khola does not have.
    """
    options = given.options or Options()
    for name, neutral in NEUTRAL.items():
        if (value := getattr(options, name)) is not None and value != neutral:
            param = f"options.{name}"
            raise UnknownOption(
                "{param} is {found}; khola has no such option, and takes {neutral} only", param=param, found=value, neutral=neutral
            )
    said = {name: getattr(options, name) for name in SAMPLING}
    said["stop"] = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ()) or None
    said["max_tokens"] = None if options.num_predict is not None and options.num_predict < 0 else options.num_predict
    if given.logprobs or given.top_logprobs:
        said["logprobs"] = given.top_logprobs or 0
    return {name: value for name, value in said.items() if value is not None}


def _form(given: str | dict[str, Any] | None) -> dict[str, Any]:
    """What `ChatJob.form` takes."""
    if isinstance(given, dict):
        return {"schema": given}
    return {"json_object": True} if given == "json" else {}


def _tool(given: Function) -> Tool:
    return Tool(name=given.name, description=given.description or "", parameters=given.parameters or {})


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Turns as messages. A result names its tool only; it answers the first call of that tool that has no result yet."""
    open_calls: list[ToolCall] = []
    made: list[Message] = []
    for index, turn in enumerate(turns):
        if turn.images:
            raise WrongModality("{param} is of type {kind}; this model reads text only", param=f"messages[{index}].images", kind="image")
        if turn.role != "assistant" and (turn.thinking or turn.tool_calls):
            param = f"messages[{index}]"
            raise AskedWrong("{param}: only an assistant's turn has thoughts and tool calls, not {role}", param=param, role=turn.role)
        calls = tuple(
            ToolCall(name=call.function.name, arguments=call.function.arguments, id=call.id or f"call_{index}_{place}")
            for place, call in enumerate(turn.tool_calls or ())
        )
        open_calls += calls
        answered = _answered(turn, open_calls) if turn.role == "tool" else None
        made.append(
            Message(
                role=turn.role,
                content=turn.content or "",
                thinking=turn.thinking or "",
                tool_calls=calls,
                tool_call_id=answered.id if answered else turn.tool_call_id or "",
                name=(answered.name if answered else turn.tool_name or "") if turn.role == "tool" else "",
            )
        )
    return tuple(made)


def _answered(turn: Turn, open_calls: list[ToolCall]) -> ToolCall | None:
    """The call that a result answers; it is open no longer."""
    for place, call in enumerate(open_calls):
        if call.id == turn.tool_call_id or (not turn.tool_call_id and turn.tool_name in (None, "", call.name)):
            return open_calls.pop(place)
    return None


def _ignored(given: _Answered | EmbedBody | EmbeddingsBody) -> tuple[str, ...]:
    """Keys without effect, by name: what Ollama would do with them, khola was told when it was started."""
    found = ["keep_alive"] if given.keep_alive is not None and _seconds(given.keep_alive) != 0 else []
    if isinstance(given, _Answered) and isinstance(given.think, str):
        found.append("think")
    options = given.options or Options()
    names = PLACEMENT if isinstance(given, _Answered) else Options.__struct_fields__
    return (*found, *(f"options.{name}" for name in names if getattr(options, name) is not None))


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(given: KeepAlive) -> float | None:
    """A duration in seconds; below 0 is for ever.

    Raises:
        AskedWrong: it is none.
    """
    if given is None or isinstance(given, int | float):
        return given
    text, total = given.strip().removeprefix("-"), 0.0
    sign = -1 if given.strip().startswith("-") else 1
    if text.isdecimal():
        return sign * float(text)
    while text:
        number = text[: len(text) - len(text.lstrip("0123456789."))]
        unit = next((unit for unit in ("ns", "us", "µs", "ms", "s", "m", "h") if text[len(number) :].startswith(unit)), "")
        if not unit or not number.replace(".", "", 1).isdecimal() or len(number) > 12:
            raise AskedWrong('keep_alive is {found!r}; expected seconds, or a duration like "5m"', param="keep_alive", found=given[:40])
        total += float(number) * _UNITS[unit]
        text = text[len(number) + len(unit) :]
    return sign * total
