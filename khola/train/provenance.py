"""What a new model owes: the licences are asked before anything is computed, and the record is written with the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from khola.data.rows import hashes, read_rows
from khola.errors import AskedWrong
from khola.lineage.compose import Making, compose, write_beside
from khola.lineage.licence import Source, Verdict, judge
from khola.lineage.record import DataSet, Metric, Role
from khola.settings import Settings
from khola.store.strict_json import load_object
from khola.train.config import Run
from khola.train.loop import Finished


def judged(run: Run, name: str, settings: Settings, declared: Mapping[str, Sequence[str]], data_licence: str) -> Verdict:
    """Whether these models may make this one.

    Args:
        run: of any method; distillation has a teacher besides.
        name: of the new model.
        settings: where models lie.
        declared: licences of models that khola does not know.
        data_licence: of all data: a key of licences.toml, or "own".
    Raises:
        AskedWrong: no teacher is named.
        LicenceForbids: it may not; the error names the clause.
        UnknownLicence: khola does not know one of the licences.
    """
    roles: list[tuple[str, Role]] = [(run.model, "weights")]
    if run.method == "distil":
        if not run.options.teacher:
            raise AskedWrong("no teacher is named", hint="khola distil --teacher MODEL --student MODEL --data FILE --out DIR")
        roles.append((run.options.teacher, "teacher-text" if run.options.objective == "sequence" else "teacher-logits"))
    sources = [Source(model=model, role=one, licences=tuple(declared.get(model, ()))) for model, one in roles]
    verdict = judge(name, sources, settings, {Path(file).name: data_licence for file in run.data})
    verdict.enforce()
    return verdict


def write_record_of(verdict: Verdict, run: Run, done: Finished, settings: Settings, data_licence: str) -> None:
    """Put `lineage.json` and a model card beside the finished model.

    Raises:
        BadLineage: a parent's record is damaged.
        NoDisk, NoRoom: one cannot be written.
    """
    files = [Path(name).expanduser() for name in run.data]
    data = [
        DataSet(name=file.name, sha256=digest, licence=data_licence, rows=len(read_rows([file])))
        for file, digest in zip(files, hashes(files).values(), strict=True)
    ]
    loss = [] if done.loss is None else [Metric(name="training loss of the last step", value=done.loss, unit="nats a token")]
    making = Making(
        how="distilled" if run.method == "distil" else "fine-tuned",
        recipe=run.table(),
        seeds={"run": run.seed},
        data=data,
        metrics=loss,
        architecture=str(load_object(done.model / "config.json").get("model_type", "")),
    )
    write_beside(compose(verdict, making, done.model, settings), done.model)
