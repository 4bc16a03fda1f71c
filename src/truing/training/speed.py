"""How near a training run came to the machine's arithmetic limit, said at its end.

The limit is a time: the operations that the work takes at the least (planning/flops.py), done at
the rate at which this machine multiplies matrices of this model's own shapes. The rate is measured
after the last step, so it cannot disturb a run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from truing.models.network import Network
from truing.models.roles import Roles
from truing.planning import flops
from truing.planning.flops import Flops
from truing.training.meter import KINDS, Meter, layer_of, matrices, model_sizes

RATE_SECONDS = 0.4
"""How long the rate is measured, if the matrices are small enough to be multiplied often."""
CPU_ROWS = 512
"""Rows of a product that is timed on a CPU; more take longer and go no faster per row."""


class Shape(NamedTuple):
    """A matrix product: [rows, inputs] times [inputs, outputs]."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs


def shapes(network: Network, rows: int, predicted: int) -> list[Shape]:
    """The products of a forward pass over `rows` tokens: one layer's, and the head's if used."""
    top = network.base.config.num_hidden_layers - 1
    found = [
        Shape(rows, parameter.shape[1], parameter.shape[0])
        for name, parameter in matrices(network.trunk)
        if layer_of(name) == top and ".lora_" not in name
    ]
    if predicted:
        outputs, inputs = network.vocabulary_weight.shape
        found.append(Shape(predicted, inputs, outputs))
    return found


def measured_matmul_rate(
    dtype: torch.dtype, device: torch.device, products: Sequence[Shape]
) -> float:
    """Operations per second over these products, each timed several times and its median taken.

    On CUDA the device is waited for. Takes about RATE_SECONDS, longer where one round does.
    """
    most = CPU_ROWS if device.type == "cpu" else max(shape.rows for shape in products)
    generator = torch.Generator(device).manual_seed(0)  # the global random state stays as it was
    small = [shape._replace(rows=min(shape.rows, most)) for shape in products]
    # a matrix that comes twice is timed once
    operands = {
        shape: (
            torch.rand(shape.rows, shape.inputs, generator=generator, device=device).to(dtype),
            torch.rand(shape.outputs, shape.inputs, generator=generator, device=device).to(dtype),
        )
        for shape in set(small)
    }
    seconds: dict[Shape, list[float]] = {shape: [] for shape in operands}
    until = time.perf_counter() + RATE_SECONDS
    warm = False
    while not warm or time.perf_counter() < until or not all(seconds.values()):
        for shape, (left, right) in operands.items():
            spent = _seconds_of(left, right)
            if warm:  # the first call of a shape also makes its kernel
                seconds[shape].append(spent)
        warm = True
    medians = {shape: statistics.median(found) for shape, found in seconds.items()}
    return sum(s.flops for s in small) / sum(medians[s] for s in small)


def _seconds_of(left: Tensor, right: Tensor) -> float:
    _wait(left.device)
    started = time.perf_counter()
    nn.functional.linear(left, right)
    _wait(left.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Speed:
    """What a run did, in what time, and what the machine's arithmetic would have allowed."""

    flops: Mapping[str, Flops]
    """Kind of pass -> its operations at the least."""
    rate: float
    """Operations per second, measured."""
    train_seconds: float
    """The loop without drawing and held-out measurements."""
    sample_seconds: float
    tokens: int
    """Trained on."""
    drawn: int

    @property
    def train_flops(self) -> int:
        """Of everything that is not drawing."""
        return sum(found.total for kind, found in self.flops.items() if kind != "sample")

    @property
    def sample_flops(self) -> int:
        return self.flops["sample"].total if "sample" in self.flops else 0

    @property
    def fraction(self) -> float:
        """Time at the limit over time taken, drawing included."""
        total = self.train_flops + self.sample_flops
        return total / self.rate / (self.train_seconds + self.sample_seconds)

    @property
    def facts(self) -> dict[str, Any]:
        """For run.json."""
        at_limit = {
            kind: {
                "linear": found.linear / self.rate,
                "attention": found.attention / self.rate,
                "head": found.head / self.rate,
            }
            for kind, found in self.flops.items()
        }
        return {
            "fraction_of_arithmetic_limit": self.fraction,
            "matmul_flops_per_second": self.rate,
            "flops": {kind: found.total for kind, found in self.flops.items()},
            "seconds_at_limit": at_limit,
            "train_seconds": self.train_seconds,
            "sample_seconds": self.sample_seconds,
            "tokens_trained_on": self.tokens,
            "tokens_drawn": self.drawn,
        }

    def __str__(self) -> str:
        """One line for a person."""
        total = self.train_flops + self.sample_flops
        seconds = self.train_seconds + self.sample_seconds
        kinds = ", ".join(f"{k} {_flop(f.total)}" for k, f in self.flops.items())
        said = (
            f"{self.fraction:.2g} of the arithmetic limit ({1 / self.fraction:.2g}x the "
            f"floor): {_flop(total)} at {_flop(self.rate)}/s = {total / self.rate:.3g} s of "
            f"{seconds:.3g} s ({kinds})"
        )
        train = f"trained on {self.tokens / self.train_seconds:,.0f} tokens/s"
        if not self.drawn:
            return f"{said}; {train}"
        share = {
            "drew": self.sample_flops / self.rate / self.sample_seconds,
            "train": self.train_flops / self.rate / self.train_seconds,
        }
        return (
            f"{said}; drew {self.drawn / self.sample_seconds:,.0f} tokens/s in "
            f"{self.sample_seconds:.3g} s ({share['drew']:.2g} of the limit), {train} in "
            f"{self.train_seconds:.3g} s ({share['train']:.2g})"
        )


def _flop(count: float) -> str:
    """1.9 TFLOP, 310 GFLOP, ..."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}FLOP"
    return f"{count:.0f} FLOP"


def measured_speed(meter: Meter, roles: Roles, trains: str) -> Speed:
    """The statement of a run that is over, for an objective that `trains` this. Takes about
    RATE_SECONDS."""
    network = roles.policy
    sizes = model_sizes(network, trains)
    judge = model_sizes(roles.reward_copy, "reward") if roles.reward_copy else sizes
    own = flops.upper if "frozen" in meter.work else flops.forward
    costs = {
        "frozen": lambda work: flops.lower(sizes, work),
        "train": lambda work: own(sizes, work) + flops.backward(sizes, work),
        "forward": lambda work: own(sizes, work),
        "reference": lambda work: flops.reference(sizes, work),
        "reward": lambda work: flops.forward(judge, work),
        "sample": lambda work: flops.forward(sizes, work),
    }
    train = meter.total("train")
    rows, predicted = -(-train.tokens // meter.passes), -(-train.predicted // meter.passes)
    parameter = next(network.parameters())
    rate = measured_matmul_rate(parameter.dtype, parameter.device, shapes(network, rows, predicted))
    return Speed(
        flops={kind: costs[kind](meter.total(kind)) for kind in KINDS if kind in meter.work},
        rate=rate,
        train_seconds=meter.train_seconds,
        sample_seconds=meter.sample_seconds,
        tokens=train.tokens,
        drawn=meter.drawn,
    )
