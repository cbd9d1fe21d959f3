"""Files and batches: forms read strictly, rows answered like requests, results that survive, nobody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from khola.errors import AskedWrong, KholaError, NoRoom
from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.engines.echo import Echo
from khola.serve.http.multipart import parts
from khola.serve.kept import offline, stored
from khola.serve.kept.stored import Stored
from khola.serve.service import Service
from khola.settings import Settings
from tests.serve.others.server import client, service

CHAT = "/v1/chat/completions"


def row(name: str, text: str = "hi", url: str = CHAT, **more: Any) -> dict[str, Any]:
    return {
        "custom_id": name,
        "method": "POST",
        "url": url,
        "body": {"model": "m", "messages": [{"role": "user", "content": text}], **more},
    }


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in rows)


def home(path: Path, backend: Any = None, **more: Any) -> Service:
    return service(backend, settings=Settings(home=path, user_home=path), **more)


@asynccontextmanager
async def server(served: Service, key: str = "") -> AsyncIterator[httpx2.AsyncClient]:
    """A client; what was begun behind it is closed in the end."""
    async with client(served) as http:
        if key:
            http.headers["authorization"] = f"Bearer {key}"
        yield http
    await served.close()


async def upload(http: httpx2.AsyncClient, content: bytes, **fields: str) -> httpx2.Response:
    return await http.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "batch", **fields})


async def begin(http: httpx2.AsyncClient, *rows: Any, endpoint: str = CHAT) -> dict[str, Any]:
    key = (await upload(http, jsonl(*rows))).json()["id"]
    answer = await http.post("/v1/batches", json={"input_file_id": key, "endpoint": endpoint, "completion_window": "24h"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(http: httpx2.AsyncClient, key: str) -> dict[str, Any]:
    for _ in range(500):
        found: dict[str, Any] = (await http.get(f"/v1/batches/{key}")).json()
        if found["status"] in stored.ENDS:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"it does not end: {found}")


async def lines(http: httpx2.AsyncClient, key: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await http.get(f"/v1/files/{key}/content")).text.splitlines()]


def test_rows_are_answered_like_requests(tmp_path: Path) -> None:
    async def road() -> None:
        async with server(home(tmp_path)) as http:
            asked = [row(str(number), f"উত্তর {number}") for number in range(9)] + [row("bad", colour=1), row("stream", stream=True)]
            batch = await ended(http, (await begin(http, *asked))["id"])
            assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 11, "completed": 9, "failed": 2})
            told = await lines(http, batch["output_file_id"])
            assert [(one["custom_id"], one["response"]["body"]["choices"][0]["message"]["content"]) for one in told] == [
                (str(number), f"উত্তর {number}") for number in range(9)
            ]
            failed = {one["custom_id"]: one["response"] for one in await lines(http, batch["error_file_id"])}
            assert {name: answer["status_code"] for name, answer in failed.items()} == {"bad": 400, "stream": 400}
            assert failed["bad"]["body"]["error"]["param"] == "colour"

    asyncio.run(road())


@pytest.mark.parametrize(("endpoint", "body", "key"), [
    ("/v1/embeddings", {"model": "m", "input": "a"}, "data"),
    ("/v1/completions", {"model": "m", "prompt": "a"}, "choices"),
    ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}, "content"),
])  # fmt: skip
def test_every_endpoint_and_the_shape_of_its_errors(tmp_path: Path, endpoint: str, body: dict[str, Any], key: str) -> None:
    async def road() -> None:
        async with server(home(tmp_path)) as http:
            both = [{**row("a", url=endpoint), "body": body}, {**row("b", url=endpoint), "body": {"model": 1}}]
            batch = await ended(http, (await begin(http, *both, endpoint=endpoint))["id"])
            (right,), (wrong,) = await lines(http, batch["output_file_id"]), await lines(http, batch["error_file_id"])
            assert key in right["response"]["body"]
            assert (wrong["response"]["body"].get("type") == "error") == (endpoint == "/v1/messages")

    asyncio.run(road())


def test_results_survive_the_server(tmp_path: Path) -> None:
    """The second server answers only what the first one had not, and tells the results of both."""

    async def first() -> str:
        backend = Echo(delay_s=0.01)
        async with server(home(tmp_path, backend)) as http:
            key: str = (await begin(http, *(row(str(number)) for number in range(30))))["id"]
            while (await http.get(f"/v1/batches/{key}")).json()["request_counts"]["completed"] < 5:
                await asyncio.sleep(0.005)
        return key

    async def second(key: str) -> None:
        backend = Echo()
        served = home(tmp_path, backend)
        async with server(served) as http:
            before = (await http.get(f"/v1/batches/{key}")).json()["request_counts"]["completed"]
            assert 5 <= before < 30
            served.offline.go_on()
            batch = await ended(http, key)
            assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0} and backend.started == 30 - before
            assert [one["custom_id"] for one in await lines(http, batch["output_file_id"])] == [str(number) for number in range(30)]

    asyncio.run(second(asyncio.run(first())))


def test_a_batch_is_cancelled_and_keeps_what_it_has(tmp_path: Path) -> None:
    async def road() -> None:
        async with server(home(tmp_path, Echo(delay_s=0.01))) as http:
            key = (await begin(http, *(row(str(number)) for number in range(200))))["id"]
            while (await http.get(f"/v1/batches/{key}")).json()["request_counts"]["completed"] < 3:
                await asyncio.sleep(0.005)
            assert (await http.post(f"/v1/batches/{key}/cancel")).json()["status"] == "cancelling"
            batch = await ended(http, key)
            done = batch["request_counts"]["completed"]
            assert batch["status"] == "cancelled" and 3 <= done < 200
            assert len(await lines(http, batch["output_file_id"])) == done

    asyncio.run(road())


class Crowded(Echo):
    """Others wait before the batch, and then there is no room for it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.refused = 0, 0

    async def figures(self) -> dict[str, dict[str, float]]:
        self.looks += 1
        return {"m": {"waiting": float(self.looks < 3)}}

    async def start(self, job: Any, model: str) -> Any:
        assert self.looks >= 3, "a row went before those that wait"
        self.refused += 1
        if self.refused < 3:
            raise NoRoom("full")
        return await super().start(job, model)


