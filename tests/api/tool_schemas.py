"""Schemas of tools as clients send them: MCP servers, pydantic, zod and hand-written ones, with their ornaments."""

from __future__ import annotations

from typing import Any

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TEXT = {"type": "string"}

WHOLE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "read_file": {
        "type": "object",
        "properties": {
            "path": TEXT,
            "tail": {"type": "number", "description": "If provided, returns only the last N lines of the file"},
            "head": {"type": "number", "description": "If provided, returns only the first N lines of the file"},
        },
        "required": ["path"],
        "additionalProperties": False,
        "$schema": DRAFT_7,
    },
    "edit_file": {
        "type": "object",
        "properties": {
            "path": TEXT,
            "edits": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"oldText": {**TEXT, "description": "Text to search for"}, "newText": TEXT},
                    "required": ["oldText", "newText"],
                    "additionalProperties": False,
                },
            },
            "dryRun": {"type": "boolean", "default": False, "description": "Preview changes using git-style diff format"},
        },
        "required": ["path", "edits"],
        "additionalProperties": False,
        "$schema": DRAFT_7,
    },
    "fetch": {
        "description": "Parameters for fetching a URL.",
        "properties": {
            "url": {"description": "URL to fetch", "format": "uri", "minLength": 1, "title": "Url", "type": "string"},
            "max_length": {"default": 5000, "exclusiveMaximum": 1000000, "exclusiveMinimum": 0, "title": "Max Length", "type": "integer"},
            "start_index": {"default": 0, "minimum": 0, "title": "Start Index", "type": "integer"},
            "raw": {"default": False, "title": "Raw", "type": "boolean"},
        },
        "required": ["url"],
        "title": "Fetch",
        "type": "object",
    },
    "create_issue": {
        "type": "object",
        "properties": {
            "owner": {**TEXT, "examples": ["octocat"]},
            "labels": {"type": "array", "items": TEXT},
            "state": {"type": "string", "enum": ["open", "closed"], "default": "open"},
            "milestone": {"type": ["integer", "null"]},
            "per_page": {"type": "number", "minimum": 1, "maximum": 100},
        },
        "required": ["owner"],
        "additionalProperties": True,
    },
    "book": {
        "$defs": {
            "Person": {
                "properties": {
                    "name": {"title": "Name", "type": "string"},
                    "born": {"anyOf": [{"format": "date", "type": "string"}, {"type": "null"}], "default": None, "title": "Born"},
                },
                "required": ["name"],
                "title": "Person",
                "type": "object",
            },
            "Kind": {"enum": ["একক", "দ্বৈত"], "title": "Kind", "type": "string"},
        },
        "properties": {
            "id": {"format": "uuid", "title": "Id", "type": "string"},
            "at": {"format": "date-time", "title": "At", "type": "string"},
            "site": {"anyOf": [{"format": "uri", "type": "string"}, {"type": "null"}], "default": None},
            "kind": {"$ref": "#/$defs/Kind", "default": "একক"},
            "guests": {"items": {"$ref": "#/$defs/Person"}, "maxItems": 3, "title": "Guests", "type": "array"},
            "extra": {"additionalProperties": {"type": "integer"}, "title": "Extra", "type": "object"},
        },
        "required": ["id", "at", "guests"],
        "title": "Book",
        "type": "object",
    },
}
"""All of these can be held, where arguments are JSON."""

PARTLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unique": ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, {"type": "array", "items": {"enum": [1, 2]}}),
    "not": ({"type": "integer", "not": {"const": 0}, "maximum": 9}, {"type": "integer", "maximum": 9}),
    "format": ({"type": "string", "format": "uri-reference", "maxLength": 9}, {"type": "string", "maxLength": 9}),
    "byte": ({"type": "string", "format": "byte"}, TEXT),
    "if": ({"type": "object", "if": {}, "then": {}, "required": ["b"]}, {"type": "object", "required": ["b"]}),
    "zod": (
        {"type": "object", "propertyNames": TEXT, "additionalProperties": {"enum": [1]}},
        {"type": "object", "additionalProperties": {"enum": [1]}},
    ),
    "older list": ({"type": "array", "items": [TEXT], "additionalItems": False}, {"type": "array"}),
    "older bound": ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, {"type": "integer", "minimum": 3}),
    "elsewhere": ({"$ref": "https://example.org/x.json"}, {}),
    "nowhere": ({"$ref": "#/$defs/none"}, {}),
    "look ahead": ({"type": "string", "pattern": "^(?!a)b", "maxLength": 5}, {"type": "string", "maxLength": 5}),
    "openapi": ({"type": "string", "nullable": True, "enum": ["a", "b"], "x-order": 1}, {"type": "string", "enum": ["a", "b"]}),
    "one of": (
        {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}], "discriminator": {"propertyName": "a"}},
        {"anyOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]},
    ),
    "within": (
        {"anyOf": [{"type": "array", "items": {"type": "string", "pattern": "(?=a)"}, "maxItems": 1}, {"const": "z"}]},
        {"anyOf": [{"type": "array", "items": TEXT, "maxItems": 1}, {"const": "z"}]},
    ),
}
"""What one argument is to be, and what is held of that where arguments are JSON."""
