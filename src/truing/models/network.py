"""One transformer trunk and what reads it: the language-model head, a reward, a value.

T tokens · N predicted tokens · C completions · S judged steps · H hidden size
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.batch import Batch, Outputs
from truing.errors import ModelError
from truing.models import frozen
from truing.models.forward import hidden_states, serves
from truing.models.heads import ScalarHead
from truing.models.logprobs import token_statistics

LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)
"""Configuration keys of models that do more to logits than one product; not supported yet."""

OWN_ADAPTER = "default"
"""The policy's adapter (or that of whatever is trained)."""
CRITIC_ADAPTER = "critic"
"""The adapter of a critic that learns beside it. Others (a reward model's) only ever read."""


class Network(nn.Module):
    """A model of transformers, with or without adapters, and our heads on it.

    Raises ModelError for a language-model head that is more than one matrix.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lora: LoraConfig | None = None,
        score_head: ScalarHead | None = None,
        value_head: ScalarHead | None = None,
    ) -> None:
        super().__init__()
        self.base = model
        self.peft: PeftModel | None = None
        if lora is not None:
            with warnings.catch_warnings():
                # peft 0.21 asks transformers 5.23 by a name that is on its way out
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
                self.peft = get_peft_model(model, lora, autocast_adapter_dtype=False)
        self.score_head, self.value_head = score_head, value_head
        self.reward_head: ScalarHead | None = None
        """Head of a reward model that lives on this trunk as a second adapter."""
        self.critic_head: ScalarHead | None = None
        """Head of a critic that learns on this trunk as an adapter of its own."""

    @property
    def trunk(self) -> nn.Module:
        """Embeddings and layers, without the language-model head."""
        trunk: nn.Module = getattr(self.base, self.base.base_model_prefix)
        return trunk

    @property
    def vocabulary_weight(self) -> Tensor:
        """The [V, H] matrix whose product with a state are the logits."""
        head: Any = self.base.get_output_embeddings()
        config = self.base.config
        silent = (None, 0, 1)  # a scale of 1 is none
        reshaped = [n for n in LOGIT_TRANSFORMS if getattr(config, n, None) not in silent]
        if reshaped or not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
            raise ModelError(
                "the language-model head is not one matrix",
                where=", ".join([config.model_type, *reshaped]),
                remedy="use a model whose logits are hidden · Wᵀ (Llama, Qwen, GPT-2, NeoX, ...)",
            )
        return head.weight

    def trainable(self, trains: str) -> dict[str, nn.Parameter]:
        """Name -> parameter that learns, for what an objective says it trains.

        With adapters: the adapters and heads. Without: every weight that the loss reads.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        if self.peft is not None:
            learn = tuple(f".{adapter}." for adapter in (OWN_ADAPTER, CRITIC_ADAPTER))
            chosen = {n: p for n, p in self.named_parameters() if any(a in n for a in learn)}
        else:
            owner = self.trunk if trains == "reward" else self.base
            wanted = {id(p) for p in owner.parameters()}
            chosen = {n: p for n, p in self.named_parameters() if id(p) in wanted}
        for name in ("score_head", "value_head", "critic_head"):
            head: ScalarHead | None = getattr(self, name)
            if head is not None:
                chosen |= {f"{name}.{n}": p for n, p in head.named_parameters()}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def forward(
        self,
        batch: Batch,
        *,
        logps: bool = False,
        values: bool = False,
        scores: bool = False,
        steps: bool = False,
        collision: bool = False,
        temperature: float = 1.0,
    ) -> Outputs:
        """What is asked for, from one pass over the trunk. `collision` comes with `logps` only."""
        hidden = self._hidden(batch)
        logps_N = entropy_N = collision_N = values_N = scores_C = scores_S = None
        if logps or values:
            source_NH = hidden[batch.source_N]
            if logps:
                logps_N, entropy_N, collision_N = token_statistics(
                    source_NH,
                    self.vocabulary_weight,
                    batch.token_ids_N,
                    temperature,
                    collision=collision,
                )
            if values:
                values_N = _read(self.value_head, source_NH)
        if scores:
            scores_C = _read(self.score_head, hidden[_last_tokens(batch)])
        if steps:
            scores_S = _read(self.score_head, hidden[batch["step_end_S"]])
        return Outputs(logps_N, entropy_N, values_N, scores_C, scores_S, collision_N)

    @torch.no_grad()
    def adapter_scores(self, batch: Batch, adapter: str) -> Tensor:
        """Scores of a reward model that is an adapter on this trunk. Shape [C]."""
        with self.using(adapter):
            return _read(self.reward_head, self._hidden(batch)[_last_tokens(batch)])

    def critic_values(self, batch: Batch) -> Tensor:
        """Values of a critic that is an adapter on this trunk, with gradients. Shape [N]."""
        with self.using(CRITIC_ADAPTER):
            return _read(self.critic_head, self._hidden(batch)[batch.source_N])

    def with_frozen(self, batch: Batch) -> Batch:
        """The batch with the states that leave the layers no adapter touches, if there are any.

        Every later pass of this network over the batch begins there.
        """
        layers = frozen.frozen_layers(self)
        if not layers or not serves(self.trunk, batch):
            return batch
        states_TH = frozen.states_before(
            self.trunk, layers, lambda: hidden_states(self.trunk, batch)
        )
        return batch.with_columns(frozen_TH=states_TH)

    def _hidden(self, batch: Batch) -> Tensor:
        if self.peft is None or "frozen_TH" not in batch:  # another network's states say nothing
            return hidden_states(self.trunk, batch)
        with frozen.starting_at(self.trunk, frozen.frozen_layers(self), batch["frozen_TH"]):
            return hidden_states(self.trunk, batch)

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of the plain model that this network amounts to, by their names there.

        The own adapter is merged in float32 at least, whatever precision the network computes in.
        """
        for name, parameter in self.base.named_parameters():
            layer, adapted, rest = name.partition(".base_layer.")
            if adapted:
                module: Any = copy.deepcopy(self.base.get_submodule(layer))
                module.to(torch.promote_types(parameter.dtype, torch.float32))
                module.merge(adapter_names=[OWN_ADAPTER])
                yield f"{layer}.{rest}", module.get_base_layer().get_parameter(rest)
            elif ".lora_" not in name:
                yield name, parameter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """With another adapter, or (None) with none: the reference that LoRA comes with."""
        assert self.peft is not None
        learns = {p for p in self.parameters() if p.requires_grad}
        try:
            if adapter is None:
                with self.peft.disable_adapter():
                    yield
            else:
                self.peft.set_adapter(adapter)
                yield
        finally:
            self.peft.set_adapter(OWN_ADAPTER)
            for parameter in self.parameters():  # peft's switches also decide what learns
                parameter.requires_grad_(parameter in learns)


def _read(head: ScalarHead | None, states: Tensor) -> Tensor:
    assert head is not None
    numbers: Tensor = head(states)
    return numbers


def _last_tokens(batch: Batch) -> Tensor:
    """Flat index of each completion's last real token, found from lengths, not padding."""
    return batch.target_N[batch.last_C]
