"""Requests made from the server's own description: right ones, nearly right ones, and what no client should send."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WORDS = [
    "",
    " ",
    "\ufeff",
    "\x00",
    "a",
    "echo",
    "hello there",
    "আমার সোনার বাংলা",
    "ক্ষ" * 40,
    "👩‍👩‍👧",
    "\u202e",
    "\r\nX: y",
    "\x1b[2J",
    "a" * 5000,
    "(" * 3000,
    "' OR 1=1 --",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\boot.ini",
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "%00",
    "\\",
    '"',
    "NaN",
    "true",
    "-1",
    "hf:org/name",
    "model:latest",
]
NUMBERS = [0, 1, -1, 2, 8, 9, 128, 1024, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e-300, 1e308]
ODD = [None, True, False, [], {}, [[]], [None], {"": ""}, "1", 1.0, 8.0, [1, "a", None], {"a": {"b": {"c": []}}}]
RAW = [
    b"",
    b"{",
    b"[",
    b"null",
    b"1",
    b'"x"',
    b"[]",
    b"{}",
    b"{}{}",
    b'{"prompt":NaN}',
    b'{"prompt":1e999}',
    b'{"prompt":"a","prompt":"b"}',
    b'{"prompt":"\\ud800"}',
    b'{"prompt":"\xff"}',
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"[" * 10_000,
    b'{"a":' * 5000,
    b'{"prompt":"' + b"a" * 100_000,
    b'{"deep":' + b"[" * 63 + b"]" * 63 + b"}",
    b"{" + b'"a":1,' * 200_000 + b'"b":1}',
    b'{"prompt":' + b"9" * 5000 + b"}",
    b"{'prompt':'a'}",
    b'{"prompt":"a"}//',
    b'{"prompt":+1}',
    b'{"prompt":0x10}',
    b"\x1f\x8b\x08\x00",
    b"a=b&c=d",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--",
    b'{"__proto__":{}}',
    b'{"prompt":"a","temperature":-Infinity}',
    b" " * 50_000 + b"{}",
    "{\u2028}".encode(),
]
HEADERS: list[dict[str, str]] = [
    {},
    {},
    {},
    {},
    {"accept": "text/html"},
    {"range": "bytes=" + ",".join("0-1" for _ in range(500))},
    {"expect": "100-continue"},
    {"content-type": "text/plain"},
    {"content-type": ""},
    {"content-type": "application/json; charset=utf-16"},
    {"cookie": "a=b"},
    {"content-type": "multipart/form-data"},
    {"x-forwarded-for": "1.2.3.4"},
    {"x-http-method-override": "DELETE"},
    {"x-request-id": "a\x1b[31m"},
    {"content-length": "-1"},
    {"content-length": "99999999999999999999"},
    {"content-length": "1e3"},
    {"transfer-encoding": "chunked"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer kh_"},
    {"authorization": "Digest x"},
    {"host": "evil.com"},
    {"origin": "null"},
    {"x-conversation-id": "../x"},
    {"last-event-id": "-1"},
    {"if-none-match": "*"},
    {"upgrade": "websocket", "connection": "upgrade"},
]


@dataclass
class Made:
    """One request."""

    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    operation: dict[str, Any] | None
    """How the server describes it; None where the path is not there."""


def requests(document: dict[str, Any], count: int, seed: int) -> Iterator[Made]:
    """So many requests, most of them nearly right."""
    dice = random.Random(seed)
    writer = Writer(document, dice)
    known = [(method.upper(), path, told) for path, methods in document["paths"].items() for method, told in methods.items()]
    writing = [entry for entry in known if "requestBody" in entry[2]]
    for number in range(count):
        method, path, told = dice.choice(writing if writing and number % 4 else known)
        yield writer.request(method, path, told)


class Writer:
    """Writes requests to operations by their schemas."""

    def __init__(self, document: dict[str, Any], dice: random.Random) -> None:
        self._schemas = document["components"]["schemas"]
        self._dice = dice

    def request(self, method: str, path: str, told: dict[str, Any]) -> Made:
        """A request that this operation may or may not like."""
        dice = self._dice
        for parameter in told.get("parameters", ()):
            path = path.replace("{" + parameter["name"] + "}", dice.choice(WORDS)[:200])
        headers, body = dict(dice.choice(HEADERS)), None
        if "requestBody" in told:
            kind, content = next(iter(told["requestBody"]["content"].items()))
            if kind:
                headers.setdefault("content-type", kind)
            body = dice.choice(RAW) if dice.random() < 0.1 else self._written(self.value(content["schema"]))
        elif dice.random() < 0.2:
            body = dice.choice(RAW)
        if dice.random() < 0.03:
            method, told = dice.choice(["PUT", "PATCH", "DELETE", "TRACE", "QUERY", "get", ""]), {}
        if dice.random() < 0.03:
            path, told = path + dice.choice(["/", "/x", "//", "%2e%2e", "?x=1", ";a", "\u0995"]), {}
        return Made(method, path, body, headers, told or None)

    def _written(self, value: Any) -> bytes:
        return json.dumps(value, allow_nan=self._dice.random() < 0.02, ensure_ascii=self._dice.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value of a schema; one in twelve is not."""
        dice = self._dice
        if dice.random() < 0.08 or depth > 8:
            return dice.choice([*WORDS, *NUMBERS, *ODD])
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        if "anyOf" in schema:
            return self.value(dice.choice(schema["anyOf"]), depth + 1)
        if "enum" in schema or "const" in schema:
            return dice.choice(schema["enum"]) if "enum" in schema else schema["const"]
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [self.value(schema.get("items") or {}, depth + 1) for _ in range(dice.choice([0, 1, 1, 2, 3, 20]))]
        if kind in ("integer", "number"):
            low, high = schema.get("minimum", -3), schema.get("maximum", 100)
            number = dice.choice([low, high, low - 1, high + 1, dice.choice(NUMBERS), dice.uniform(low, high)])
            return int(number) if kind == "integer" and dice.random() < 0.9 else number
        return {"string": dice.choice(WORDS), "boolean": dice.random() < 0.5, "null": None}.get(str(kind), dice.choice(ODD))

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        dice, required = self._dice, set(schema.get("required", ()))
        names = [name for name in schema.get("properties", {}) if dice.random() < (0.95 if name in required else 0.3)]
        found = {name: self.value(schema["properties"][name], depth + 1) for name in names}
        if dice.random() < 0.04:
            found[dice.choice(WORDS)] = dice.choice(ODD)
        return found
