"""Batches at work: the rows of a file, answered one by one while nobody waits for anything else.

A row is answered by the same operation that answers a request, so it means the same. Its result is on the disk before the next row of its
place begins; a server that starts again goes on behind the last one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from khola.errors import AskedWrong, BadJson, KholaError, NoRoom, NotFound, OurFault, TooMany
from khola.serve.http.refusal import message_of
from khola.serve.kept.stored import BATCH_ROWS, Batch, Counts, File, Stored, Wrong, Wrongs
from khola.serve.operation import Caller, Operation
from khola.store.strict_json import load_json

if TYPE_CHECKING:
    from khola.serve.service import Service

T = TypeVar("T")
ErrorBody = Callable[[KholaError, str], dict[str, Any]]
AT_ONCE = 4
"""Rows that are answered side by side."""
PATIENCE_S = 0.5
"""How long to let others go first before looking again."""
RESULT_S = 3600.0
"""How long a row may take."""


class Offline:
    """The files and batches of a server, and the work on them.

    Args:
        service: the server, whose operations answer the rows.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.shapes: dict[str, ErrorBody] = {}
        """What a row may ask, by path, and what an error looks like there."""
        self.stored = service.store("offline.sqlite3", Stored)
        self._work: asyncio.Task[None] | None = None

    async def ask(self, method: Callable[..., T], *values: Any, **fields: Any) -> T:
        """What a method of `Stored` answers, in a thread."""
        return await self.stored.ask(method, *values, **fields)

    def wake(self) -> None:
        """There is work: begin, if nobody works yet."""
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())

    def go_on(self) -> None:
        """The server has started: go on with what an earlier one left."""
        if self.stored.there:
            self.wake()

    async def close(self) -> None:
        """Stop working; what is not answered yet is answered after the next start."""
        if self._work is not None and not self._work.done():
            self._work.cancel()
            await asyncio.wait({self._work})

    async def _run(self) -> None:
        """Work on batches, the oldest first, until none is left."""
        try:
            while waiting := await self.ask(Stored.unended):
                owner, tenant, batch = waiting[0]
                now = self.service.clock()
                caller = self.service.guard.known(owner, now) or Caller(name=owner, scopes=frozenset({"infer"}), tenant=tenant)
                self.service.account(caller)
                try:
                    await self._answer(caller, batch)
                except KholaError as error:
                    await self._fail(owner, batch, Wrong(code=error.code, message=message_of(error)))
        except Exception as wrong:
            self.service.log.failure("batches stopped", wrong)

    async def _answer(self, caller: Caller, batch: Batch) -> None:
        """One batch, from where it stands to its end."""
        owner, now = caller.name, self._now()
        raw = await self.ask(Stored.content, owner, batch.input_file_id, now)
        rows = await asyncio.to_thread(rows_of, raw, batch.endpoint, self.service.limits.body_bytes)
        if isinstance(rows, Wrongs):
            await self.ask(Stored.change, owner, batch.id, status="failed", failed_at=now, errors=rows)
            return
        begun = {"status": "in_progress", "in_progress_at": now, "request_counts": Counts(total=len(rows))}
        await self.ask(Stored.change, owner, batch.id, only_from="validating", **begun)
        done = await self.ask(Stored.rows_done, batch.id)
        left = iter([(number, row) for number, row in enumerate(rows) if number not in done])
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._some(caller, batch, left))
        await self._finish(owner, batch.id)

    async def _some(self, caller: Caller, batch: Batch, left: Iterator[tuple[int, dict[str, Any]]]) -> None:
        """Answer rows as long as there are any and nobody has cancelled the batch."""
        for number, row in left:
            if (await self.ask(Stored.batch, caller.name, batch.id)).status != "in_progress":
                return
            status, body = await self._row(caller, batch.endpoint, row["body"])
            failed = status >= 400
            told = {
                "id": f"{batch.id}_{number}",
                "custom_id": row["custom_id"],
                "response": {"status_code": status, "request_id": f"{batch.id}_{number}", "body": body},
                "error": None,
            }
            await self.ask(Stored.add_result, batch.id, number, failed, json.dumps(told, ensure_ascii=not self.service.raw_utf8).encode())

    async def _row(self, caller: Caller, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of the answer to a row; a full server is asked again later."""
        operation = next(one for one in self.service.operations if one.path == endpoint and one.method == "POST")
        shape, raw, loop = self.shapes[endpoint], json.dumps(body).encode(), asyncio.get_running_loop()
        while True:
            await self._let_others_go_first()
            try:
                async with self.service.deadlines.until(loop.time() + RESULT_S):
                    answer = await operation.run(_request(operation, caller, raw))
            except (NoRoom, TooMany):
                await asyncio.sleep(PATIENCE_S)
            except KholaError as error:
                return error.http_status, shape(error, "")
            except Exception as wrong:
                self.service.log.failure("row failed", wrong)
                return 500, shape(OurFault("{kind}: {what}", kind=type(wrong).__name__, what=str(wrong)), "")
            else:
                if not isinstance(answer, Response):
                    return 400, shape(AskedWrong("a row of a batch cannot be a stream", hint="take stream out", param="stream"), "")
                return answer.status_code, json.loads(bytes(answer.body))

    async def _let_others_go_first(self) -> None:
        """Wait while requests wait."""
        while any(figures.get("waiting", 0) > 0 for figures in (await self.service.backend.figures()).values()):
            await asyncio.sleep(PATIENCE_S)

    async def _finish(self, owner: str, key: str) -> None:
        """Put the results into files, and say that the batch has ended."""
        batch = await self.ask(Stored.batch, owner, key)
        files = {
            "output_file_id": await self._result_file(owner, batch, False),
            "error_file_id": await self._result_file(owner, batch, True),
        }
        cancelled, now = batch.status == "cancelling", self._now()
        ends = {"status": "cancelled", "cancelled_at": now} if cancelled else {"status": "completed", "completed_at": now}
        await self.ask(Stored.change, owner, key, **files, **ends, finalizing_at=None if cancelled else now)
        await self.ask(Stored.forget_results, key)

    async def _result_file(self, owner: str, batch: Batch, failed: bool) -> str | None:
        """The file of results; None where there are none. Its id follows from the batch, so that a second try makes no second file."""
        lines = await self.ask(Stored.results, batch.id, failed)
        if not lines:
            return None
        kind = "error" if failed else "output"
        key = f"file-{batch.id.removeprefix('batch_')}{kind}"
        file = File(id=key, bytes=len(lines), created_at=self._now(), filename=f"{batch.id}_{kind}.jsonl", purpose="batch_output")
        try:
            await self.ask(Stored.file, owner, key, self._now())
        except NotFound:
            await self.ask(partial(Stored.add_file, bounded=False), owner, file, lines)
        return key

    async def _fail(self, owner: str, batch: Batch, why: Wrong) -> None:
        await self.ask(Stored.change, owner, batch.id, status="failed", failed_at=self._now(), errors=Wrongs(data=(why,)))

    def _now(self) -> int:
        return int(self.service.clock())


def rows_of(raw: bytes, endpoint: str, most_bytes: int) -> list[dict[str, Any]] | Wrongs:
    """The rows of a batch's file, or what is wrong with them."""
    rows: list[dict[str, Any]] = []
    wrongs: list[Wrong] = []
    names: set[str] = set()
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        why, param = _row_wrong(row := _row_of(line, most_bytes), endpoint, names)
        if why:
            wrongs.append(Wrong(code="invalid_row", message=why, line=number, param=param))
        else:
            rows.append(row)
        if len(wrongs) >= 20:
            break
    if not rows and not wrongs:
        wrongs.append(Wrong(code="empty_file", message="the file has no rows"))
    if len(rows) > BATCH_ROWS:
        wrongs.append(Wrong(code="too_many_rows", message=f"the file has {len(rows)} rows; at most {BATCH_ROWS} are taken"))
    return Wrongs(data=tuple(wrongs)) if wrongs else rows


def _row_of(line: bytes, most_bytes: int) -> Any:
    try:
        return load_json(line, file="a row", max_bytes=most_bytes)
    except BadJson as wrong:
        return wrong.told()


def _row_wrong(row: Any, endpoint: str, names: set[str]) -> tuple[str, str | None]:
    """What is wrong with a row, and with which of its keys; empty when nothing is."""
    if not isinstance(row, dict):
        return (row if isinstance(row, str) else "expected an object"), None
    if unknown := sorted(set(row) - {"custom_id", "method", "url", "body"}):
        return f"there is no field {unknown[0][:100]} here", unknown[0][:100]
    name = row.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= 512 or name in names:
        return "expected a custom_id that no other row has", "custom_id"
    names.add(name)
    if row.get("method") != "POST" or row.get("url") != endpoint:
        return f"expected POST to {endpoint}", "url"
    return ("", None) if isinstance(row.get("body"), dict) else ("expected an object", "body")


def _request(operation: Operation, caller: Caller, raw: bytes) -> Request:
    """A request as an operation reads it, which came over no wire."""
    state = {"caller": caller, "request_id": "batch", "deadline": asyncio.get_running_loop().time() + RESULT_S}
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    scope = {"type": "http", "method": operation.method, "path": operation.path, "query_string": b"", "headers": headers, "state": state}

    async def receive() -> Any:
        return {"type": "http.request", "body": raw, "more_body": False}

    return Request(scope, receive)
