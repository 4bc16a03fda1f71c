"""Share of a completion's characters that belong to a set: an exact reward for tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from truing.rewards.base import Reward


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class CharacterShare(Reward):
    """#(characters in the set) / #(characters). Range [0, 1]; an empty completion scores 0."""

    characters: Annotated[str, Field(min_length=1)] = "aeiou"
    """The set, written as a string."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        wanted = set(self.characters)
        return [
            sum(character in wanted for character in text) / max(len(text), 1)
            for text in completions
        ]
