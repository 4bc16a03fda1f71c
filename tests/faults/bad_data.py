"""Data files with something wrong in them, and what a run declares of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness import ROWS, SilentError, left_by, stage_folder

from truing.models.tiny import POSITIONS

DROP = ("--data.bad-rows", "drop")
NAMES_LINES = "samples/scores.jsonl"
"""The one result that names the lines of rows: these differ where bad rows stand between."""

PAIR = {"prompt": "Number 99: ", "chosen": " good", "rejected": " bad"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    # D1
    "missing": ({"prompt": "Number 99: ", "chosen": " good"}, "'rejected' is missing"),
    "null": (PAIR | {"chosen": None}, "'chosen' is missing"),
    "number": (PAIR | {"rejected": 7}, "'rejected' is int, not text"),
    "roles": (
        {
            "chosen": [{"role": "assistant", "content": "?"}, {"role": "user", "content": "!"}],
            "rejected": [{"role": "assistant", "content": "?"}, {"role": "user", "content": "."}],
        },
        "'prompt' is missing",
    ),
    "nested": (
        PAIR | {"prompt": {"a": [{"b": [None, {}]}]}},
        "'prompt' is dict, not text",
    ),
    # D2
    "no prompt": (PAIR | {"prompt": ""}, "'prompt' is empty"),
    "no completion": (PAIR | {"chosen": ""}, "'chosen' is empty"),
    "blanks": (PAIR | {"prompt": " \t\n\u3000", "chosen": "\u2003\r\n"}, "'prompt' is empty"),
    "blank completion": (PAIR | {"rejected": "\n \u00a0"}, "'rejected' is empty"),
    # D3
    "prompt fills the context": (PAIR | {"prompt": "x" * POSITIONS}, "longer than max_length 512"),
    "one token too many": (  # the prompt, the completion and the stop token
        PAIR | {"chosen": "x" * (POSITIONS - len(PAIR["prompt"]))},
        "longer than max_length 512",
    ),
    # D4
    "identical": (PAIR | {"rejected": PAIR["chosen"]}, "chosen and rejected are the same"),
    # D5
    "ten megabytes": (PAIR | {"chosen": " x y" * (10 << 18)}, "longer than max_length 512"),
    "100k tokens": (PAIR | {"prompt": "x" * 100_000}, "longer than max_length 512"),
    # D6
    "half a character": (PAIR | {"chosen": "\ud83d"}, "'chosen' holds half a character"),
}
"""Name -> a row that cannot be used, and why."""


def mixed(path: Path, bad: Sequence[Any], good: Sequence[dict] = ROWS) -> tuple[Path, list[str]]:
    """A file with a bad row behind each good one until they are all in: (file, their places)."""
    rows: list[Any] = []
    places = []
    for index, row in enumerate(good):
        rows.append(row)
        if index < len(bad):
            rows.append(bad[index])
            places.append(f"{path.name}:{len(rows)}")
    assert len(places) == len(bad)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, places


def facts(stage: str, out: Path) -> dict[str, Any]:
    """What run.json says."""
    found: dict[str, Any] = json.loads((stage_folder(stage, out) / "run.json").read_text())["facts"]
    return found


def left_out(stage: str, out: Path) -> dict[str, str]:
    """Place -> reason of every row that the run declares as left out."""
    found: dict[str, str] = {}
    for reason, rows in facts(stage, out)["dropped_rows"].get("data", {}).items():
        assert rows["rows"] == len(rows["places"]), rows
        found |= {place.split(" ")[0]: reason for place in rows["places"]}
    return found


def as_without(stage: str, out: Path, whole: dict[str, object]) -> None:
    """The result is that of the good rows alone, bit for bit."""
    found = left_by(stage, out)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        if name != NAMES_LINES and found[name] != value:
            raise SilentError(f"{stage}: {name} is another one, and nothing says so")


class Memory:
    """Watches the resident memory of a run: use as `during`. MiB."""

    def __init__(self) -> None:
        self.at_first = self.most = 0

    def __call__(self, process: BaseProcess) -> None:
        while process.exitcode is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return
            for line in status.splitlines():
                if line.startswith("VmHWM"):
                    now = int(line.split()[1]) >> 10
                    self.at_first = self.at_first or now
                    self.most = max(self.most, now)
            time.sleep(0.005)

    @property
    def grown(self) -> int:
        assert self.most, "nothing was seen"
        return self.most - self.at_first
