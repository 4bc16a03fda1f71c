"""Sentiment of the completion by VADER: a lexicon with rules, −1 (negative) to 1 (positive).

Source: Hutto and Gilbert 2014, "VADER: a parsimonious rule-based model for sentiment analysis of
social media text", ICWSM. The package is nltk-vader-sentiment (extra `quickstart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from truing.errors import RolloutError
from truing.rewards.base import Reward


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Vader(Reward):
    """VADER's compound score of each completion, without its prompt. Range [−1, 1].

    Raises RolloutError if the package is not installed.
    """

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        analyzer = _analyzer()
        return [float(analyzer.polarity_scores(text)["compound"]) for text in completions]


@cache
def _analyzer() -> Any:
    try:
        from vader import SentimentIntensityAnalyzer
    except ImportError as error:
        raise RolloutError(
            "the reward 'vader' needs the package nltk-vader-sentiment",
            remedy="python -m pip install 'truing[quickstart]'",
        ) from error
    return SentimentIntensityAnalyzer()
