"""What both sides are given: the same rows as text and as ids, and how they are to compute.

A row reaches TRL as the text our chat template made of it, control tokens included. TRL tokenises
prompt and answer as one text, we apart; rows where that makes other ids (a merge across the
border) are left out and counted, so that both sides train on the same ids to the last one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truing.data.chat import ChatTokenizer
from truing.data.formats import parse_rows
from truing.data.readers import read_rows
from truing.errors import DataError
from truing.groups import TokenCompletion, TokenGroup
from truing.models import loading

WORKS = ("sft", "reward", "dpo", "grpo", "sample")
MAX_LENGTH = 1024
RUNS = 12
"""Runs one worker can be asked for. TRL computes a cached reference for all of their rows first."""


@dataclass(frozen=True, slots=True)
class Row:
    """One pair: prompt, chosen and rejected, as text without the stop token and as ids with it."""

    texts: tuple[str, str, str]
    ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def group(self, work: str) -> TokenGroup:
        """The row as our trainer learns from it."""
        prompt, chosen, rejected = self.ids
        if work in ("grpo", "sample"):
            return TokenGroup(prompt)
        if work == "sft":
            return TokenGroup(prompt, (TokenCompletion(chosen),))
        both = (TokenCompletion(chosen), TokenCompletion(rejected))
        return TokenGroup(prompt, both, chosen=0, rejected=1)

    def length(self, work: str) -> int:
        """Tokens that must be computed at least: the prompt once, and each answer."""
        return self.group(work).length


@dataclass(frozen=True, slots=True)
class Job:
    """One comparison."""

    work: str
    folder: str
    """The model's folder, the same for both sides."""
    device: str
    rows: tuple[Row, ...]
    batch: int
    """Rows of one micro-batch, which is also one optimizer step."""
    stop_id: int
    completions: int = 1
    """Completions a prompt, where any are drawn."""
    max_completion_length: int = 64
    learning_rate: float = 1e-5
    seed: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why rows of the file could not be drawn -> how many."""

    @property
    def steps(self) -> int:
        """Optimizer steps of one run."""
        return len(self.rows) // self.batch

    def batches(self) -> list[tuple[Row, ...]]:
        """The rows of each step, in order."""
        size = self.batch
        return [self.rows[i * size : (i + 1) * size] for i in range(self.steps)]

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Job:
        """The job as it was before `dump` and a way through JSON."""
        rows = tuple(
            Row(tuple(row["texts"]), tuple(tuple(ids) for ids in row["ids"]))  # type: ignore[arg-type]
            for row in raw["rows"]
        )
        return cls(**{**raw, "rows": rows})


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to compute a job."""

    side: str
    """'ours', 'trl', or 'transformers' (its `generate`)."""
    precision: str = "auto"
    """float32, autocast (bfloat16 over float32 weights), bfloat16 (weights too), or auto (ours)."""
    reference: str = "online"
    """Where DPO's reference log-probs come from: online, or cached before training."""
    keeps_memory: bool = False
    """TRL with our allocator setting, which is none of TRL's."""
    cache: str = "dynamic"
    """The key-value cache of `generate`: dynamic or static."""
    attention: str = "sdpa"
    """transformers' attention on the peer's side: sdpa (its own choice) or eager, which is two
    products and a softmax, and faster backwards on some CPUs."""
    without: str = ""
    """A technique of ours that is switched off; see switches.py."""

    @property
    def label(self) -> str:
        """What tables call it."""
        words = [self.side, self.precision]
        words += [f"{self.reference} reference"] if self.reference != "online" else []
        words += [f"{self.cache} cache"] if self.cache != "dynamic" else []
        words += [f"{self.attention} attention"] if self.attention != "sdpa" else []
        words += [f"without {self.without}"] if self.without else []
        words += ["+ our allocator setting"] if self.keeps_memory else []
        return " ".join(words)


def draw(data: str, folder: str, wanted: int, seed: int) -> tuple[list[Row], dict[str, int], int]:
    """`wanted` rows drawn by `seed`, why others could not be drawn, and the stop id.

    Raises DataError if the file is not there, or too few of its rows will do.
    """
    if not Path(data).exists():
        raise DataError(
            "no such file", where=data, remedy="give --data a file of pairs (chosen, rejected)"
        )
    chat = ChatTokenizer(loading.load_tokenizer(folder))
    longest = min(MAX_LENGTH, _positions(folder))
    parsed = parse_rows(read_rows(data), columns={}, bad_rows="drop")
    groups = [group for group in parsed.groups if group.type == "preference"]
    fitted = chat.fit(groups, longest, bad_rows="drop")
    rows: dict[tuple[int, ...], Row] = {}
    merged = 0
    for tokens in fitted.tokens:
        row = _row(chat, tokens)
        if row is None:
            merged += 1
        else:
            rows.setdefault(row.ids[0], row)  # one row a prompt: rollouts are told apart by it
    if len(rows) < wanted:
        raise DataError(
            f"{wanted:,} rows are wanted, and {len(rows):,} will do",
            where=data,
            remedy="give a file with more pairs, or a smaller --pairs",
        )
    left_out = {
        f"bad, or longer than {longest:,} tokens": len(parsed.dropped) + len(fitted.dropped),
        "tokenised otherwise as one text": merged,
        "of a prompt that was there before": len(fitted.tokens) - merged - len(rows),
    }
    return random.Random(seed).sample(list(rows.values()), wanted), left_out, chat.stop_id


def _positions(folder: str) -> int:
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_position_embeddings", MAX_LENGTH))


def _row(chat: ChatTokenizer, tokens: TokenGroup) -> Row | None:
    """The row as text and ids, or None if its text is tokenised otherwise in one piece."""
    assert tokens.chosen is not None
    assert tokens.rejected is not None
    answers = [tokens.completions[i].ids for i in (tokens.chosen, tokens.rejected)]
    tokenizer = chat.tokenizer

    def spell(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    prompt, chosen, rejected = spell(tokens.prompt_ids), *(spell(ids[:-1]) for ids in answers)
    if tuple(tokenizer(prompt)["input_ids"]) != tokens.prompt_ids:
        return None
    for text, ids in zip((chosen, rejected), answers, strict=True):
        whole = tokenizer(prompt + text + chat.stop_text)["input_ids"]
        if tuple(whole) != tokens.prompt_ids + ids:
            return None
    return Row((prompt, chosen, rejected), (tokens.prompt_ids, answers[0], answers[1]))
