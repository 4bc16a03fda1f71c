"""Write the table of faults into docs/reliability.md: python -m docs.reliability faults.json"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults.matrix import MATRIX

PAGE = Path(__file__).with_name("reliability.md")
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
STAGES = ("sft", "reward", "dpo", "ppo", "grpo", "best_of_n", "cli")


def cell(kind: str, stage: str, found: dict[str, list[str]]) -> str:
    """The verdict that is specified, and how many faults bore it out."""
    verdict = MATRIX[kind][1].get(stage)
    if verdict is None:
        return ""
    outcomes = Counter(found.get(f"{kind}/{stage}", []))
    well = outcomes.pop("as specified", 0)
    rest = "".join(f", **{n} {name}**" for name, n in outcomes.items())
    return f"{verdict} · {well}{rest}" if well or rest else f"{verdict} · not run"


def table(found: dict[str, Any]) -> str:
    """A line a kind: what happens, and per stage the verdict and the number of faults."""
    head = ["", "fault", *STAGES]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for kind, (title, _) in MATRIX.items():
        row = [kind, title, *(cell(kind, stage, found["cells"]) for stage in STAGES)]
        lines.append(" | ".join(row))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    text = f"**{found['line']}** (verdict · number of faults planted)\n\n{table(found)}"
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
