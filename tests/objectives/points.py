"""Points at which a production class is compared with a scalar function of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flat_batches import leaf, make_batch
from scalar import Sentence, Tokens, slopes

from truing.batch import Batch, Loss, Outputs
from truing.objectives.base import Objective, WholeStep

FLAGS = ("label_C", "mismatched_C", "finished_C", "demonstration_C", "of_reference_C", "kept_G")
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}


def label(value: Any) -> str:
    """The id of a test's parameter: a function by its name, so that ids never change."""
    return getattr(value, "__name__", str(value))


def flat(tokens: Tokens) -> list[float]:
    return [x for row in tokens for x in row]


@dataclass(frozen=True)
class Point:
    """Completions, token by token."""

    policy: Tokens
    columns: dict[str, Any] = field(default_factory=dict)
    """As in a batch, but those over N as one list per completion."""
    groups: list[int] | None = None
    collision: Tokens | None = None

    def with_columns(self, **columns: Any) -> Point:
        return replace(self, columns=self.columns | columns)

    def batch(self, dtype: torch.dtype = torch.float64) -> Batch:
        plain = {k: flat(v) if k[-2:] == "_N" else v for k, v in self.columns.items()}
        flags = {k: torch.tensor(plain.pop(k), dtype=torch.bool) for k in FLAGS if k in plain}
        lengths = [len(row) for row in self.policy]
        return make_batch(lengths, self.groups, dtype, **plain).with_columns(**flags)

    def outputs(self, dtype: torch.dtype = torch.float64) -> Outputs:
        collision = self.collision and torch.tensor(flat(self.collision), dtype=dtype)
        return Outputs(logps_N=leaf(flat(self.policy), dtype), collision_N=collision)

    def sentence(self, index: int, policy: Tokens | None = None) -> Sentence:
        rows = self.policy if policy is None else policy
        return Sentence(rows[index], self.columns["reference_logps_N"][index])

    def part(self, groups: Sequence[int]) -> Point:
        """These groups alone, as a micro-batch."""
        assert self.groups is not None
        kept = [i for i, g in enumerate(self.groups) if g in groups]
        columns = {}
        for name, values in self.columns.items():
            if name in ("chosen_G", "rejected_G"):
                columns[name] = [kept.index(values[g]) for g in groups]
            else:
                columns[name] = [values[i] for i in (groups if name[-1] == "G" else kept)]
        return Point(
            [self.policy[i] for i in kept],
            columns,
            [list(groups).index(self.groups[i]) for i in kept],
            self.collision and [self.collision[i] for i in kept],
        )


PAIRS_A = Point(
    [[-0.5, -1.25], [-0.75, -2.0, -0.3], [-1.7], [-0.2, -0.9, -1.1, -0.4]],
    {
        "reference_logps_N": [[-0.8, -0.6], [-1.4, -1.7, -0.9], [-1.1], [-0.7, -0.3, -1.9, -0.2]],
        "chosen_G": [1, 2],
        "rejected_G": [0, 3],
    },
    [0, 0, 1, 1],
    [[-0.9, -0.6], [-1.1, -0.2, -0.8], [-1.4], [-1.3, -0.7, -0.5, -1.0]],
)
"""ρ of the chosen 0.95 and −0.6, of the rejected −0.35 and 0.5."""

PAIRS_B = Point(
    [
        [-3.5, -0.1, -2.2],
        [-0.05],
        [-1.0, -4.0],
        [-0.6, -0.7, -0.8, -0.9, -5.0],
        [-2.5],
        [-0.33, -0.44],
    ],
    {
        "reference_logps_N": [
            [-1.5, -0.2, -0.4],
            [-2.3],
            [-0.5, -6.5],
            [-1.6, -1.1, -0.3, -2.9, -1.0],
            [-0.8],
            [-1.2, -0.1],
        ],
        "chosen_G": [3, 1, 5],
        "rejected_G": [0, 4, 2],
    },
    [0, 1, 2, 0, 1, 2],
    [
        [-0.5, -0.4, -1.6],
        [-1.2],
        [-0.3, -0.9],
        [-2.0, -1.0, -0.1, -0.6, -2.1],
        [-2.3],
        [-1.9, -1.5],
    ],
)
"""ρ of the chosen −1.1, 2.25 and 0.53, of the rejected −3.7, −1.7 and 2."""

SAMPLED = [[-0.4, -1.3], [-1.2, -0.5, -2.2], [-0.9], [-0.7, -1.6, -0.3, -2.4]]
LOG_RATIOS = [[0.5, -0.1], [-0.6, 0.05, 0.3], [0.9], [-0.15, 0.12, -0.5, 0.07]]
ADVANTAGES = [[1.0, 0.5], [-0.5, -1.0, -0.25], [-2.0], [0.8, -0.3, 1.5, 0.6]]
DRIFT = [[0.6, -0.4], [-0.2, 0.7, 0.1], [-1.1], [0.3, -0.8, 0.2, 1.4]]


def plus(rows, others, sign=1):
    return [
        [a + sign * b for a, b in zip(*pair, strict=True)]
        for pair in zip(rows, others, strict=True)
    ]


POLICY = plus(SAMPLED, LOG_RATIOS)
FAR = Point(
    POLICY,
    {
        "sampled_logps_N": SAMPLED,
        "advantages_N": ADVANTAGES,
        "reference_logps_N": plus(POLICY, DRIFT, -1),
    },
    [0, 0, 1, 1],
)
"""Ratios 0.55 to 2.46: both ends of every range are crossed with both signs."""
NEAR_POLICY = plus(SAMPLED, [[1e-2 * d for d in row] for row in LOG_RATIOS])
NEAR = Point(
    NEAR_POLICY,
    FAR.columns | {"reference_logps_N": plus(NEAR_POLICY, DRIFT, -1)},
    [0, 0, 1, 1],
)

PairLoss = Callable[[Sentence, Sentence], float]


def over_pairs(point: Point, loss: PairLoss) -> Callable[[Tokens], float]:
    """Σ over pairs of loss(chosen, rejected), as a function of the policy's tokens."""
    sides = list(zip(point.columns["chosen_G"], point.columns["rejected_G"], strict=True))
    return lambda policy: sum(
        loss(point.sentence(w, policy), point.sentence(r, policy)) for w, r in sides
    )


def judge(
    objective: Objective, point: Point, dtype: torch.dtype = torch.float64
) -> tuple[Loss, list[float]]:
    """The loss of the production class on the point as a whole step, and its gradient."""
    outputs = point.outputs(dtype)
    assert outputs.logps_N is not None
    (batch,) = objective.prepare(WholeStep([point.batch(dtype)], lambda _: outputs))
    loss = objective(batch, outputs)
    loss.total.backward()
    assert outputs.logps_N.grad is not None
    return loss, outputs.logps_N.grad.tolist()


def agree(
    objective: Objective,
    point: Point,
    scalar: Callable[[Tokens], float],
    weight: float,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Total, weight and gradient of the production class are those of the scalar function."""
    loss, gradient = judge(objective, point, dtype)
    assert loss.weight == weight

    def same(found: Any, expected: Any) -> None:
        there = torch.tensor(expected, dtype=torch.float64)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), there, rtol=tolerance, atol=tolerance
        )

    same(loss.total.item(), scalar(point.policy))
    same(gradient, slopes(scalar, point.policy))
