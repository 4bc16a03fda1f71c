"""Train and test, divided by prompt: no prompt is ever in both."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from truing.errors import DataError
from truing.groups import Group, Prompt


def split_by_prompt(
    groups: Sequence[Group], test_rows: float, seed: int
) -> tuple[list[Group], list[Group]]:
    """(train, test): all groups of a prompt on one side, their order kept, the same for a seed.

    `test_rows` is a count of groups from 1 on, a share of them below 1, and 0 holds nothing out.
    Prompts are drawn in random order and one whose groups would exceed the count is passed over;
    if all would, the smallest is held out. Raises DataError when a side stays empty.
    """
    wanted = round(test_rows) if test_rows >= 1 else math.ceil(test_rows * len(groups))
    sizes = Counter(group.prompt for group in groups)
    prompts = list(sizes)
    random.Random(seed).shuffle(prompts)
    held_out: set[Prompt] = set()
    room = wanted
    for prompt in prompts:
        if sizes[prompt] <= room:
            held_out.add(prompt)
            room -= sizes[prompt]
    if wanted and prompts and not held_out:
        held_out = {min(prompts, key=sizes.__getitem__)}
    train = [group for group in groups if group.prompt not in held_out]
    test = [group for group in groups if group.prompt in held_out]
    if test_rows > 0 and not (train and test):
        raise DataError(
            f"{len(groups)} groups of {len(sizes)} prompts cannot be divided into train and "
            f"{wanted} for test",
            remedy="change data.test_rows, give data.test_path, or add rows with other prompts",
        )
    return train, test