def test_others_go_first_and_a_full_server_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "PATIENCE_S", 0.01)

    async def road() -> None:
        backend = Crowded()
        async with server(home(tmp_path, backend)) as http:
            batch = await ended(http, (await begin(http, row("a")))["id"])
            assert (batch["request_counts"]["completed"], backend.refused) == (1, 3)

    asyncio.run(road())


@pytest.mark.parametrize(("content", "line", "words"), [
    (b"", None, "no rows"),
    (b"{\n", 1, "JSON"),
    (jsonl(row("a"), row("a")), 2, "custom_id"),
    (jsonl(row("a", url="/v1/embeddings")), 1, "expected POST"),
    (jsonl({**row("a"), "more": 1}), 1, "more"),
    (jsonl({**row("a"), "body": []}), 1, "object"),
    (b'{"custom_id":"a","custom_id":"b"}', 1, ""),
])  # fmt: skip
def test_a_file_of_wrong_rows_fails_with_their_lines(tmp_path: Path, content: bytes, line: int | None, words: str) -> None:
    async def road() -> None:
        async with server(home(tmp_path)) as http:
            key = (await upload(http, content)).json()["id"]
            asked = {"input_file_id": key, "endpoint": CHAT, "completion_window": "24h"}
            batch = await ended(http, (await http.post("/v1/batches", json=asked)).json()["id"])
            (wrong,) = batch["errors"]["data"]
            assert (batch["status"], wrong["line"]) == ("failed", line) and words in wrong["message"]

    asyncio.run(road())


