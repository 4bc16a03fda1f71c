"""The step-0 contract: what must hold before the first update, or training is refused.

A wrong mask, a wrong reference, dropout left on or a temperature forgotten all show here, at the
cost of one comparison, instead of as a curve that looks odd a day later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from truing.batch import Batch, Outputs
from truing.errors import NumericsError

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far numbers may be apart that are the same but for the shapes they were computed in."""
APART = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""The same for what a network says of one token or completion, on average over a batch."""


def check_numbers(
    expected: Mapping[str, tuple[float, float]],
    found: Mapping[str, float],
    where: str,
    rounding: float = 0.0,
) -> None:
    """Metrics of the first batch against what the objective says of them.

    `rounding` widens the tolerances, where micro-batches had to be halved between the numbers that
    are compared. Raises NumericsError naming the metric, what was expected and what was found.
    """
    for name, (value, narrow) in expected.items():
        tolerance = narrow + rounding
        if not abs(found[name] - value) <= tolerance:
            raise NumericsError(
                f"{name} is {found[name]:.8g} before the first update, it must be {value:.8g}"
                + (f" ± {tolerance:g}" if tolerance else " exactly"),
                where=f"{where}, step 0",
                remedy="policy and reference (or the sampler's log-probs) are not the same "
                "model on the same path: check weights, template, temperature and dropout",
            )


def check_gradients(
    gradients: Mapping[str, Tensor | None],
    modules: Sequence[nn.Module],
    where: str,
    *,
    silent: bool = False,
) -> None:
    """Every trainable tensor has a finite gradient, not all of them zero; no frozen one has any.

    In a `silent` step (no completion was better than another, as with rare rewards) all may be
    zero. Raises NumericsError naming the tensor.
    """
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if missing:
        raise NumericsError(
            f"{len(missing)} trainable tensors get no gradient, for example {missing[0]}",
            where=f"{where}, step 0",
            remedy="the loss does not read them: train what it reads",
        )
    for name, gradient in gradients.items():
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise NumericsError(
                f"the gradient of {name} is not finite",
                where=f"{where}, step 0",
                remedy="try dtype=float32; if that does not help, look at the data of this step",
            )
    found = [gradient for gradient in gradients.values() if gradient is not None]
    if not silent and not any(bool(gradient.any()) for gradient in found):
        raise NumericsError(
            "every gradient is zero",
            where=f"{where}, step 0",
            remedy="the data carry no signal: check labels, scores and advantages",
        )
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and parameter.grad is not None:
                raise NumericsError(
                    f"the frozen tensor {name} got a gradient",
                    where=f"{where}, step 0",
                    remedy="this is a bug of Truing: please report it",
                )


def check_alone(
    measured: Callable[[Batch], Outputs], batch: Batch, dtype: torch.dtype, where: str
) -> None:
    """What the network says of a group does not depend on the groups beside it, nor on chance.

    For objectives without a number of their own that must hold: dropout left on, a mask that lets
    groups see each other, or a score read at another's token show here. Raises NumericsError.
    """
    halves = batch.halves() or (batch,)
    whole, alone = measured(batch), Outputs.joined([measured(half) for half in halves])
    for name in ("logps_N", "scores_C", "scores_S"):
        together, apart = getattr(whole, name), getattr(alone, name)
        if together is None or not together.numel():
            continue
        gap = float((together - apart).abs().mean())
        if not gap <= APART.get(dtype, APART[torch.bfloat16]):
            raise NumericsError(
                f"{name.rpartition('_')[0]} of the same groups differ by {gap:.4g} on average when "
                "they are computed with others and without",
                where=f"{where}, step 0",
                remedy="the network is not in evaluation mode (dropout), or groups see each other: "
                "check the model's configuration and whatever hooks into it",
            )
