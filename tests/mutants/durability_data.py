"""Bugs of what is done about bad data: rows that vanish, archives that fill the memory, links."""

from __future__ import annotations

from .mutant import Mutant

READERS, FILES = "data/readers.py", "faults/test_data_file_faults.py"
ROWS = "faults/test_data_faults.py"

MUTANTS = (
    Mutant(
        "a_bomb_is_unpacked",
        READERS,
        "        self._room -= count",
        "        self._room -= 0",
        (f"{FILES}::test_a_file_that_is_a_trap[dpo-bomb]",),
        "an archive of 400 kB takes 400 MB, one of 10 MB takes 10 GB",
    ),
    Mutant(
        "links_lead_out_of_a_data_folder",
        READERS,
        "if not Path(os.path.realpath(file)).is_relative_to(inside):",
        "if not Path(os.path.abspath(file)).is_relative_to(inside):",
        (f"{FILES}::test_a_file_that_is_a_trap[grpo-link]",),
        "a data set from somewhere trains on a file of one's own",
    ),
    Mutant(
        "rows_go_undeclared",
        "pipeline/context.py",
        "self._drop(name, [*parsed.dropped, *fitted.dropped])",
        "self._drop(name, fitted.dropped)",
        (f"{ROWS}::test_bad_rows_are_left_out_and_declared[sft-D2]",),
        'overlong chat rows "silently dropped" (torchtitan, test_chat_dataset.py)',
    ),
    Mutant(
        "a_huge_row_is_tokenised",
        "data/chat.py",
        "characters > max_length * self._most_characters:",
        "characters < 0:",
        (f"{ROWS}::test_bad_rows_are_left_out_and_declared[sft-D5]",),
        "a row of 10 MB took 2.3 GB and 20 s, to be found too long",
    ),
)
