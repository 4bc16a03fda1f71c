"""Drawing completions: the one call, whichever engine answers it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from truing.errors import ModelError, RolloutError, TruingError
from truing.groups import TokenCompletion, TokenGroup
from truing.memory import Memory, attempted, is_memory_error
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
    memory: Memory | None = None,
) -> list[TokenGroup]:
    """Groups with `completions` drawn completions each, in the order of `prompts`.

    Each completion carries its sampled log-probs (nats, at the temperature) and why it ended.
    Where memory runs out fewer are drawn at once, and `memory` remembers it. Raises ModelError
    where `engine: local` is asked for and the model cannot be drawn from so, RolloutError for an
    engine that fails or answers what it was not asked, ResourceError if one row does not fit.
    """
    if not prompts:
        return []
    engine, memory = _engine(network, prompts, settings), memory or Memory()
    rows = min(settings.batch_size, memory.rows or settings.batch_size)
    while True:
        now = replace(settings, batch_size=rows)
        groups = attempted(
            lambda now=now: _drawn(engine, network, prompts, now, completions, seed)  # type: ignore[misc]
        )
        if groups is not None:
            return _as_asked(groups, prompts, settings, completions)
        rows = memory.fewer_rows(min(rows, len(prompts) * completions))


def _drawn(
    engine: Engine,
    network: Network,
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    completions: int,
    seed: int,
) -> list[TokenGroup]:
    """What the engine answers. Raises RolloutError for whatever it raises, memory errors aside."""
    try:
        return engine(network, prompts, settings, completions=completions, seed=seed)
    except Exception as error:
        if isinstance(error, TruingError) or is_memory_error(error):
            raise
        raise RolloutError(
            f"drawing {completions} completions of {len(prompts)} prompts failed "
            f"({type(error).__name__}: {error})",
            where=f"sampler, engine {engine.__module__.rpartition('.')[2]}",
            remedy="set engine: transformers to draw with another one; what was saved before is "
            "whole, and --resume draws this rollout again",
        ) from error


def _as_asked(
    groups: Sequence[TokenGroup],
    prompts: Sequence[TokenGroup],
    settings: SamplingSettings,
    completions: int,
) -> list[TokenGroup]:
    """The groups, if they answer these prompts in this order with so many completions of ids and
    as many log-probs each. Raises RolloutError: scores would be laid on others' completions."""
    wrong = (
        "" if len(groups) == len(prompts) else f"{len(groups)} groups for {len(prompts)} prompts"
    )
    for number, (prompt, group) in enumerate(zip(prompts, groups, strict=False)):
        if wrong:
            break
        if group.prompt_ids != prompt.prompt_ids:
            wrong = f"group {number} answers another prompt than was asked there"
        elif len(group.completions) != completions:
            wrong = f"{len(group.completions)} completions of prompt {number}, not {completions}"
        elif not all(_whole(one, settings.max_completion_length) for one in group.completions):
            wrong = f"a completion of prompt {number} is empty, too long, or lacks log-probs"
    if wrong:
        raise RolloutError(
            f"the sampler answered what it was not asked: {wrong}",
            where="sampler",
            remedy="this is a fault of the engine: report it, or set engine: transformers",
        )
    return list(groups)


def _whole(completion: TokenCompletion, longest: int) -> bool:
    logps = completion.sampled_logps
    return (
        0 < len(completion.ids) <= longest
        and logps is not None
        and len(logps) == len(completion.ids)
    )


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
