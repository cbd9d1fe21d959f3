"""Measure khola beside its peers and print how far its goals are: `make bench`, or `python -m bench --help`.

Models are those of the library (`khola pull NAME`) or paths. The tests of the interpreters run first: a wrong kernel has no speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bench.goals import verdicts
from khola.api.bench import FULL, QUICK
from khola.cli.bench import GROUP_WORDS, print_report
from khola.cli.tables import print_table
from khola.cli.talk import Talk
from khola.errors import KholaError
from khola.evals.bench.figures import GROUPS
from khola.evals.bench.run import Asked, bench
from khola.loader.interpreter import INTERPRETERS
from khola.settings import from_environment

MODELS = ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct")
TESTS = ("tests/ops", "tests/native")
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run everything; 1 when a kernel's test fails or no model could be measured."""
    asked = _arguments()
    talk = Talk(settings=replace(from_environment(), offline=True))
    if (
        not asked.untested
        and subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow and not soak", *TESTS], cwd=ROOT, check=False).returncode
    ):
        print("the interpreters disagree: there is no speed to measure", file=sys.stderr)
        return 1
    reports = []
    for model in asked.models or MODELS:
        try:
            report = bench(_asked(asked, model), talk.settings, tell=lambda group, number, rounds, name: talk.say(
                GROUP_WORDS[group], round=number, rounds=rounds, name=name))  # fmt: skip
        except KholaError as error:
            talk.error(error)
            continue
        reports.append(report.data())
        print_report(report, talk)
        talk.line()
        rows = [[goal.what, goal.goal, goal.found or "-", "yes" if goal.met else "no"] for goal in verdicts(report)]
        print_table(talk, ["goal", "wanted", "found", "met"], rows, right=(1, 2))
        talk.line()
    if asked.json and reports:
        Path(asked.json).write_text(json.dumps(reports, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0 if reports else 1


def _asked(asked: argparse.Namespace, model: str) -> Asked:
    return Asked(
        model=model,
        interpreter=asked.interpreter,
        against=asked.against.split(","),
        places=dict(pair.split("=", 1) for pair in asked.peer),
        models=dict(pair.split("=", 1) for pair in asked.peer_model),
        reference=asked.reference,
        groups=asked.only.split(","),
        rounds=asked.rounds or (2 if asked.quick else 5),
        work=QUICK if asked.quick else FULL,
        command=["python", "-m", "bench", *sys.argv[1:]],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"names or paths; by default {' and '.join(MODELS)}")
    parser.add_argument("--interpreter", default="auto", choices=INTERPRETERS)
    parser.add_argument("--against", default="llama.cpp,vllm,openvino,transformers", help="peers, with commas")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PLACE", help="where a peer is")
    parser.add_argument("--peer-model", action="append", default=[], metavar="NAME=MODEL", help="what a peer runs")
    parser.add_argument("--reference", default="", metavar="MODEL", help="judges quality, in float32")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups of figures, with commas")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--untested", action="store_true", help="leave the tests of the interpreters out")
    parser.add_argument("--json", default="", metavar="FILE", help="write the reports to a file too")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - set(GROUPS):
        parser.error(f"there is no group {min(unknown)}; expected some of {', '.join(GROUPS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
