"""Responses: items become turns, pieces become items and events, and what is kept is its owner's alone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asking import COST, Client, Scripted

from khola.chat.message import ToolCall
from khola.errors import NoMemory, NotFound
from khola.serve.access.limits import Limits
from khola.serve.backend import ChatJob, Piece, Token
from khola.serve.dialects.openai.responses_body import asked, job_of
from khola.serve.dialects.openai.responses_store import KEPT_S, ResponseStore

MAKE = "/v1/responses"
PIECES = (
    Piece(thinking="h"),
    Piece(thinking="m"),
    Piece(text="কি", tokens=(Token(1, "কি".encode(), -0.5),)),
    Piece(text="!", tokens=(Token(2, b"!", -0.25),)),
    Piece(tool_calls=(ToolCall(name="add", arguments={"a": 1}),)),
    Piece(finish_reason="stop", cost=COST),
)


def job(before: list[dict[str, Any]] | None = None, **fields: Any) -> ChatJob:
    """The job of a body."""
    return job_of(asked({"model": "m", "input": "hi", **fields}, Limits()), before or [], Limits())


def test_items_become_turns() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+"}, {"type": "input_text", "text": "1?"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "sub", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "0"}]},
    ]
    system, user, turn, first, second = job(input=items, instructions="Be kind.").messages
    assert (system.role, system.content, user.content) == ("system", "Be kind.", "1+1?")
    assert (turn.thinking, turn.content, [call.name for call in turn.tool_calls]) == ("hm", "Wait.", ["add", "sub"])
    assert [(one.role, one.content, one.tool_call_id, one.name) for one in (first, second)] == [
        ("tool", "2", "c1", "add"), ("tool", "0", "c2", "sub"),
    ]  # fmt: skip


def test_wishes_reach_the_engine() -> None:
    found = job(temperature=0.5, top_p=0, max_output_tokens=7, top_logprobs=2, reasoning={"effort": "minimal", "summary": "auto"})
    assert found.sampling == {"temperature": 0.5, "top_p": 1e-9, "max_tokens": 7, "logprobs": 2}
    assert (found.thinking, found.thinking_tokens) == (True, 256)
    schema = {"type": "object"}
    assert job(text={"format": {"type": "json_schema", "name": "q", "schema": schema}}).form == {"schema": schema}
    tool = {"type": "function", "name": "add", "parameters": schema}
    assert job(tools=[tool], tool_choice={"type": "function", "name": "add"}).tool_choice == "add"
    beside = job(tools=[tool], text={"format": {"type": "json_object"}}, parallel_tool_calls=False)
    assert (beside.form, beside.tool_choice, beside.one_call) == ({"json_object": True}, "auto", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True, "stream": True}, "background"),
        ({"metadata": {str(one): "" for one in range(17)}}, "metadata"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input[0].content"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "q", "schema": {"type": 7}}}}, "text.format"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], param: str, tmp_path: Path) -> None:
    error = Client(home=tmp_path).refused(MAKE, **{"model": "m", "input": "hi", **fields})
    assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_a_response(tmp_path: Path) -> None:
    client = Client(Scripted(*PIECES), tmp_path)
    told = client.post(MAKE, model="m", input="hi", include=["message.output_text.logprobs"], metadata={"a": "b"})
    thought, message, call = told["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}] and thought["summary"] == []
    (part,) = message["content"]
    assert part["text"] == "কি!" and b"".join(bytes(one["bytes"]) for one in part["logprobs"]).decode() == "কি!"
    assert (call["name"], call["arguments"]) == ("add", '{"a":1}') and call["call_id"].startswith("call_")
    assert {item["status"] for item in told["output"]} == {"completed"} and told["status"] == "completed"
    assert told["usage"]["total_tokens"] == 8 and told["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert client.ask("GET", f"{MAKE}/{told['id']}").json() == told


def test_a_stream_tells_every_step_in_order(tmp_path: Path) -> None:
    client = Client(Scripted(*PIECES), tmp_path)
    events = client.events(MAKE, model="m", input="hi")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    part = ["output_item.added", "content_part.added"]
    assert kinds == [
        "created", "in_progress",
        *part, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
        *part, "output_text.delta", "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "কি!"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert all(event["item"]["status"] == "in_progress" for event in events if event["type"] == "response.output_item.added")
    assert client.ask("GET", f"{MAKE}/{events[-1]['response']['id']}").json() == events[-1]["response"]


def test_an_answer_cut_short_is_incomplete(tmp_path: Path) -> None:
    events = Client(Scripted(Piece(text="a"), Piece(finish_reason="length", cost=COST)), tmp_path).events(MAKE, model="m", input="x")
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete" and last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["output"][0]["status"] == "incomplete"


def test_a_failure_on_the_way_is_told(tmp_path: Path) -> None:
    client = Client(Scripted(Piece(text="a"), NoMemory("no memory is left")), tmp_path)
    last = client.events(MAKE, model="m", input="x")[-1]
    assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "rate_limit_exceeded"
    assert client.backend.open == 0


def test_a_response_follows_another(tmp_path: Path) -> None:
    backend = Scripted(Piece(text="two"), Piece(finish_reason="stop", cost=COST))
    client = Client(backend, tmp_path)
    first = client.post(MAKE, model="m", input="one", instructions="first")
    second = client.post(MAKE, model="m", input="three", previous_response_id=first["id"])
    client.post(MAKE, model="m", input="five", instructions="third", previous_response_id=second["id"])
    turns = [(turn.role, turn.content) for turn in backend.jobs[-1].messages]
    assert turns == [
        ("system", "third"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "two"), ("user", "five"),
    ]  # fmt: skip
    error = client.refused(MAKE, model="m", input="x", previous_response_id="resp_none")
    assert (error["status"], error["type"], error["param"]) == (404, "invalid_request_error", "previous_response_id")


def test_what_is_not_to_be_kept_is_not(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    told = client.post(MAKE, model="m", input="x", store=False)
    assert client.ask("GET", f"{MAKE}/{told['id']}").status_code == 404


def test_what_was_asked_is_listed(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    items = [{"role": "user", "content": str(one)} for one in range(3)]
    number = client.post(MAKE, model="m", input=items)["id"]

    def page(query: str = "") -> tuple[list[str], bool, str]:
        found = client.ask("GET", f"{MAKE}/{number}/input_items{query}").json()
        return [item["content"][0]["text"] for item in found["data"]], found["has_more"], found["last_id"]

    assert page()[:2] == (["2", "1", "0"], False)
    first, more, last = page("?order=asc&limit=2")
    assert (first, more) == (["0", "1"], True)
    assert page(f"?order=asc&limit=2&after={last}")[:2] == (["2"], False)
    for query in ("limit=0", "limit=x", "order=up", "after=none", "include=x"):
        answer = client.ask("GET", f"{MAKE}/{number}/input_items?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.split("=")[0])


def test_forgetting(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    told = client.post(MAKE, model="m", input="x")
    assert client.ask("DELETE", f"{MAKE}/{told['id']}").json()["deleted"] is True
    assert client.ask("DELETE", f"{MAKE}/{told['id']}").status_code == 404
    assert client.ask("GET", f"{MAKE}/{told['id']}").status_code == 404


def test_tokens_are_counted_before_anything_is_made(tmp_path: Path) -> None:
    told = Client(home=tmp_path).post(f"{MAKE}/input_tokens", model="m", input="one two three", instructions="four")
    assert told == {"object": "response.input_tokens", "input_tokens": 4}


def test_a_response_in_the_background(tmp_path: Path) -> None:
    async def run() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
        client = Client(home=tmp_path)
        client.backend._delay_s = 0.02
        async with client.session() as session:
            one = (await session.post(MAKE, json={"model": "m", "input": "a b", "background": True})).json()
            two = (await session.post(MAKE, json={"model": "m", "input": "a " * 5000, "background": True})).json()
            refused = await session.post(MAKE, json={"model": "m", "input": "x", "previous_response_id": two["id"]})
            assert refused.status_code == 400
            stopped = (await session.post(f"{MAKE}/{two['id']}/cancel")).json()
            done = one
            while done["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.01)
                done = (await session.get(f"{MAKE}/{one['id']}")).json()
        assert not client.backend.running
        return one, two, stopped, done

    one, two, stopped, done = asyncio.run(run())
    assert one["status"] == two["status"] == "queued" and stopped["status"] == "cancelled" and stopped["id"] == two["id"]
    assert done["status"] == "completed" and done["output"][0]["content"][0]["text"] == "a b"


def test_what_was_being_made_when_the_server_ended_has_failed(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    client.backend._delay_s = 0.05
    number = client.post(MAKE, model="m", input="a " * 100, background=True)["id"]  # its event loop ends with the request
    with closing(sqlite3.connect(tmp_path / "responses.sqlite")) as db:
        (body,) = db.execute("SELECT body FROM responses").fetchone()
        undone = {**json.loads(body), "status": "queued"}
        db.execute("UPDATE responses SET body = ?", (json.dumps(undone),))
        db.commit()
    asyncio.run(client.service.close())
    told = Client(home=tmp_path).ask("GET", f"{MAKE}/{number}").json()
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")


def test_only_background_responses_are_cancelled(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    told = client.post(MAKE, model="m", input="x")
    assert client.ask("POST", f"{MAKE}/{told['id']}/cancel").json()["error"]["param"] == "response_id"


def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    now = 1e9

    def body(number: str, previous: str | None = None) -> dict[str, Any]:
        return {"id": number, "created_at": now, "previous_response_id": previous, "output": [], "status": "completed"}

    async def run() -> None:
        nonlocal now
        store = ResponseStore(tmp_path / "a" / "kept.sqlite", lambda: now)
        await store.put("me", body("r1"), [{"content": "'; DROP TABLE responses; --"}])
        await store.put("you", body("r2", "r1"), [])
        assert (await store.get("me", "r1"))["id"] == "r1"
        assert await store.before("me", "r1", 9) == [{"content": "'; DROP TABLE responses; --"}]
        for owner, number in (("you", "r1"), ("me", "r2"), ("me", "' OR 1=1 --")):
            for work in (store.get(owner, number), store.delete(owner, number), store.before(owner, number, 9)):
                with pytest.raises(NotFound):
                    await work
        with pytest.raises(NotFound):
            await store.before("you", "r2", 9)
        assert (tmp_path / "a" / "kept.sqlite").stat().st_mode & 0o777 == 0o600
        now += KEPT_S + 1
        await store.database.close()
        await ResponseStore(tmp_path / "a" / "kept.sqlite", lambda: now).put("me", body("r3"), [])
        unmade = ResponseStore(tmp_path / "b" / "kept.sqlite", lambda: now)
        with pytest.raises(NotFound):
            await unmade.get("me", "r1")
        assert not (tmp_path / "b").exists()

    asyncio.run(run())
    with closing(sqlite3.connect(tmp_path / "a" / "kept.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM responses").fetchone() == (1,)
