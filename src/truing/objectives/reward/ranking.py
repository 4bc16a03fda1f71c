"""A reward model from rankings of more than two completions.

    all_pairs       L = (1/G) Σ_groups mean_{i,j: s_i > s_j} −log σ(r_i − r_j)
    plackett_luce   L = (1/G) Σ_groups Σ_i [ log Σ_{j: s_j ≤ s_i} exp r_j − r_i ]
    best            L = −(1/G) Σ_groups mean_{i: s_i = max s} log softmax(r)_i

s are the given scores of the completions of one prompt, only their order is read; r is what the
model says. Ties: no pair; Breslow's form, where tied completions share one denominator; several
best ones share the target. A group that orders nothing still counts. With two completions of
different score all three forms are Bradley-Terry, and r is identified up to a constant per prompt.

Gradient: all_pairs compares everyone with everyone, so a ranking of K weighs as much as one pair;
plackett_luce pulls each up against all it beats; best pulls only the winner up against the rest.
Implementations: InstructGPT puts all pairs of a ranking into one element with weight 1 / (K over 2)
lest they overfit; the first RLHF code (Ziegler et al.) picks the best of 4; most others take pairs
of different prompts only.
Source: all_pairs: Ouyang et al. 2022, "Training language models to follow instructions with human
feedback" (arXiv 2203.02155), eq. 1; plackett_luce: Plackett 1975, "The Analysis of Permutations"
(Applied Statistics 24); ties: Breslow 1974, "Covariance Analysis of Censored Survival Data"
(Biometrics 30); best: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"
(arXiv 1909.08593), eq. 1.

    >>> worked(Ranking())
    0.341154
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective
from truing.objectives.listwise._lists import ordered_pairs, segment_log_softmax
from truing.ops import segment_sum


def all_pairs_loss(rewards_C: Tensor, scores_C: Tensor, group_C: Tensor, groups: int) -> Tensor:
    """Mean of −log σ over the strictly ordered pairs of each group. Shape [G]."""
    better_I, worse_J = ordered_pairs(scores_C, group_C)
    losses = -logsigmoid(rewards_C[better_I] - rewards_C[worse_J])
    pairs_G = torch.bincount(group_C[better_I], minlength=groups)
    return segment_sum(losses, group_C[better_I], groups) / pairs_G.clamp(min=1)


def plackett_luce_loss(rewards_C: Tensor, scores_C: Tensor, group_C: Tensor, groups: int) -> Tensor:
    """Negative log-likelihood of each group's ranking, Breslow's ties. Shape [G]."""
    beaten_CC = (group_C[:, None] == group_C) & (scores_C <= scores_C[:, None])
    rivals_C = rewards_C.where(beaten_CC, -torch.inf).logsumexp(1)
    return segment_sum(rivals_C - rewards_C, group_C, groups)


def best_loss(rewards_C: Tensor, scores_C: Tensor, group_C: Tensor, groups: int) -> Tensor:
    """Cross-entropy of softmax(r) against the best of each group. Shape [G]."""
    lowest_G = scores_C.new_full((groups,), -torch.inf)
    best_C = scores_C == lowest_G.scatter_reduce(0, group_C, scores_C, "amax")[group_C]
    logps_C = segment_log_softmax(rewards_C, group_C, groups)
    winners_G = torch.bincount(group_C[best_C], minlength=groups)
    return -segment_sum(logps_C[best_C], group_C[best_C], groups) / winners_G.clamp(min=1)


FORMS = {"all_pairs": all_pairs_loss, "plackett_luce": plackett_luce_loss, "best": best_loss}


@dataclass(frozen=True, config=KNOBS)
class Ranking(Objective):
    """The likelihood of the order of the scores, averaged over groups.

    Shapes: outputs.scores_C from the reward head, the batch's scores_C given. Raises nothing of its
    own. Departures: none.
    """

    form: Literal["all_pairs", "plackett_luce", "best"] = "all_pairs"
    """What is read of a ranking: every pair (InstructGPT), the whole order, or who is best."""

    trains = "reward"
    unit = "groups"
    needs = frozenset({"scores_C"})

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.scores_C is not None
        rewards_C, scores_C = outputs.scores_C, batch["scores_C"]
        loss_G = FORMS[self.form](rewards_C, scores_C, batch.group_C, batch.size_G)
        better_I, worse_J = ordered_pairs(scores_C, batch.group_C)
        margins = rewards_C[better_I] - rewards_C[worse_J]
        metrics = {
            "loss": mean_of(loss_G),
            "accuracy": mean_of((margins > 0).float()),
            "margin": mean_of(margins),
            "mean_reward": mean_of(rewards_C),
        }
        return Loss(loss_G.sum(), self.weigh(batch), metrics)
