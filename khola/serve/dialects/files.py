"""OpenAI's files, which hold the rows and the results of batches."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from khola.errors import AskedWrong, UnknownOption
from khola.serve.dialects.openai.errors import error_body
from khola.serve.http.body import json_response, read_bytes
from khola.serve.http.multipart import Part, parts
from khola.serve.kept.stored import FILE_BYTES, File, Stored
from khola.serve.operation import Operation, caller
from khola.serve.service import Service

__all__ = ["PREFIXES", "error_body", "operations"]
PREFIXES = ("/v1/files",)
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
FORM_BYTES = FILE_BYTES + (64 << 10)
LONGEST_S = 2_592_000
"""Thirty days, OpenAI's own bound."""


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of files."""

    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is no more."""

    id: str
    deleted: bool = True
    object: str = "file"


def operations(service: Service) -> list[Operation]:
    """Bring a file, list, read and delete files."""
    work = service.offline

    async def create(request: Request) -> ASGIApp:
        form = parts(request.headers.get("content-type", ""), await read_bytes(request, FORM_BYTES))
        file, content = uploaded(form, f"file-{service.number()}", int(service.clock()))
        return json_response(service, await work.ask(Stored.add_file, caller(request).name, file, content))

    async def listed(request: Request) -> ASGIApp:
        after, most, order = page(request, 10_000)
        purpose = request.query_params.get("purpose", "")
        found = await work.ask(Stored.files, caller(request).name, purpose, after, most + 1, order == "desc", service.clock())
        shown = found[:most]
        ends = (shown[0].id, shown[-1].id) if shown else (None, None)
        return json_response(service, FileList(data=shown, first_id=ends[0], last_id=ends[1], has_more=len(found) > most))

    async def one(request: Request) -> ASGIApp:
        return json_response(service, await work.ask(Stored.file, caller(request).name, request.path_params["file"], service.clock()))

    async def content(request: Request) -> ASGIApp:
        raw = await work.ask(Stored.content, caller(request).name, request.path_params["file"], service.clock())
        return Response(raw, media_type="application/octet-stream", headers={"content-disposition": "attachment"})

    async def remove(request: Request) -> ASGIApp:
        await work.ask(Stored.remove_file, caller(request).name, request.path_params["file"])
        return json_response(service, Deleted(id=request.path_params["file"]))

    here: dict[str, Any] = {"scope": "infer"}
    form = ("multipart/form-data",)
    return [
        Operation(method="POST", path="/v1/files", run=create, summary="Bring a file", types=form, answer=File, **here),
        Operation(method="GET", path="/v1/files", run=listed, summary="Files of yours", answer=FileList, **here),
        Operation(method="GET", path="/v1/files/{file}", run=one, summary="One of them", answer=File, **here),
        Operation(method="GET", path="/v1/files/{file}/content", run=content, summary="What is in it", **here),
        Operation(method="DELETE", path="/v1/files/{file}", run=remove, summary="Delete it", answer=Deleted, **here),
    ]


def uploaded(form: dict[str, Part], key: str, now: int) -> tuple[File, bytes]:
    """The file that a form brings.

    Raises:
        UnknownOption: a field that khola does not know.
        AskedWrong: a field is missing, or has a value that it cannot have.
    """
    known = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
    if unknown := next((name for name in form if name not in known), ""):
        raise UnknownOption("there is no field {param} here", hint="remove it: khola ignores nothing in silence", param=unknown[:100])
    if "file" not in form or form["file"].filename is None:
        raise AskedWrong("{param} is missing", param="file")
    purpose, expires = _word(form, "purpose"), None
    if purpose not in PURPOSES:
        raise AskedWrong("{param} must be one of {known}", param="purpose", known=", ".join(PURPOSES))
    if "expires_after[seconds]" in form or "expires_after[anchor]" in form:
        seconds = _word(form, "expires_after[seconds]")
        if _word(form, "expires_after[anchor]") != "created_at" or not seconds.isdecimal() or not 3600 <= int(seconds[:9]) <= LONGEST_S:
            raise AskedWrong("a file is kept for 3600 to {limit} seconds from created_at", param="expires_after", limit=LONGEST_S)
        expires = now + int(seconds)
    content = form["file"].content
    name = form["file"].filename or "file"
    return File(id=key, bytes=len(content), created_at=now, filename=name, purpose=purpose, expires_at=expires), content


def _word(form: dict[str, Part], name: str) -> str:
    """A short text of a form; empty where it is missing."""
    return form[name].content[:64].decode("utf-8", "replace") if name in form else ""


def page(request: Request, longest: int) -> tuple[str, int, Literal["asc", "desc"]]:
    """Behind which object a page begins, how long it is, and in which order.

    Raises:
        AskedWrong: it cannot be.
    """
    order = request.query_params.get("order", "desc")
    most = request.query_params.get("limit", str(min(longest, 20 if longest <= 100 else longest)))
    if not most.isdecimal() or not 1 <= int(most[:9]) <= longest:
        raise AskedWrong("limit is {found!r}; expected 1 to {limit}", param="limit", found=most[:20], limit=longest)
    if order not in ("asc", "desc"):
        raise AskedWrong("{param} must be one of {known}", param="order", known="asc, desc")
    return request.query_params.get("after", ""), int(most), "asc" if order == "asc" else "desc"
