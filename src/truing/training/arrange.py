"""Rows of one type as the groups another method learns from: pairs can teach almost anything.

What an objective needs decides (`chosen_G`: pairs, `label_C`: verdicts, `scores_C`: scored lists,
`step_label_S`: labelled steps, none of them: demonstrations), never its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from truing.data.arranging import as_scored, demonstrations, imitated, unpaired, with_mismatched
from truing.errors import DataError
from truing.groups import FinishReason, Group, GroupType, TokenGroup

Arrange = Callable[[Sequence[TokenGroup]], list[TokenGroup]]

DEMONSTRATIONS = "completions"
"""What is asked of rows by a method that needs no choice, verdict or score."""
WAYS: Mapping[str, Mapping[GroupType, Arrange]] = {
    "chosen_G": {"preference": list},
    "label_C": {"unpaired": list, "preference": unpaired},
    "scores_C": {"scored": list, "preference": as_scored},
    "step_label_S": {"stepwise": list},
    DEMONSTRATIONS: {
        "prompt-completion": list,
        "preference": demonstrations,
        "unpaired": demonstrations,
        "scored": demonstrations,
        "stepwise": demonstrations,
    },
}
"""What is needed -> type of the rows -> how they come to have it."""


def arrange(
    groups: Sequence[TokenGroup], kind: GroupType, needs: frozenset[str], seed: int
) -> list[TokenGroup]:
    """Groups of rows of type `kind` as an objective with these needs learns from them."""
    arranged = WAYS[_wanted(needs)][kind](groups)
    return with_mismatched(arranged, seed) if "mismatched_C" in needs else arranged


def kinds_for(needs: frozenset[str]) -> list[GroupType]:
    """Types of rows that an objective with these needs learns from, its own first."""
    return list(WAYS[_wanted(needs)])


def check_rows(groups: Sequence[Group], needs: frozenset[str], stage: str, where: str) -> None:
    """Raises DataError unless the rows are there, of a type that will do, with what is needed."""
    if not groups:
        raise DataError("no rows to train on", where=where, remedy="check data.path")
    check_kind(groups, needs, stage, where)
    check_columns(groups, needs, stage, where)
    if _wanted(needs) == DEMONSTRATIONS:
        _check_imitated(groups, where)


def check_demonstrations(groups: Sequence[Group], stage: str, where: str) -> None:
    """Raises DataError unless the rows have answers to learn from beside the policy's own."""
    if groups[0].type not in WAYS[DEMONSTRATIONS]:
        raise DataError(
            f"stage {stage}: ptx_coef needs demonstrations, and these rows are prompts only",
            where=where,
            remedy="give rows with completions, or set ptx_coef to 0",
        )


def check_kind(groups: Sequence[Group], needs: frozenset[str], stage: str, where: str) -> None:
    """Raises DataError unless rows of this type can be arranged for these needs."""
    ways = WAYS[_wanted(needs)]
    kind = groups[0].type
    if kind not in ways:
        raise DataError(
            f"stage {stage} needs {' or '.join(ways)} rows, these are {kind}",
            where=where,
            remedy="give such rows (docs/recipes.md shows each type), or another method",
        )
    if "mismatched_C" in needs and all(group.prompt == groups[0].prompt for group in groups):
        raise DataError(
            f"stage {stage} needs completions of other prompts, and all prompts are the same",
            where=where,
            remedy="give rows with at least two prompts, or a method without a KL baseline",
        )


def check_columns(groups: Sequence[Group], needs: frozenset[str], stage: str, where: str) -> None:
    """Raises DataError unless every pair has the columns that are read."""
    pairs = [group for group in groups if group.type == "preference"]
    for column in {"margin_G", "probability_G"} & needs:
        name = column.removesuffix("_G")
        without = [group for group in pairs if group.columns.get(name) is None]
        if without:
            raise DataError(
                f"stage {stage} reads '{name}', and {len(without):,} of {len(pairs):,} rows "
                "have none",
                where=without[0].where or where,
                remedy=f"add the column '{name}' to every row, or turn off the field that reads it",
            )


def _check_imitated(groups: Sequence[Group], where: str) -> None:
    """Raises DataError unless there is an answer to imitate, and one that ends."""
    chosen = [(group, imitated(group)) for group in groups]
    answers = [group.completions[best] for group, best in chosen if best is not None]
    if not answers:
        raise DataError(
            "no answer is left to imitate: all were judged bad, or have a wrong step",
            where=where,
            remedy="give rows with good answers, or a method that learns from verdicts or steps",
        )
    if all(answer.finish is FinishReason.LENGTH for answer in answers):
        raise DataError(
            "every completion to imitate was cut before its end: the stop token is never trained",
            where=where,
            remedy="give rows that end, or draw them with a larger max_completion_length",
        )


def _wanted(needs: frozenset[str]) -> str:
    """The one thing of `WAYS` that these needs ask for."""
    wanted = [column for column in WAYS if column in needs]
    if len(wanted) > 1:
        raise DataError(
            f"no row has both {wanted[0]} and {wanted[1]}",
            remedy="mix methods that learn from rows of the same type",
        )
    return wanted[0] if wanted else DEMONSTRATIONS
