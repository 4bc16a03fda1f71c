"""Drawing completions: the one call, whichever engine answers it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from truing.errors import ModelError
from truing.groups import TokenGroup
from truing.models.forward import takes_shared_prompts
from truing.models.network import Network
from truing.rollouts.engines import local, transformers
from truing.rollouts.engines.base import Engine, SamplingSettings


def sample(
    network: Network,
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    *,
    completions: int = 1,
    seed: int = 0,
) -> list[TokenGroup]:
    """Groups with `completions` drawn completions each, in the order of `prompts`.

    Each completion carries its sampled log-probs (nats, at the temperature) and why it ended.
    Raises ModelError where `engine: local` is asked for and the model cannot be drawn from so.
    """
    if not prompts:
        return []
    engine = _engine(network, prompts, settings)
    return engine(network, prompts, settings, completions=completions, seed=seed)


def _engine(network: Network, prompts: Sequence[TokenGroup], settings: SamplingSettings) -> Engine:
    if settings.engine == "transformers":
        return transformers.draw
    longest = max((len(prompt.prompt_ids) for prompt in prompts), default=0)
    config = network.base.config
    if takes_shared_prompts(config, longest + settings.max_completion_length):
        return local.draw
    reason = f"{config.model_type} does not attend to all of so long a text"
    if settings.engine == "local":
        raise ModelError(
            f"the local engine cannot draw from this model: {reason}",
            where="engine: local",
            remedy="set engine to auto or transformers, or lower max_completion_length",
        )
    warnings.warn(f"drawing with transformers' generate, which is slower: {reason}", stacklevel=3)
    return transformers.draw
