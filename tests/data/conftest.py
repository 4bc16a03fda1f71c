"""What the tests of this room share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byte_tokens import make_tokenizer

from truing.data.chat import ChatTokenizer


@pytest.fixture(scope="session")
def chat() -> ChatTokenizer:
    return ChatTokenizer(make_tokenizer())


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows to `name` in the test's folder and returns its path."""

    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
