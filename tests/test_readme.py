"""The README tells the truth: its example runs, its tree is the tree."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_five_line_example_runs(root, tmp_path):
    text = (root / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.S).group(1)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 5
    code = code.replace("runs/example", str(tmp_path / "example"))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "best-of-8" in result.stdout
    assert (tmp_path / "example" / "report.html").is_file()


def test_every_room_and_top_file_is_in_the_tree(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\nsrc/truing/\n(.*?)```", text, re.S).group(1)
    source = root / "src" / "truing"
    for path in source.iterdir():
        if path.suffix == ".py" and not path.stem.startswith("__"):
            assert path.name in tree, path.name
        elif path.is_dir() and any(path.glob("*.py")):
            line = re.search(rf"^  {path.name}/(.*)$", tree, re.M)
            assert line, path.name
            for file in path.glob("*.py"):
                if not file.stem.startswith("_") and file.stem != "base":
                    assert file.stem in line.group(1), f"{path.name}/{file.stem}"


def test_the_measured_table_stands_between_its_marks(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- quickstart -->(.*?)<!-- /quickstart -->", text, re.S).group(1)
    for word in ("PPO", "DPO", "SFT", "Best-of-8", "cores"):
        assert word in table
