"""llama.cpp, driven by its own programs: llama-bench, llama-batched-bench, llama-completion, llama-perplexity.

Its bench times the computation alone, without sampling and text, which khola's figures contain; the comparison leans its way by that much.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from khola.api.bench import Reading
from khola.errors import KholaError, NotInstalled
from khola.evals.bench.figures import names_of
from khola.evals.bench.process import Outcome, late, run_process
from khola.evals.bench.quality import WINDOW, read_logit_file
from khola.evals.bench.race import Task, Turn
from khola.evals.peers.judge import START_CONTEXT, START_PROMPT, START_TOKENS, judged, missing, started
from khola.store.gguf import read_gguf

NAME = "llama.cpp"
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-completion", "llama-perplexity")
VERSION_FILE = "VERSION"
"""A text beside the programs, written by bench/build_llama_cpp.sh; its first line is the version."""
PROMPTS_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """llama.cpp with one GGUF file.

    Args:
        programs: paths of `PROGRAMS`, by their names.
    """

    model: str
    programs: dict[str, str]
    version: str
    name: str = NAME

    def run(self, task: Task) -> Turn:
        """Measure one group; see `Contestant`."""
        turns: dict[str, Callable[[Task], Turn]] = {
            "prefill": self._prefill,
            "decode": self._decode,
            "streams": self._streams,
            "start": self._start,
            "quality": self._quality,
        }
        return turns[task.group](task)

    def _prefill(self, task: Task) -> Turn:
        sizes = ["-p", ",".join(map(str, task.work.prefill)), "-n", "0"]
        return _turn(task, self._bench(task, sizes), lambda row: (f"prefill_{row['n_prompt']}", row["avg_ts"]))

    def _decode(self, task: Task) -> Turn:
        depths = ",".join(map(str, task.work.decode))
        sizes = ["-p", "0", "-n", str(task.work.decode_tokens), "-d", depths]
        turn = _turn(task, self._bench(task, sizes), lambda row: (f"decode_{row['n_depth']}", row["avg_ts"]))
        return Turn([*turn.readings, Reading("bytes_per_token", float(bytes_per_token(Path(self.model))))], turn.detail)

    def _bench(self, task: Task, sizes: Sequence[str]) -> Outcome:
        options = ["-m", self.model, "-t", str(task.threads), "-fa", "on", "-r", "1", "-o", "jsonl"]
        return run_process([self.programs["llama-bench"], *options, *sizes], task.timeout_s)

    def _streams(self, task: Task) -> Turn:
        work = task.work
        context = max(work.streams) * (work.stream_prompt_tokens + work.stream_tokens)
        options = ["-m", self.model, "-t", str(task.threads), "-tb", str(task.threads), "-fa", "on", "-c", str(context)]
        options += ["-b", str(PROMPTS_AT_ONCE), "-npp", str(work.stream_prompt_tokens), "-ntg", str(work.stream_tokens)]
        options += ["-npl", ",".join(map(str, work.streams)), "--output-format", "jsonl"]
        outcome = run_process([self.programs["llama-batched-bench"], *options], task.timeout_s)
        return _turn(task, outcome, lambda row: (f"streams_{row['pl']}", row["speed_tg"]))

    def _start(self, task: Task) -> Turn:
        options = ["-m", self.model, "-t", str(task.threads), "-p", START_PROMPT, "-n", str(START_TOKENS), "-c", str(START_CONTEXT)]
        options += ["--temp", "0", "-no-cnv", "--no-display-prompt", "--no-warmup"]
        return started([self.programs["llama-completion"], *options], task)

    def _quality(self, task: Task) -> Turn:
        if task.text is None or not task.windows:
            return Turn(missing(task, "unsupported"))
        file = task.scratch / "llama.cpp.logits"
        options = ["-m", self.model, "-t", str(task.threads), "-f", str(task.text), "-c", str(WINDOW), "-b", str(WINDOW)]
        outcome = run_process([self.programs["llama-perplexity"], *options, "--save-all-logits", str(file)], task.timeout_s)
        if outcome.code or not file.is_file():
            return Turn(late(names_of(task.group, task.work), [], outcome), outcome.detail)
        try:
            ids, logprobs_RV = read_logit_file(file)
        except KholaError as error:
            return Turn([], error.told())
        finally:
            file.unlink()
        if not _same_windows(ids.tolist(), task.windows):
            return Turn([], "it cut the text into other tokens")
        return Turn(judged(task, logprobs_RV))


def contestant(model: Path, place: str) -> LlamaCpp:
    """llama.cpp for a model's file.

    Args:
        model: a GGUF file.
        place: the folder of its programs; empty to look for them where the shell does.
    Raises:
        NotInstalled: a program is missing, or it cannot read this model.
    """
    if model.suffix.lower() != ".gguf":
        raise NotInstalled(
            "llama.cpp reads GGUF files, and {model} is none", hint="name one: --peer-model llama.cpp=FILE", model=str(model)
        )
    programs = {program: shutil.which(program, path=place or None) for program in PROGRAMS}
    for program, found in programs.items():
        if found is None:
            raise NotInstalled(
                "llama.cpp is not here: there is no {program} in {place}",
                hint="bench/build_llama_cpp.sh FOLDER builds it; then: --peer llama.cpp=FOLDER/bin",
                program=program,
                place=place or "PATH",
            )
    paths = {program: found for program, found in programs.items() if found}
    return LlamaCpp(model=str(model), programs=paths, version=_version(Path(paths["llama-bench"])))


def bytes_per_token(path: Path) -> int:
    """Bytes of weights that one token reads: of experts the chosen; an embedding table that is not the head too gives one row."""
    with read_gguf(path) as file:
        untied = "output.weight" in file.tensors
        of = str(file.metadata.get("general.architecture"))
        experts, chosen = (file.metadata.get(f"{of}.expert_{what}") for what in ("count", "used_count"))
        share = chosen / experts if isinstance(experts, int) and isinstance(chosen, int) and experts else 1.0
        read = {name: tensor.nbytes for name, tensor in file.tensors.items() if not (untied and name == "token_embd.weight")}
    return sum(int(count * share) if "_exps." in name else count for name, count in read.items())


def _version(program: Path) -> str:
    note = program.resolve().parent / VERSION_FILE
    if note.is_file():
        return note.read_text(encoding="utf-8").partition("\n")[0].strip()
    outcome = run_process([str(program.with_name("llama-completion")), "--version"], 20)
    lines = [line for line in (outcome.err + outcome.out).splitlines() if line.startswith("version")]
    return lines[0] if lines else ""


def _turn(task: Task, outcome: Outcome, reading: Callable[[dict[str, Any]], tuple[str, float]]) -> Turn:
    """Readings of the rows that a program printed before it ended or was ended."""
    readings = []
    for row in _rows(outcome.out):
        try:
            name, value = reading(row)
        except KeyError:
            continue
        readings.append(Reading(name, float(value)))
    return Turn(late(names_of(task.group, task.work), readings, outcome), "" if outcome.code == 0 else outcome.detail)


def _rows(out: str) -> Iterator[dict[str, Any]]:
    """Rows of JSON among lines of other talk."""
    for line in out.splitlines():
        if line.lstrip().startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _same_windows(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> bool:
    """Equal ids, but for the first of each window, where a model may put a token of its own after the file was written."""
    return len(found) == len(expected) and all(list(one)[1:] == list(other)[1:] for one, other in zip(found, expected, strict=True))
