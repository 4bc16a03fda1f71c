"""TRL's own loss code, run without models: trainers without constructors, log-probs for answers.

A flat batch becomes the padded rows that a trainer expects. Places without a token hold a number
that no mean could hide, unless TRL's own models put zeros there (ignored labels).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from truing.batch import Batch, Loss, Outputs
from truing.objectives._parts import build
from truing.objectives.base import Objective, WholeStep

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl", reason="the peer, TRL 1.16, is not installed")

GARBAGE = 77.0
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


class Accelerator:
    """One process."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    parallelism_config = None

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class Model(torch.nn.Module):
    """Answers every call with what it was given."""

    is_gradient_checkpointing = False

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.forward = answer


def trainer(kind: type, **attributes: Any) -> Any:
    """A trainer of this class with these attributes and nothing else; `args` may be a dict."""
    made = object.__new__(kind)
    arguments = {"gradient_checkpointing_kwargs": None} | attributes.pop("args", {})
    made.__dict__.update(
        accelerator=Accelerator(),
        model=Model(),
        args=SimpleNamespace(**arguments),
        _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False,
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )
    return made


class Sheet:
    """Where every token of a flat batch lies in padded rows.

    Row i is completion order[i], after prompts of uneven length if a prompt is wanted at all.
    """

    def __init__(self, batch: Batch, order: Sequence[int], prompts: bool = True) -> None:
        row_C = torch.full((batch.size_C,), -1)
        row_C[torch.tensor(order)] = torch.arange(len(order))
        before_C = (torch.arange(batch.size_C) * 2) % 3 + 1 if prompts else torch.zeros_like(row_C)
        start_C = batch.last_C - batch.lengths_C + 1
        index_N = torch.arange(batch.size_N)
        here_N = row_C[batch.completion_N] >= 0
        self.tokens = index_N[here_N]
        completion = batch.completion_N[here_N]
        self.rows = row_C[completion]
        self.columns = self.tokens - start_C[completion] + before_C[completion]
        self.shape = (len(order), int(self.columns.max()) + 2)  # a column of padding at the end

    def spread(self, values_N: Tensor, filler: float = GARBAGE) -> Tensor:
        """The values of the tokens in their places, and the filler elsewhere."""
        blank = values_N.new_full(self.shape, filler)
        return blank.index_put((self.rows, self.columns), values_N[self.tokens])

    @property
    def mask(self) -> Tensor:
        """1 where there is a token."""
        return self.spread(torch.ones(int(self.tokens.max()) + 1, dtype=torch.long), 0)


def supervised_inputs(sheet: Sheet) -> dict[str, Tensor]:
    """Input ids and masks for the trainers that score labels."""
    mask = sheet.mask
    return {
        "input_ids": torch.arange(mask.numel()).view_as(mask) % 5,
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }


def scoring(sheet: Sheet, logps_N: Tensor, collision_N: Tensor | None = None) -> Model:
    """A model with TRL's fused head: log-probs where there are labels, zeros elsewhere."""

    def answer(labels: Tensor, fused_lm_head: bool, **_: Any) -> SimpleNamespace:
        assert fused_lm_head
        scored = labels[:, 1:] != -100
        log_probs = sheet.spread(logps_N)[:, 1:]
        collision = logps_N if collision_N is None else collision_N
        return SimpleNamespace(
            log_probs=log_probs.where(scored, 0.0),
            log_sum_sq_probs=sheet.spread(collision)[:, 1:],
            entropy=torch.zeros_like(log_probs),
            mean_logits=torch.zeros_like(log_probs),
            is_top1=scored,
            label_mask=scored,
        )

    return Model(answer)


def method(name: str, **settings: Any) -> Objective:
    """Our objective or preset."""
    return build({"method": name, **settings}).objective


def whole_step(objective: Objective, parts: Sequence[tuple[Batch, Outputs]]) -> Loss:
    """Our loss over micro-batches of one step: sums and weights added up."""
    said = {id(batch.completion_N): outputs for batch, outputs in parts}
    step = WholeStep([b for b, _ in parts], lambda batch: said[id(batch.completion_N)])
    prepared = objective.prepare(step)
    losses = [objective(b, out) for b, (_, out) in zip(prepared, parts, strict=True)]
    total = torch.stack([loss.total for loss in losses]).sum()
    return Loss(total, sum(loss.weight for loss in losses), losses[0].metrics)


def mean_loss(objective: Objective, batch: Batch, outputs: Outputs) -> Tensor:
    """Our loss of a step that is this one batch."""
    loss = whole_step(objective, [(batch, outputs)])
    return loss.total / loss.weight


def same(ours: Tensor, theirs: Tensor, leaf: Tensor, tolerance: float | None = None) -> None:
    """Two losses agree, and so do their gradients in the leaf."""
    bound = TOLERANCE[leaf.dtype] if tolerance is None else tolerance
    assert ours.dtype == leaf.dtype
    (mine,) = torch.autograd.grad(ours, leaf, retain_graph=True)
    (peer,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    assert peer.abs().max() > 10 * bound, "nothing to compare"
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=bound, atol=bound)
    torch.testing.assert_close(mine, peer, rtol=bound, atol=bound)


def differ(ours: Tensor, theirs: Tensor, by: float = 1e-3) -> None:
    """Two losses do not agree, by far."""
    assert (ours - theirs).abs() > by
