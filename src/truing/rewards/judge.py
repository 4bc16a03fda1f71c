"""A judge of pairs as a reward: how many of its rivals of the same prompt a completion beats.

    judge(prompts, completions) -> list[int]     completions are pairs [[a, b], ...];
                                                 0: a is better, 1: b is better, −1: it cannot tell

That is TRL's BasePairwiseJudge.judge. With two completions a prompt the winner scores 1 and the
loser 0, so a judge does wherever a reward does: online DPO, best of n, GRPO, ...
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from truing.errors import RolloutError
from truing.rewards.base import Reward, Unscored
from truing.rewards.function import load


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Judge(Reward):
    """The share of a completion's duels that it wins, 0 to 1, within its group.

    Every two completions of a group meet. Duels that the judge cannot decide (−1) are left out; a
    completion without a decided duel is unscored (`undecided`), and so is one without a rival
    (`alone`). Raises RolloutError for answers that are none. Source: Guo et al. 2024 (arXiv
    2402.04792), section 3, an annotator that is asked online.
    """

    function: Annotated[Callable[..., Any], BeforeValidator(load)]
    """`my_module:my_judge` or `my_file.py:my_judge`; in Python also the `judge` of a TRL judge."""
    both_orders: bool = False
    """Ask each duel twice, with the places changed: a judge that only prefers a place gives both
    one half, which is a tie. Costs twice the questions."""

    @property
    def wants(self) -> frozenset[str]:
        return frozenset({"group"})

    @property
    def label(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
    ) -> list[float | Unscored | None]:
        members: dict[int, list[int]] = defaultdict(list)
        for index, group in enumerate(columns["group"]):
            members[group].append(index)
        meet = permutations if self.both_orders else combinations
        duels = [duel for group in members.values() for duel in meet(group, 2)]
        won: dict[int, list[int]] = defaultdict(list)
        for (first, second), winner in zip(
            duels, self._decided(prompts, completions, duels), strict=True
        ):
            if winner >= 0:
                won[first].append(winner == 0)
                won[second].append(winner == 1)
        rivals = {index: len(group) - 1 for group in members.values() for index in group}
        return [
            sum(won[index]) / len(won[index])
            if won[index]
            else Unscored("undecided" if rivals[index] else "alone")
            for index in range(len(completions))
        ]

    def _decided(
        self, prompts: Sequence[str], completions: Sequence[str], duels: list[tuple[int, int]]
    ) -> list[int]:
        """The judge's answers, one for each duel."""
        if not duels:
            return []
        asked = [prompts[duel[0]] for duel in duels]
        answers = self.function(asked, [[completions[i] for i in duel] for duel in duels])
        found = list(answers) if isinstance(answers, Sequence) else None
        if found is None or len(found) != len(duels) or any(one not in (-1, 0, 1) for one in found):
            raise RolloutError(
                f"the judge's answer to {len(duels)} pairs is {answers!r:.80}",
                where=self.label,
                remedy="return one of 0, 1 and -1 for each pair",
            )
        return found
