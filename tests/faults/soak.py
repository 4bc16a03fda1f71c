"""Kills a run at random moments, again and again, and compares what is left at the end with
what an unbroken run left: `make soak`, or for a recipe of your own

    python tests/faults/soak.py --recipe my.yaml --kills 10 --minutes 0 --json found.json

A chain is one output folder, from its first start to its end. Each launch is killed after a random
number of steps and milliseconds, so that every launch gets somewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

CHAIN = """
name: soak
output: out
model: {path: random:llama, dtype: float32}
data: {path: rows.jsonl, test_rows: 4}
stages:
  sft: {method: sft, batch_size: 4, num_train_epochs: 4, learning_rate: 0.001, save_steps: 1}
  reward: {method: bradley_terry, from: sft, batch_size: 4, num_train_epochs: 4, save_steps: 1}
  ppo:
    {method: ppo, from: sft, reward: reward, max_completion_length: 6, num_rollouts: 8,
     rollout_batch_size: 8, batch_size: 4, num_train_epochs: 2, save_steps: 1}
"""
CLOCKS = re.compile(r"^(seconds|timing/.*)$")


def start(recipe: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "truing", "run", str(recipe), f"output={output}", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def lines(output: Path) -> int:
    """Lines of metrics that are there."""
    return sum(file.read_bytes().count(b"\n") for file in output.glob("*/metrics.jsonl"))


def result(output: Path) -> dict[str, str]:
    """Hash of every weight, sample and line of metrics that a chain has left, clocks left out."""
    found = {}
    for file in sorted([*output.glob("*/*.safetensors"), *output.glob("*/samples/*.jsonl")]):
        found[str(file.relative_to(output))] = hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(output.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if not CLOCKS.match(k)} for row in rows]
        found[str(file.relative_to(output))] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return found


def killed_chain(
    recipe: Path, output: Path, kills: int, total: int, draw: random.Random
) -> tuple[int, str]:
    """Run to the end in spite of `kills` kills. Returns (kills that hit, last words)."""
    hit = 0
    while True:
        process = start(recipe, output, *(["--resume"] if output.exists() else []))
        if hit < kills:
            now = lines(output)
            left = total - now - (kills - hit)  # so that all kills find something to hit
            goal = now + draw.randint(1, max(1, min(2 * total // (kills + 2), left)))
            while process.poll() is None and lines(output) < goal:
                time.sleep(0.01)
            time.sleep(draw.random() * 0.5)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        if process.returncode == 0:
            return hit, said
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"exit code {process.returncode}\n{said}")
        hit += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--kills", type=int, default=8, help="of each chain")
    parser.add_argument("--minutes", type=float, default=10.0, help="start no chain after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = asked.recipe or place / "recipe.yaml"
        if asked.recipe is None:
            rows = [
                {"prompt": f"Number {i}: ", "chosen": f" good {i}", "rejected": f" bad {i} bad"}
                for i in range(24)
            ]
            (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            content = yaml.safe_load(CHAIN)
            content["data"]["path"] = str(place / "rows.jsonl")
            recipe.write_text(yaml.safe_dump(content))
        began = time.monotonic()
        whole = start(recipe, place / "whole")
        said, _ = whole.communicate()
        if whole.returncode:
            raise SystemExit(said)
        expected, total = result(place / "whole"), lines(place / "whole")
        print(f"unbroken: {total} lines of metrics in {time.monotonic() - began:.0f} s", flush=True)
        kills = chains = different = 0
        while not chains or time.monotonic() - began < 60 * asked.minutes:
            output = place / f"killed-{chains}"
            hit, _ = killed_chain(recipe, output, asked.kills, total, draw)
            found = result(output)
            wrong = sorted(n for n in {**expected, **found} if expected.get(n) != found.get(n))
            chains, kills, different = chains + 1, kills + hit, different + bool(wrong)
            print(f"chain {chains}: {hit} kills, {'DIFFERENT: ' + str(wrong) if wrong else 'same'}")
        print(f"soak: {kills} kills in {chains} chains, {different} ended otherwise", flush=True)
        if asked.json:
            report = {"chains": chains, "kills": kills, "different": different, "sha256": expected}
            asked.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
