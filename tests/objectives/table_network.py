"""The sheet's language as a network: a state is a sentence so far, the heads are tables.

The trunk sees what a transformer sees, ids, positions and the attention mask, and nothing else. A
position's hidden state is one-hot: which prompt it answers, and which beginning of a sentence it
can see. So the rows of a head are the exact tables of logits, values and rewards, and whatever is
wrong on the way (mask, shift, padding, packing) gives another sentence.

K kinds of prompt · S beginnings of a sentence (7 contexts, then 15 whole sentences)
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from layouts import seen_TT
from objectives import tiny_language as tiny
from truing.models.heads import ScalarHead
from truing.models.network import Network
from truing.models.roles import Roles
from truing.models.shared_prompts import SharedPrompts

KINDS = 2
FIRST_PROMPT_ID = 3
"""Smaller ids are the language's own words; the first id of a prompt says its kind."""


def _beginnings() -> list[tuple[int, ...]]:
    whole = [tuple(token for _, token in sentence) for sentence in tiny.SENTENCES]
    context = {}
    for sentence, words in zip(tiny.SENTENCES, whole, strict=True):
        context |= {s: words[:t] for t, (s, _) in enumerate(sentence)}
    return [context[s] for s in range(7)] + whole


BEGINNINGS = _beginnings()
"""Contexts in the table's order, then the sentences."""
STATE = {words: state for state, words in enumerate(BEGINNINGS)}


def _code(words: tuple[int, ...]) -> int:
    return sum((word + 1) * 4**place for place, word in enumerate(words))


def row_of(kind: int, words: tuple[int, ...]) -> int:
    """Which unit of the hidden state stands for these words after a prompt of this kind."""
    return kind * len(BEGINNINGS) + STATE[words]


class TableTrunk(nn.Module):
    """Ids, positions and a layout to one-hot states."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="table", num_hidden_layers=0)
        self.state_of_code = torch.zeros(64, dtype=torch.long)
        for words, state in STATE.items():
            self.state_of_code[_code(words)] = state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        use_cache: bool,
        layout: SharedPrompts,
    ) -> Any:
        visible = seen_TT(layout, input_ids.shape[1])[None]
        word = input_ids < FIRST_PROMPT_ID
        prompt_length = (visible & ~word[:, None]).sum(-1)
        place = (position_ids[:, None] - prompt_length[:, :, None]).clamp(0, 2)
        digit = torch.where(word, input_ids + 1, 0)[:, None]
        code = (digit * 4**place * visible).sum(-1)
        kind = ((input_ids - FIRST_PROMPT_ID).clamp(0) * (position_ids == 0))[:, None] * visible
        row = kind.amax(-1).clamp(max=KINDS - 1) * len(BEGINNINGS) + self.state_of_code[code]
        states = nn.functional.one_hot(row, KINDS * len(BEGINNINGS)).float()
        return SimpleNamespace(last_hidden_state=states)


class TableModel(nn.Module):
    """What `Network` asks of a language model: a trunk and one matrix."""

    base_model_prefix = "trunk"

    def __init__(self, logits_KSV: Tensor) -> None:
        super().__init__()
        self.trunk = TableTrunk()
        self.config = self.trunk.config
        rows = KINDS * len(BEGINNINGS)
        self.lm_head = nn.Linear(rows, 3, bias=False)
        self.lm_head.weight.data = logits_KSV.reshape(rows, 3).T.float().contiguous()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class Tables:
    """Everything the networks say, in float64: per kind of prompt and beginning of a sentence."""

    def __init__(self) -> None:
        later = torch.arange(len(BEGINNINGS) - 7, dtype=torch.float64)[:, None] + torch.arange(3)
        grid = torch.cat([tiny.GRID, 50 + 3 * later])
        kinds = torch.arange(KINDS)[:, None, None]
        self.policy_KSV = (grid + kinds).cos()
        self.reference_KSV = (grid + kinds).sin()
        self.values_KS = (1.7 * grid[:, 0] + kinds[:, :, 0]).sin()
        sentence = torch.arange(len(BEGINNINGS), dtype=torch.float64) - 7
        self.rewards_KS = (2 * sentence + kinds[:, :, 0]).sin()

    def roles(self, policy_KSV: Tensor | None = None) -> Roles:
        """The production networks that hold these tables (or another policy's), in float32."""

        def head(table_KS: Tensor) -> ScalarHead:
            return ScalarHead(table_KS.flatten().float(), bias=False)

        policy = Network(
            TableModel(self.policy_KSV if policy_KSV is None else policy_KSV),  # type: ignore[arg-type]
            score_head=head(self.rewards_KS),
            value_head=head(self.values_KS),
        )
        reference = Network(TableModel(self.reference_KSV))  # type: ignore[arg-type]
        return Roles(policy, reference_copy=reference)
