"""A reward model: any sequence classifier with one label, with its own tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.errors import UsageError
from truing.rewards.base import Reward


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Model(Reward):
    """score = head(state of the last token of the text), as the reward model itself reads it.

    A conversation goes through the reward model's own chat template, closed behind the answer; a
    plain prompt and its completion are put together as they are and get the special tokens that
    its tokenizer adds. Its vocabulary may be another than the policy's. A text is text: control
    tokens that the policy spells out are not read as such. Unit: the model's own. A text that is
    longer than the model can read is unscored, reason `too_long`; nothing is cut. Whether a
    completion was cut at the token limit cannot be seen in its text.
    Raises ModelError for weights that are not safetensors, more labels than one, a head that is
    not in the file, a template that refuses.
    """

    path: str
    """The folder (or hub id) of the model, or a stage that trained one."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """auto: the chat template where the prompt is a conversation and there is a template.
    chat: always the template, a plain prompt as a user's turn. plain: never, the prompt as a person
    reads it and the completion behind it."""
    append_eos: bool = False
    """Put the tokenizer's EOS behind plain texts: right for reward models that were trained so (by
    TRL's RewardTrainer, or here on plain rows). Templates end their turns themselves."""
    batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens, padding included, in one pass. Smaller needs less memory; the score is the same."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        raise UsageError(
            "nothing was given that opens reward models",
            where=self.path,
            remedy="use truing.rollouts.learned_reward.LearnedReward(Model(path=...))",
        )
