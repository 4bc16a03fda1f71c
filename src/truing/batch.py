"""What flows through a step: `Batch` in, `Outputs` from the model, `Loss` from the objective.

Index letters, used as name suffixes everywhere:

    T tokens of the batch, all groups one after another · N predicted (completion) tokens ·
    C completions · G groups · S labelled reasoning steps · V vocabulary · H hidden size

A column without a letter is one number for the whole optimizer step. Nothing is padded: a masked
slot cannot cost time, nor leak into a mean, where there are no masked slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Column:
    """One optional tensor of a batch."""

    meaning: str
    unit: str
    provider: str
    into: Literal["T", "C", ""] = ""
    """What it counts along, if it is an index."""


COLUMNS: Mapping[str, Column] = {
    "chosen_G": Column("completion index (into C) of the preferred one", "index", "pairs", "C"),
    "rejected_G": Column("completion index (into C) of the other one", "index", "pairs", "C"),
    "margin_G": Column("by how much the chosen one is better", "reward", "the rows' `margin`"),
    "probability_G": Column(
        "probability that chosen is better than rejected", "0 to 1", "the rows' `probability`"
    ),
    "label_C": Column("verdict: 1 desirable, 0 not", "bool", "unpaired rows"),
    "mismatched_C": Column(
        "1 for another row's completion, there only to estimate KL", "bool", "the loader"
    ),
    "of_reference_C": Column("1 if the reference drew it, not the policy", "bool", "rollouts"),
    "step_end_S": Column(
        "index (into T) of the last token of each labelled step", "index", "stepwise rows", "T"
    ),
    "step_label_S": Column("1 if that step is right", "bool", "stepwise rows"),
    "finished_C": Column("1 if the completion ends with the stop token", "bool", "packing"),
    "frozen_TH": Column(
        "hidden states that enter the first layer with an adapter", "-", "the policy's network"
    ),
    "sampled_logps_N": Column(
        "log-prob of each token under the policy that sampled it, as the trainer computes it",
        "nats",
        "rollouts",
    ),
    "sampler_logps_N": Column("the same log-prob as the sampler itself gave it", "nats", "packing"),
    "reference_logps_N": Column(
        "log-prob of each token under the frozen reference", "nats", "the step, or rollouts"
    ),
    "scores_C": Column("reward of each completion, as the reward gave it", "reward", "rollouts"),
    "baseline_C": Column("score of the greedy completion of the same prompt", "reward", "rollouts"),
    "values_N": Column("value of the state before each token, at sampling", "reward", "rollouts"),
    "advantages_N": Column("advantage of each token, detached", "reward", "credit"),
    "returns_N": Column("target of the value head, detached", "reward", "credit"),
    "demonstration_C": Column(
        "1 for a demonstration that stands beside the rollout", "bool", "rollouts with ptx_coef"
    ),
    "kl_baseline": Column("mean log-ratio of mismatched completions", "nats", "prepare"),
    "reward_shift": Column("running mean of the implicit reward", "reward", "prepare"),
    "step_beta": Column("β of this step", "1 / nats", "prepare"),
    "kept_G": Column("1 for the pairs this step learns from", "bool", "prepare"),
    "chosen_rival_G": Column("what the chosen side is compared with", "nats", "prepare"),
    "rejected_rival_G": Column("what the rejected side is compared with", "nats", "prepare"),
    "part_weights": Column(
        "units of each part of a mixture, then groups, of the step", "count", "prepare"
    ),
    "demonstration_scale": Column(
        "rollout tokens per demonstration token of the step", "ratio", "prepare"
    ),
}
"""Every column a batch may carry: the suffix gives its shape, `provider` who fills it in.
`prepare` is the objective's own look at the whole step before its first gradient."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups one after another, each prompt stored once and followed by its completions.

    Attention rule: query q sees key k iff they are of the same group, k is not after q, and k's
    branch is 0 (the prompt) or q's own. Positions of every completion restart after its prompt.
    """

    tokens_T: Tensor
    """Token ids."""
    positions_T: Tensor
    group_T: Tensor
    """Which group of the batch."""
    branch_T: Tensor
    """0 for the prompt, 1..k for its completions."""
    source_N: Tensor
    """Index (into T) of the hidden state that predicts token n. The prompt's last state
    predicts the first token of every completion."""
    target_N: Tensor
    """Index (into T) of token n itself."""
    completion_N: Tensor
    """Which completion token n belongs to."""
    group_C: Tensor
    """Which group each completion belongs to."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.columns:
            known = COLUMNS[name]
            raise KeyError(
                f"this batch has no {name} ({known.meaning}); it comes from {known.provider}"
            )
        return self.columns[name].detach()  # weights and targets never carry a gradient

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    @property
    def size_T(self) -> int:
        return self.tokens_T.numel()

    @property
    def size_N(self) -> int:
        return self.source_N.numel()

    @property
    def size_C(self) -> int:
        return self.group_C.numel()

    @property
    def size_G(self) -> int:
        return int(self.group_C.max()) + 1 if self.size_C else 0

    @property
    def token_ids_N(self) -> Tensor:
        """The predicted token ids."""
        return self.tokens_T[self.target_N]

    @property
    def lengths_C(self) -> Tensor:
        """Tokens of each completion, stop token included."""
        return torch.bincount(self.completion_N, minlength=self.size_C)

    @property
    def last_C(self) -> Tensor:
        """Index into N of each completion's last real token."""
        return torch.cumsum(self.lengths_C, 0) - 1

    def with_columns(self, **columns: Tensor) -> Batch:
        """The same batch with more (or replaced) columns; unknown names are refused."""
        for name in columns:
            if name not in COLUMNS:
                raise KeyError(f"'{name}' is not in the table of columns of truing.batch")
        return replace(self, columns={**self.columns, **columns})

    def without(self, name: str) -> Batch:
        """The same batch less a column, if it has it."""
        return replace(self, columns={k: v for k, v in self.columns.items() if k != name})

    def keep(self, kept_C: Tensor) -> Batch:
        """Without the completions where `kept_C` is false: they are not predicted any more.

        They stay among the tokens (and cost what they cost there). Columns over C and N follow;
        indices into C (pairs) cannot, so a batch with a choice is refused with KeyError.
        """
        if "chosen_G" in self:
            raise KeyError("a batch of pairs cannot lose completions")
        kept_N = kept_C[self.completion_N]
        new_C = torch.cumsum(kept_C, 0) - 1
        follow = {"C": kept_C, "N": kept_N}
        columns = {
            name: values[follow[name[-1]]] if name[-2:] in ("_C", "_N") else values
            for name, values in self.columns.items()
        }
        return replace(
            self,
            source_N=self.source_N[kept_N],
            target_N=self.target_N[kept_N],
            completion_N=new_C[self.completion_N[kept_N]],
            group_C=self.group_C[kept_C],
            columns=columns,
        )

    def halves(self) -> tuple[Batch, Batch] | None:
        """Its groups in two batches, in their order and as alike in tokens as whole groups allow.

        None for a single group: that cannot be divided. Each half predicts something.
        """
        predicted = torch.unique_consecutive(self.group_C)
        if len(predicted) < 2:
            return None
        begin_T = torch.searchsorted(self.group_T, predicted[1:])
        middle = int((begin_T - self.size_T / 2).abs().argmin())
        border = int(predicted[middle + 1])
        return self._groups(0, border), self._groups(border, int(self.group_T[-1]) + 1)

    def _groups(self, first: int, end: int) -> Batch:
        """The groups `first` to `end`, with every column cut along its letter."""
        bounds = torch.tensor([first, end], device=self.group_C.device)
        along = {"G": [first, end], "T": torch.searchsorted(self.group_T, bounds).tolist()}
        bounds = torch.searchsorted(self.group_C, bounds)
        along["C"] = bounds.tolist()
        along["N"] = torch.searchsorted(self.completion_N, bounds).tolist()
        if "step_end_S" in self:
            bounds = torch.tensor(along["T"], device=self.group_C.device)
            along["S"] = torch.searchsorted(self["step_end_S"], bounds).tolist()
        cut = {letter: slice(*ends) for letter, ends in along.items()}

        def column(name: str, values: Tensor) -> Tensor:
            letter = _letter(name)
            kept = values[cut[letter]] if letter else values
            return kept - along[into][0] if (into := COLUMNS[name].into) else kept

        return Batch(
            tokens_T=self.tokens_T[cut["T"]],
            positions_T=self.positions_T[cut["T"]],
            group_T=self.group_T[cut["T"]] - first,
            branch_T=self.branch_T[cut["T"]],
            source_N=self.source_N[cut["N"]] - along["T"][0],
            target_N=self.target_N[cut["N"]] - along["T"][0],
            completion_N=self.completion_N[cut["N"]] - along["C"][0],
            group_C=self.group_C[cut["C"]] - first,
            columns={name: column(name, values) for name, values in self.columns.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {
            name: getattr(self, name).to(device) for name in self.__slots__ if name != "columns"
        }
        return Batch(**tensors, columns={k: v.to(device) for k, v in self.columns.items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be kept; columns keep theirs."""
        own = {name: getattr(self, name) for name in self.__slots__ if name != "columns"}
        return own | dict(self.columns)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """The batch that `tensors` came from."""
        own = {name: tensors[name] for name in cls.__slots__ if name != "columns"}
        rest = {name: t for name, t in tensors.items() if name not in own}
        return cls(**own, columns=rest)


def _letter(name: str) -> str:
    """What a column's first dimension runs along; empty for one number of the whole step."""
    suffix = name.rpartition("_")[2]
    return suffix[0] if suffix.isupper() else ""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the models say about a batch. Only what the objective needs is computed."""

    logps_N: Tensor | None = None
    """Log-prob of each predicted token under the policy, float32, nats."""
    entropy_N: Tensor | None = None
    """Entropy of each predicting distribution, float32, nats."""
    values_N: Tensor | None = None
    """Value head at the state before each token, float32."""
    scores_C: Tensor | None = None
    """Reward head at the last real token of each completion, float32."""
    scores_S: Tensor | None = None
    """Reward head at the last token of each labelled step, float32."""
    collision_N: Tensor | None = None
    """log Σ_v π(v)² of each predicting distribution, float32, no gradient."""

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """What was said of the parts of a batch, as if it had been said of the whole."""
        found = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: torch.cat(said) for name, said in found.items() if None not in said})


class Metric(NamedTuple):
    """A number that can be added up over micro-batches: `total` over `weight`."""

    total: Tensor
    weight: float
    reduce: Literal["mean", "min", "max"] = "mean"


class Loss(NamedTuple):
    """What an objective returns: a SUM and the weight it must be divided by, once a step."""

    total: Tensor
    weight: float
    metrics: dict[str, Metric]


def mean_of(values: Tensor) -> Metric:
    """A metric that averages `values` over all their elements, whatever the micro-batches."""
    return Metric(values.detach().float().sum(), float(values.numel()))


def extreme_of(values: Tensor, reduce: Literal["min", "max"]) -> Metric:
    """The smallest or largest of `values`."""
    extreme = values.min() if reduce == "min" else values.max()
    return Metric(extreme.detach().float(), 1.0, reduce)


def combine(collected: Iterable[dict[str, Metric]]) -> dict[str, float]:
    """Metrics of several micro-batches as one number each. Weightless means are left out."""
    by_name: dict[str, list[Metric]] = {}
    for metrics in collected:
        for name, metric in metrics.items():
            by_name.setdefault(name, []).append(metric)
    combined: dict[str, float] = {}
    for name, parts in by_name.items():
        totals = [float(part.total) for part in parts]
        if parts[0].reduce == "mean":
            weight = sum(part.weight for part in parts)
            if weight:
                combined[name] = sum(totals) / weight
        else:
            combined[name] = min(totals) if parts[0].reduce == "min" else max(totals)
    return combined
