"""What is asked, answered and shown as a key is written nowhere. P28 of the promises; B13, B20."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from khola.serve.access.guard import Guard
from khola.serve.access.keys import Keys
from khola.serve.backend import Job
from khola.serve.engines.echo import Echo, EchoPieces
from khola.serve.log import Log, opened
from khola.serve.metrics import Histogram, Metrics
from khola.serve.run import gathered
from tests.serve.http.ask import asked, service_of

CANARIES = 1000


class Broken(Echo):
    """Fails on every second answer, with the prompt in its words."""

    async def start(self, job: Job, model: str) -> EchoPieces:
        """Fail, or begin an answer."""
        pieces = await super().start(job, model)
        if self.started % 2:
            raise RuntimeError(f"cannot answer {job!r}")
        return pieces


def requests(keys: Keys) -> Iterator[tuple[Any, ...]]:
    """Requests with a canary in every place where a secret may be."""
    right = keys.new(["infer"])
    for number in range(CANARIES):
        canary = f"canary{number:04}"
        header = {"authorization": f"Bearer {right}"}
        yield from [
            ("POST", "/parrot", {"prompt": canary, "stream": number % 3 == 0}, header),
            ("POST", "/parrot", {"prompt": 7, "stop": [canary], "deep": {canary: canary}}, header),
            ("POST", "/parrot", {"prompt": [canary]}, header),
            ("GET", "/models", None, {**header, "x-conversation-id": canary, "user-agent": canary, "cookie": canary}),
            ("GET", "/models", None, {"x-api-key": f"kh_{canary}"}),
            ("GET", f"/parrot/file?name={canary}", None, header),
            ("POST", "/parrot", f'{{"prompt": "{canary}", '.encode(), {**header, "content-type": "application/json"}),
        ][number % 7 : number % 7 + 1]


def test_canaries_are_nowhere(tmp_path: Path) -> None:
    lines = io.StringIO()
    keys = Keys(tmp_path / "keys.json")
    service = service_of(backend=Broken(), guard=Guard(auth="keys", keys=keys), log=Log(lines))
    answers = asked(service, *requests(keys))
    metrics = service.metrics.text({}, {})
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 400, 401, 429, 500}, statuses
    refused = b"".join(answer.body for answer in answers if answer.status >= 400)
    assert len(lines.getvalue().splitlines()) >= CANARIES
    for written in (lines.getvalue(), metrics, refused.decode(), (tmp_path / "keys.json").read_text()):
        assert "canary" not in written
        assert not re.search(r"kh_[0-9A-Za-z]{8}_", written)
    failures = [line for text in lines.getvalue().splitlines() if (line := json.loads(text))["event"] == "request failed"]
    assert failures
    assert failures[0]["error"] == "RuntimeError"
    assert "test_http_secrets.py" in failures[0]["at"]
    assert b"RuntimeError" not in refused


def test_nothing_forges_a_line() -> None:
    lines = io.StringIO()
    evil = 'x\r\n{"event":"request","status":200}\x1b[2J\u2028\u202e'
    log = Log(lines, clock=lambda: 1.0)
    log.line("request", route=evil)
    log.failure("request failed", ValueError(evil), id=evil)
    first, second = lines.getvalue().splitlines()
    assert lines.getvalue().isascii()
    assert json.loads(first) == {"time": 1.0, "event": "request", "route": evil}
    assert json.loads(second) == {"time": 1.0, "event": "request failed", "error": "ValueError", "at": "", "id": evil}


def test_what_libraries_say_is_told_without_their_words() -> None:
    lines = io.StringIO()
    with gathered(Log(lines)):
        try:
            raise ValueError("canary")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in %s", "canary")
        logging.getLogger("asyncio").warning("canary")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert "canary" not in lines.getvalue()
    assert (first["name"], first["level"], first["error"]) == ("uvicorn.error", "ERROR", "ValueError")
    assert second["name"] == "asyncio"


def test_a_log_file_is_its_owners(tmp_path: Path) -> None:
    with opened(tmp_path / "logs" / "khola.jsonl") as file:
        Log(file).line("ready")
    assert (tmp_path / "logs" / "khola.jsonl").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "logs" / "khola.jsonl").read_text())["event"] == "ready"


SAMPLE = re.compile(r'^[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? [0-9.e+-]+$')


def test_metrics_can_be_read() -> None:
    service = service_of()
    asked(
        service, *[("POST", "/parrot", {"prompt": "a"})] * 3, *[("GET", f"/made/up/{number}") for number in range(50)], ("GET", "/metrics")
    )
    (answer,) = asked(service, ("GET", "/metrics"))
    lines = answer.body.decode().splitlines()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert not [line for line in lines if not line.startswith("# TYPE ") and not SAMPLE.match(line)]
    assert 'khola_requests_total{route="/parrot",method="POST",status="200"} 3' in lines
    assert 'khola_requests_total{route="",method="",status="404"} 50' in lines, "what a client makes up is no label"
    assert 'khola_errors_total{code="not_found"} 50' in lines
    assert 'khola_engine_started_total{model="echo"} 3' in lines
    assert "# TYPE khola_engine_running gauge" in lines


def test_names_of_models_are_escaped_in_metrics() -> None:
    text = Metrics().text({}, {'a"b\\c\nd': {"running": 1.0}})
    assert 'khola_engine_running{model="a\\"b\\\\c\\nd"} 1' in text.splitlines()


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (5.0, 2)])
def test_a_histogram_counts_up_to_its_bounds(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.add(value)
    counts = [line.rpartition(" ")[2] for line in histogram.lines("x", ())]
    assert counts == ["0"] * bucket + ["1"] * (3 - bucket) + [f"{value:g}", "1"]
