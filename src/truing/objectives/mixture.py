"""A weighted sum of objectives on the same data.

    L = Σ_k weight_k · mean_k        mean_k = Σ_units loss_k / units of part k, over the whole step

Each part keeps its own unit: one part may average over pairs and the next over tokens. A part that
reads no judgement (`sft`, `dft`) imitates: with pairs it learns the chosen completions only, with
verdicts the desirable ones. With DPO, that is the usual remedy where chosen log-probs fall.

Gradient: the weighted sum of the parts' gradients; none is rescaled by another's size.
Implementations: TRL's list of loss types with weights shares one batch mean and one set of fields;
here each part has fields of its own, and metrics under its own name (`dpo/loss`, `sft/loss`).
Source: Wang et al. 2024, "Enhancing the Reasoning Ability of Multimodal Large Language Models via
Mixed Preference Optimization" (arXiv 2411.10442), section 3.2.

    >>> worked(Mixture())
    0.782599
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from truing.batch import Batch, Loss, Metric, Outputs
from truing.objectives._gather import hand_out
from truing.objectives._parts import Part, build, refuse_unfit, union_of
from truing.objectives.base import KNOBS, FromFields, Objective, WholeStep

DPO_AND_SFT = ({"method": "dpo", "weight": 1.0, "beta": 0.1}, {"method": "sft", "weight": 0.2})
PREPARED = frozenset({"part_weights"})


@dataclass(frozen=True, config=KNOBS)
class Mixture(Objective):
    """Several objectives at once, each a mean over its own units.

    Shapes: what the parts read. Raises a validation error for unknown methods or fields, parts
    that train different things, learn from their own samples or prepare the same column.
    Departures: none.
    """

    parts: Annotated[tuple[dict[str, Any], ...], Field(min_length=2)] = DPO_AND_SFT
    """Two or more of {method: name or preset, weight: > 0 (1 if left out), and the method's own
    fields}. A larger weight pulls harder."""

    trains = FromFields(lambda mix: mix.built[0].objective.trains)
    unit = "groups"
    needs = FromFields(lambda mix: union_of(mix.built, "needs") | PREPARED)
    extra_outputs = FromFields(lambda mix: union_of(mix.built, "extra_outputs"))
    prepared = FromFields(lambda mix: union_of(mix.built, "prepared") | PREPARED)
    step_zero = FromFields(
        lambda mix: {
            f"{part.method}/{metric}": expected
            for part in mix.built
            for metric, expected in part.objective.step_zero.items()
        }
    )

    @field_validator("parts")
    @classmethod
    def _fit(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        refuse_unfit([build(raw) for raw in parts])
        return parts

    @cached_property
    def built(self) -> tuple[Part, ...]:
        """The parts as objectives."""
        return tuple(build(raw) for raw in self.parts)

    @property
    def required(self) -> frozenset[str]:
        return union_of(self.built, "required") | PREPARED

    def prepare(self, step: WholeStep) -> list[Batch]:
        batches = step.batches
        for index, part in enumerate(self.built):
            prefix = f"{index}."  # two parts may carry something of the same name
            own = {k[len(prefix) :]: v for k, v in step.carried.items() if k.startswith(prefix)}
            batches = part.objective.prepare(
                dataclasses.replace(step, batches=batches, carried=own)
            )
            step.carried |= {prefix + name: value for name, value in own.items()}
        units = [sum(part.weigh(batch, self.needs) for batch in batches) for part in self.built]
        units.append(sum(self.weigh(batch) for batch in batches))  # never 0, as a part's may be
        return hand_out(batches, part_weights=torch.tensor(units, dtype=torch.float64))

    def __call__(self, batch: Batch, outputs: Outputs) -> Loss:
        *units, groups = batch["part_weights"].tolist()
        totals: list[Tensor] = []
        metrics: dict[str, Metric] = {}
        for part, count in zip(self.built, units, strict=True):
            loss = part.judge(batch, outputs, self.needs)
            # the step divides by its groups; a part without units adds nothing
            totals.append(part.weight * groups / max(count, 1.0) * loss.total)
            metrics |= {f"{part.method}/{name}": metric for name, metric in loss.metrics.items()}
        total, weight = torch.stack(totals).sum(), self.weigh(batch)
        return Loss(total, weight, {"loss": Metric(total.detach().float(), weight)} | metrics)
