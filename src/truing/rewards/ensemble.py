"""Several rewards of the same thing as one that is careful where they disagree.

    mean          m = (1/k) Σ r_i
    worst_case    min_i r_i                                                     WCO
    variance      m − λ · v,   v = (1/k) Σ (r_i − m)²                           UWO
    deviation     m − λ · √v                                                    a lower bound

Reward models err apart from each other where they were not trained; a policy that is optimised
against one goes there. Errors that all of them share stay.
Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv
2310.02743), section 3: λ = 0.5 for best-of-n, 0.1 for PPO; Eisenstein et al. 2023 (arXiv
2312.09244) on what ensembles do not mitigate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards._parts import Part, judge_parts, wanted
from truing.rewards.base import Patience, Reward, Scores, Unscored


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Ensemble(Reward):
    """One number from the members'; their own are logged as rewards/MEMBER, √v as
    rewards/disagreement. Unit: the members', which should be the same.

    A completion that one member cannot judge is unscored, reason member/why. Raises what its
    members raise.
    """

    members: Annotated[dict[str, Part], Field(min_length=2)]
    """Name -> reward, most often a reward model's folder."""
    combine: Literal["mean", "worst_case", "variance", "deviation"] = "mean"
    """The rule, as above; from left to right the first is the boldest."""
    coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """λ ≥ 0 of variance and deviation: larger trusts less where members disagree; 0 is the mean."""

    @property
    def wants(self) -> frozenset[str]:
        return wanted(self.members)

    def judge(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        patience: Patience,
    ) -> Scores:
        judged = judge_parts(self.members, prompts, completions, columns, patience)
        values: list[float | None] = []
        spread: list[float | None] = []
        for *scores, reason in zip(*judged.columns, judged.reasons, strict=True):
            said = [x for x in scores if x is not None]
            values.append(self._combined(said) if reason is None else None)
            spread.append(math.sqrt(pvariance(said)) if reason is None else None)
        return Scores.of(values, judged.reasons, {**judged.named, "disagreement": spread})

    def _combined(self, said: list[float]) -> float:
        if self.combine == "worst_case":
            return min(said)
        if self.combine == "mean":
            return fmean(said)
        variance = pvariance(said)
        doubt = variance if self.combine == "variance" else math.sqrt(variance)
        return fmean(said) - self.coefficient * doubt

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored | None]:
        return list(self.judge(prompts, completions, columns, Patience()).values)
