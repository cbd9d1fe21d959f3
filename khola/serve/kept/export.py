"""A conversation as a file: JSON with every branch, or Markdown of the branch that is shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from khola.serve.kept.history import Conversation, Kept

FORMAT = "khola-conversation"
VERSION = 1


def as_json(conversation: Conversation, messages: Sequence[Kept]) -> bytes:
    """Everything: the conversation and all its messages, which name their parents."""
    whole = {"format": FORMAT, "version": VERSION, "conversation": conversation, "messages": messages}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2)


def as_markdown(conversation: Conversation, messages: Sequence[Kept]) -> bytes:
    """The shown branch, one heading a message; thoughts are folded."""
    by_id = {message.id: message for message in messages}
    shown: list[Kept] = []
    leaf = conversation.leaf
    while leaf in by_id:
        shown.append(by_id[leaf])
        leaf = shown[-1].parent
    parts = [f"# {conversation.title or conversation.id}"]
    for message in reversed(shown):
        parts.append(f"## {message.model or message.role}" if message.role == "assistant" else f"## {message.role}")
        if message.thinking:
            parts.append(f"<details>\n\n{message.thinking}\n\n</details>")
        parts += [f"```json\n{msgspec.json.encode(call).decode()}\n```" for call in message.tool_calls]
        parts.append(message.content)
    return ("\n\n".join(part for part in parts if part) + "\n").encode()
