"""A process reward model: is this step of the reasoning right?

    L = −(1/S) Σ_steps [ c_s log σ(r_s) + (1 − c_s) log σ(−r_s) ]

r_s is the reward head at the last token of step s, c_s = 1 if the step is labelled right. σ(r_s)
is the probability that it is. A solution is scored by the product or the minimum over its steps;
the product falls with every further step, so it favours short solutions.

Gradient: (σ(r_s) − c_s) per step, bounded by 1; a step already judged well hardly pulls.
Implementations: the trainer TRL once had put a two-class cross-entropy on the token that separates
steps and masked all others; one logit is the same model with half the head. Math-Shepherd also uses
soft labels. Means are over all labelled steps: a long solution weighs more than a short one.
Source: Lightman et al. 2023, "Let's Verify Step by Step" (arXiv 2305.20050), section 2.6; Wang et
al. 2023, "Math-Shepherd: Verify and Reinforce LLMs Step-by-step without Human Annotations"
(arXiv 2312.08935), eq. 2.

    >>> worked(ProcessReward())
    0.500662
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from truing.batch import Batch, Loss, Outputs, mean_of
from truing.objectives.base import KNOBS, Objective


def step_loss(scores_S: Tensor, right_S: Tensor) -> Tensor:
    """Binary cross-entropy of each step's logit. Shape [S]."""
    return binary_cross_entropy_with_logits(scores_S, right_S.to(scores_S.dtype), reduction="none")


@dataclass(frozen=True, config=KNOBS)
class ProcessReward(Objective):
    """Cross-entropy of each labelled step, averaged over steps.

    Shapes: scores_S, logits read at step_end_S; step_label_S. Raises nothing of its own.
    Departures: two classes; a neutral label has to be made one of them.
    """

    trains = "reward"
    unit = "steps"
    needs = frozenset({"step_end_S", "step_label_S"})
    extra_outputs = frozenset({"scores_S"})

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        assert outputs.scores_S is not None
        scores_S, right_S = outputs.scores_S, batch["step_label_S"]
        loss_S = step_loss(scores_S, right_S)
        correct_S = ((scores_S > 0) == right_S).float()
        metrics = {
            "loss": mean_of(loss_S),
            "accuracy": mean_of(correct_S),
            "accuracy/right": mean_of(correct_S[right_S]),
            "accuracy/wrong": mean_of(correct_S[~right_S]),
        }
        return Loss(loss_S.sum(), self.weigh(batch), metrics)
