"""Files and batches by OpenAI's own client; run by `run_other_clients.py` in an environment that has the client."""

from __future__ import annotations

import json
import os
import time

import openai
import pytest

MODEL = os.environ["KHOLA_MODEL"]
CLIENT = openai.OpenAI(base_url=os.environ["KHOLA_ADDRESS"] + "/v1", api_key="none", max_retries=0)


def test_a_batch_from_its_file_to_its_results() -> None:
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "নমস্কার"}]}
    rows = [{"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body} for number in range(6)]
    rows.append({**rows[0], "custom_id": "wrong", "body": {**body, "colour": 1}})
    given = CLIENT.files.create(file=("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="batch")
    batch = CLIENT.batches.create(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"})
    end = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < end
        time.sleep(0.1)
        batch = CLIENT.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.request_counts.to_dict() == {"total": 7, "completed": 6, "failed": 1}
    told = [json.loads(line) for line in CLIENT.files.content(batch.output_file_id).text.splitlines()]
    assert [one["custom_id"] for one in told] == [str(number) for number in range(6)]
    assert all(one["response"]["body"]["choices"][0]["message"]["content"] for one in told)
    (wrong,) = [json.loads(line) for line in CLIENT.files.content(batch.error_file_id).text.splitlines()]
    assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("wrong", 400)
    assert batch.id in [one.id for one in CLIENT.batches.list()]
    assert {one.id for one in CLIENT.files.list()} >= {given.id, batch.output_file_id, batch.error_file_id}
    assert CLIENT.files.delete(given.id).deleted
    with pytest.raises(openai.NotFoundError):
        CLIENT.files.retrieve(given.id)


def test_a_batch_is_cancelled() -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 64}
    rows = [{"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body} for number in range(2000)]
    given = CLIENT.files.create(file=("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="batch")
    batch = CLIENT.batches.create(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert CLIENT.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    end = time.monotonic() + 60
    while (batch := CLIENT.batches.retrieve(batch.id)).status != "cancelled":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert batch.request_counts.completed < 2000
