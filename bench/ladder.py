"""What each technique of ours is worth: a DPO step with it and without it, in turn.

    python -m bench.ladder [--model M] [--data FILE] [--device cpu] [--pairs 8] [--repeats 5]
        [--json FILE]

Every line is a comparison of its own with the full engine beside it, checked like any other: the
first steps must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench import machine, report, switches
from bench.against_trl import jobs, model_folder, parser, read, write
from bench.job import Job, Setting
from bench.pairing import Say, pair
from truing.errors import TruingError


def steps(job: Job) -> dict[str, Setting]:
    """What is left out -> the setting without it."""
    found = {name: Setting("ours", without=name) for name in switches.OFF}
    found["bfloat16"] = Setting("ours", "float32")
    found["nothing, but with a cached reference"] = Setting("ours", reference="cached")
    return found


def climb(job: Job, repeats: int, say: Say) -> dict[str, Any]:
    """Technique -> how many times slower, and how much more memory, it is without."""
    found = {}
    for name, setting in steps(job).items():
        say(f"without {name}")
        compared, _ = pair(job, Setting("ours"), setting, repeats, say, split=False)
        found[name] = {
            "slower": compared.ratios()._asdict(),
            "memory": compared.peak(1) / compared.peak(0),
            **compared.dump(),
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Exit code: 0, or that of what went wrong."""
    made = parser("python -m bench.ladder", __doc__, works=("dpo",))
    try:
        arguments: argparse.Namespace = read(made, argv)
        with model_folder(arguments.model) as folder:
            (job,) = jobs(arguments, folder)
            result = {
                "work": "ladder",
                "model": arguments.model,
                "device": job.device,
                "rows": len(job.rows),
                "batch": job.batch,
                "machine": machine.describe(job.device),
                "without": climb(job, arguments.repeats, report.say),
            }
    except TruingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(report.machine_line(result["machine"]), report.worth_table(result), sep="\n\n")
    write(arguments.json, [result])
    return 0


if __name__ == "__main__":
    sys.exit(main())
