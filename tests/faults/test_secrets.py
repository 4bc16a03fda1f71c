"""What is secret stays in the environment: not in a run's files, not in what is printed."""

from __future__ import annotations

from functools import partial

import pytest
from harness import ROWS, command, written

from truing.errors import redacted

CANARY = "canary-7f3a91c2d4"


def plant_key(name: str) -> None:
    """A secret in the environment, and a reward that says it when it fails."""
    import os

    from harness import fire

    os.environ[name] = CANARY
    from truing.rewards import character_share

    def fail(self, *args, **kwargs):
        fire()
        raise RuntimeError(f"401 for Authorization: Bearer {os.environ[name]}")

    character_share.CharacterShare.__call__ = fail


@pytest.mark.parametrize("name", ["HF_TOKEN", "MY_API_KEY", "DB_PASSWORD"])
def test_a_secret_in_an_error_reaches_no_file_and_no_terminal(tmp_path, name):
    rows = written(tmp_path / "rows.jsonl", ROWS)
    argv = ["ppo", "--reward", "character_share", "--reward-retries", "0", "--num-rollouts", "1"]
    argv += ["--model", "random:llama", "--data", str(rows), "--output", "out"]
    result = command(argv, tmp_path, plant=[partial(plant_key, name)])
    assert result.code == 7
    assert "Bearer ***" in result.said
    for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
        assert CANARY not in file.read_text(errors="replace"), file


def test_what_is_redacted(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "hunter2hunter2")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("PLAIN", "visible-value")
    assert redacted("hunter2hunter2 abc visible-value") == "*** abc visible-value"
