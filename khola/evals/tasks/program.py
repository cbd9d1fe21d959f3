"""The program in a model's answer: a fenced block of a chat answer, or a completion up to where it stops being the function.

Source   stop sequences of the completion form: "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, section 2.1.
"""

from __future__ import annotations

import re

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n@", "\nassert ", "\nimport ", "\nfrom ", "\n```", '\n"""')
"""What ends a completion of a function's body: something that begins at the left margin."""
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = frozenset({"", "python", "python3", "py", "pycon"})
_SIGNS = frozenset({"def ", "class ", "import ", "from ", "@", "async def "})


def from_chat(answer: str, name: str = "") -> str:
    """The Python program in a chat answer.

    Args:
        answer: the whole text; thoughts are left out before it comes here.
        name: the function that is wanted.
    Returns:
        The last fenced Python block that defines `name`, after the blocks of helpers before it; without one the last Python block; without
        fences the lines from the first definition or import on. Empty when there is nothing of the kind.
    """
    blocks: list[str] = [body for _, language, body in _FENCE.findall(answer) if language.lower() in _PYTHON]
    if not blocks:
        return _bare(answer)
    wanted = [
        number for number, body in enumerate(blocks) if name and re.search(rf"^\s*(async\s+)?def\s+{re.escape(name)}\b", body, re.MULTILINE)
    ]
    if not wanted:
        return blocks[-1]
    kept = [body for body in blocks[: wanted[-1]] if _stands_alone(body)]
    return "\n".join([*kept, blocks[wanted[-1]]])


def _stands_alone(body: str) -> bool:
    """Whether a block begins at the left margin with a definition or an import: a helper, not a call to show."""
    return body.lstrip("\n").startswith(tuple(_SIGNS))


def _bare(answer: str) -> str:
    """The lines of an answer without fences that may be a program."""
    lines = answer.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(tuple(_SIGNS))]
    return "\n".join(lines[starts[0] :]) if starts else ""


def from_completion(completion: str) -> str:
    """The part of a completion that still belongs to the function whose head the prompt was."""
    ends = [place for stop in STOPS if (place := completion.find(stop)) >= 0]
    return completion[: min(ends)] if ends else completion


def indented(body: str) -> str:
    """A body moved to four spaces, where a chat model wrote it at the left margin."""
    lines = body.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not first or first[0] in " \t":
        return body
    return "\n".join("    " + line if line.strip() else line for line in lines)
