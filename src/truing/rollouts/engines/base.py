"""What every engine is asked and answers: prompts and settings in, the same prompts answered out.

An engine on another machine fits as well: it is given the network, so that it can send on the
weights before it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from truing.groups import TokenGroup
from truing.models.network import Network

EngineName = Literal["auto", "local", "transformers"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn; see the recipe's `Sampling` for what each field does."""

    max_completion_length: int
    temperature: float
    batch_size: int
    stop_id: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    """Ids -> text. Needed where there are stop sequences: those are text."""
    engine: EngineName = "auto"


class Engine(Protocol):
    """Something that draws completions."""

    def __call__(
        self,
        network: Network,
        prompts: Sequence[TokenGroup],
        settings: SamplingSettings,
        *,
        completions: int,
        seed: int,
    ) -> list[TokenGroup]:
        """The prompts, in their order, with `completions` drawn completions each.

        Each completion carries its sampled log-probs (see `Chooser`) and why it ended. It depends
        on the weights, its prompt, the seed, the place of the prompt among the prompts and its own
        place in the group, not on what is drawn beside it (to rounding).
        """
