"""How a completion ended comes through packing: a cut one is not taken for a natural stop."""

from __future__ import annotations

from truing.data.packing import pack
from truing.groups import FinishReason, TokenCompletion, TokenGroup

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_finished_says_which_completions_stopped_by_themselves():
    ends = [[STOP, LENGTH], [LENGTH, LENGTH, STOP], [STOP]]
    groups = [
        TokenGroup((7, 8), tuple(TokenCompletion((3, 2), end) for end in of_group))
        for of_group in ends
    ]
    expected = [end is STOP for of_group in ends for end in of_group]
    assert pack(groups)["finished_C"].tolist() == expected
