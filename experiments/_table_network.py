"""A language model that is a table: one row of logits for every context of a tiny language.

It is a model of transformers like any other (a folder with config.json and model.safetensors), so
the production path loads it, draws from it, trains it and saves it. Its one attention layer asks
nothing (queries and keys are 0), so a token sees the mean of all it may see; each token writes its
id at its own position, so that mean is the text so far, and the hidden state is one-hot in it. The
rows of the head are then the exact tables of logits, values or rewards.

K kinds of prompt (one token each) · S beginnings: contexts, then whole sentences · V words ·
T tokens of a row · D digits: the prompt's place, then one for each word
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from truing.exact import Language
from truing.models.quiet import quiet


class TableConfig(PreTrainedConfig):  # type: ignore[misc]
    """Which language, and how many kinds of prompt."""

    model_type = "truing_table"
    vocabulary: int = 3
    max_length: int = 3
    kinds: int = 1
    num_hidden_layers: int = 1
    tie_word_embeddings: bool = False

    @property
    def language(self) -> Language:
        return _language(self.vocabulary, self.max_length)

    @property
    def states(self) -> int:
        return len(self.language.contexts) + len(self.language.sentences)

    @property
    def hidden_size(self) -> int:
        return self.kinds * self.states


@cache
def _language(vocabulary: int, max_length: int) -> Language:
    """One object a language: it writes its sentences down only once."""
    return Language(vocabulary, max_length)


def beginnings(language: Language) -> tuple[tuple[int, ...], ...]:
    """Every text after a prompt: contexts in the order of the table's rows, then sentences."""
    return language.contexts + language.sentences


class TableTrunk(nn.Module):
    """Ids, positions and a layout to one-hot states."""

    def __init__(self, config: TableConfig) -> None:
        super().__init__()
        self.config = config

    @cached_property
    def state_of_code(self) -> Tensor:
        """Number of a text -> its row. Made when first used: models are built without memory."""
        base = self.config.vocabulary + 1
        table = torch.zeros(base**self.config.max_length, dtype=torch.long)
        for state, words in enumerate(beginnings(self.config.language)):
            table[sum((word + 1) * base**place for place, word in enumerate(words))] = state
        return table

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, layout: Any, **_: Any
    ) -> BaseModelOutput:
        digits = self.config.max_length + 1
        place = position_ids.clamp(max=digits - 1)[..., None]
        written = torch.zeros(*input_ids.shape, digits)
        written.scatter_(-1, place, (input_ids + 1).float()[..., None])
        blank, value = torch.zeros_like(written)[:, None], written[:, None]
        mean = layout(0, blank, blank, value, 1.0)[:, :, 0]
        seen = (mean * (position_ids + 1)[..., None]).round().long()
        kind = seen[..., 0] - 1 - self.config.vocabulary
        base = self.config.vocabulary + 1
        code = (seen[..., 1:] * base ** torch.arange(digits - 1)).sum(-1)
        row = kind * self.config.states + self.state_of_code[code]
        states = nn.functional.one_hot(row, self.config.hidden_size).float()
        return BaseModelOutput(last_hidden_state=states)


class TableForCausalLM(PreTrainedModel):  # type: ignore[misc]
    """What `truing.models.network.Network` asks of a language model: a trunk and one matrix."""

    config_class = TableConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.trunk = TableTrunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.lm_head  # there are none: words are read by their number

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a table, always."""


AutoConfig.register(TableConfig.model_type, TableConfig)
AutoModelForCausalLM.register(TableConfig, TableForCausalLM)


def save_table(folder: Path, language: Language, logits_KSV: Tensor) -> None:
    """A model folder whose policy answers prompts of kind k by the table `logits_KSV[k]`."""
    config = TableConfig(
        vocabulary=language.vocabulary, max_length=language.max_length, kinds=len(logits_KSV)
    )
    model = TableForCausalLM(config)
    whole = torch.zeros(config.kinds, config.states, config.vocabulary)
    whole[:, : len(language.contexts)] = logits_KSV.float()
    model.lm_head.weight.data = whole.flatten(0, 1).T.contiguous()
    with quiet():
        model.save_pretrained(folder)


def logits_of(model: Any, language: Language) -> Tensor:
    """The tables of a model, [K, S, V], float64."""
    weight: Tensor = model.lm_head.weight.detach().double().cpu()
    states = len(beginnings(language))
    return weight.T.reshape(-1, states, language.vocabulary)[:, : len(language.contexts)]


def scores_of(head_weight: Tensor, language: Language) -> Tensor:
    """What a reward head on this trunk says of every sentence, [K, Y], float64."""
    by_state = head_weight.detach().double().cpu().reshape(-1, len(beginnings(language)))
    return by_state[:, len(language.contexts) :]