def test_files_are_kept_listed_and_deleted(tmp_path: Path) -> None:
    async def road() -> None:
        now = 1000.0
        async with server(home(tmp_path, clock=lambda: now)) as http:
            keys = [(await upload(http, bytes([number]))).json()["id"] for number in range(3)]
            brief = (await upload(http, b"x", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})).json()
            assert (brief["expires_at"], brief["filename"], brief["status"]) == (4600, "rows.jsonl", "processed")
            now = 4601.0
            assert (await http.get(f"/v1/files/{brief['id']}")).status_code == 404
            listed = (await http.get("/v1/files", params={"limit": 2})).json()
            assert ([one["id"] for one in listed["data"]], listed["has_more"]) == ([keys[2], keys[1]], True)
            rest = (await http.get("/v1/files", params={"after": keys[1], "order": "desc"})).json()
            assert ([one["id"] for one in rest["data"]], rest["has_more"]) == ([keys[0]], False)
            assert (await http.get(f"/v1/files/{keys[2]}/content")).content == b"\x02"
            assert (await http.delete(f"/v1/files/{keys[2]}")).json() == {"id": keys[2], "deleted": True, "object": "file"}
            assert (await http.delete(f"/v1/files/{keys[2]}")).status_code == 404

    asyncio.run(road())


def test_nobody_sees_or_touches_what_is_anothers(tmp_path: Path) -> None:
    async def road() -> None:
        keys = Keys(tmp_path / "keys.json")
        mine, yours = keys.new(("infer",)), keys.new(("infer",))
        served = home(tmp_path, guard=Guard(auth="keys", keys=keys))
        async with server(served, mine) as http:
            batch = await ended(http, (await begin(http, row("a")))["id"])
            again = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
            verbs: list[Callable[[], Awaitable[httpx2.Response]]] = [
                lambda: http.get(f"/v1/batches/{batch['id']}"),
                lambda: http.post(f"/v1/batches/{batch['id']}/cancel"),
                lambda: http.get(f"/v1/files/{batch['output_file_id']}"),
                lambda: http.get(f"/v1/files/{batch['output_file_id']}/content"),
                lambda: http.post("/v1/batches", json=again),
                lambda: http.delete(f"/v1/files/{batch['output_file_id']}"),
            ]
            http.headers["authorization"] = f"Bearer {yours}"
            assert [(await verb()).status_code for verb in verbs] == [404] * len(verbs)
            assert (await http.get("/v1/files")).json()["data"] == (await http.get("/v1/batches")).json()["data"] == []
            http.headers["authorization"] = f"Bearer {mine}"
            assert [(await verb()).status_code for verb in verbs] == [200] * len(verbs)

    asyncio.run(road())


def test_room_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "OWNER_FILES", 2)
    monkeypatch.setattr(stored, "OWNER_BATCHES", 1)

    async def road() -> None:
        async with server(home(tmp_path, Echo(delay_s=1))) as http:
            batch = await begin(http, row("a"))
            again = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
            assert (await http.post("/v1/batches", json=again)).status_code == 429
            assert [(await upload(http, b"x")).status_code for _ in range(2)] == [200, 429]

    asyncio.run(road())


def test_a_damaged_or_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "offline.sqlite3"
    path.write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(KholaError, match="offline"):
        Stored(path)
    path.unlink()
    Stored(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


KIND = "multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


def test_forms() -> None:
    named = FIELD.replace(b'"\r\n', b'"; filename="a\xe0\xa6\x95"\r\n', 1)
    body = FIELD % (b"purpose", b"batch") + named % (b"file", b"\r\n--x\r\n") + b"--b--\r\n"
    form = parts('multipart/form-data; boundary="b"', body)
    assert (form["purpose"].content, form["purpose"].filename) == (b"batch", None)
    assert (form["file"].content, form["file"].filename) == (b"\r\n--x\r\n", "aক")


@pytest.mark.parametrize(("kind", "body"), [
    ("multipart/form-data", b"--b--"),
    ("application/json", b"--b--"),
    (KIND, b""),
    (KIND, b"x--b--"),
    (KIND, FIELD % (b"a", b"b")),
    (KIND, FIELD % (b"a", b"b") * 2 + b"--b--"),
    (KIND, b"".join(FIELD % (str(number).encode(), b"") for number in range(20)) + b"--b--"),
    (KIND, b"--b\r\n\r\nx\r\n--b--"),
    (KIND, b'--b\r\nContent-Disposition: form-data; name="a"\r\nX: ' + b"y" * 9000 + b"\r\n\r\nx\r\n--b--"),
    (KIND, b'--b\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--b--'),
    (KIND, b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--'),
])  # fmt: skip
def test_forms_that_cannot_be_read(kind: str, body: bytes) -> None:
    with pytest.raises(AskedWrong):
        parts(kind, body)
