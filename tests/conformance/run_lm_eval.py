"""lm-evaluation-harness reads log-likelihoods over HTTP, and they must be those that `khola.api.Model.score` gives in this process.

    python tests/conformance/run_lm_eval.py MODEL [FOLDER]

MODEL is a name in the library of `KHOLA_HOME`. The harness fetches its tokens over HTTP too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from serving import FOLDER, environment, served

import khola.api

PACKAGES = ("lm-eval[api]==0.4.13",)
TOLERANCE = 1e-3
"""Of a log-likelihood, in nats."""
TASK = """task: khola_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""
QUESTIONS = (
    ("The capital of France is", ("Paris", "Rome", "a large river in the south", "42")),
    ("Question: What do bees make?\nAnswer:", ("honey", "iron", "paper money", "glass")),
    ("2 + 2 =", ("4", "5", "22", "four hundred")),
    ("def add(a, b):\n    return", ("a + b", "a - b", "None", "print(a)")),
    ("বাংলাদেশের রাজধানী", ("ঢাকা", "প্যারিস", "একটি বড় নদী", "৪২")),
    ("আমি বাংলায় গান", ("গাই", "খাই", "লিখি না কখনও", "👨‍👩‍👧")),
)


def main(model: str, folder: Path) -> int:
    """Compare; 0 when all agree."""
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder / "lm-eval", PACKAGES)
    work = folder / "lm-eval-task"
    work.mkdir(exist_ok=True)
    data = work / "choices.jsonl"
    data.write_text("".join(json.dumps({"question": question, "choices": choices}) + "\n" for question, choices in QUESTIONS))
    (work / "khola_choices.yaml").write_text(TASK.format(data=data))
    for old in work.rglob("samples_*.jsonl"):
        old.unlink()
    with served(model, home=os.environ["KHOLA_HOME"]) as address:
        arguments = f"model={model},base_url={address}/completions,tokenizer_backend=remote,num_concurrent=4,max_retries=1"
        command = [
            str(python), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "khola_choices",
            "--include_path", str(work), "--output_path", str(work / "out"), "--log_samples",
        ]  # fmt: skip
        env = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, env=env)
    (samples,) = work.rglob("samples_*.jsonl")
    told = {
        sample["doc"]["question"]: [float(answer[0]) for answer in sample["filtered_resps"]] for sample in map(json.loads, samples.open())
    }
    worst = 0.0
    with khola.api.load(model) as ours:
        for question, choices in QUESTIONS:
            for choice, found in zip(choices, told[question], strict=True):
                wanted = own(ours, question, f" {choice}")
                worst = max(worst, abs(found - wanted))
                print(f"{found:12.5f} {wanted:12.5f}  {question!r} {choice!r}")
    print(f"largest difference: {worst:.2e} nats over {sum(len(choices) for _, choices in QUESTIONS)} answers; allowed {TOLERANCE}")
    return int(worst > TOLERANCE)


def own(model: khola.api.Model, context: str, answer: str) -> float:
    """The log-likelihood of an answer, as the harness cuts it off: behind as many tokens as the context alone has."""
    score = model.score(context + answer)
    return sum(score.logprobs[len(model.loaded.tokenizer.encode(context)) - 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER))
