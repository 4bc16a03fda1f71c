"""What imitation (SFT and its like) learns from judged data: the good completions, alone.

A mixture gives these to its imitating parts, as the loader does where SFT is trained by itself.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from truing.batch import Batch, Outputs


def demonstrations(batch: Batch, needs: frozenset[str]) -> Tensor:
    """The completions to imitate: the chosen of pairs, the desirable of verdicts. Shape [C]."""
    if "chosen_G" in needs:
        nobody_C = torch.zeros_like(batch.group_C, dtype=torch.bool)
        return nobody_C.index_fill(0, batch["chosen_G"], True)
    if "mismatched_C" in needs:
        return batch["label_C"] & ~batch["mismatched_C"]
    return batch["label_C"] if "label_C" in needs else torch.ones_like(batch.group_C).bool()


def only(batch: Batch, kept_C: Tensor) -> Batch:
    """Some of a batch's completions, no longer pairs."""
    rest = {k: v for k, v in batch.columns.items() if k not in ("chosen_G", "rejected_G")}
    return replace(batch, columns=rest).keep(kept_C)


def only_outputs(outputs: Outputs, batch: Batch, kept_C: Tensor) -> Outputs:
    """What the models say of those completions."""
    kept = {"C": kept_C, "N": kept_C[batch.completion_N]}
    given = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    known = {name: values for name, values in given.items() if values is not None}
    return Outputs(**{name: v[kept[name[-1]]] for name, v in known.items() if name[-1] in kept})
