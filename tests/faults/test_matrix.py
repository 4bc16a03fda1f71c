"""The matrix is whole: every cell has a test that runs on every push."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.figure import cells_of
from faults.matrix import MATRIX, cells


def test_every_cell_has_a_test(request):
    here = Path(__file__).parent
    of_faults = [item for item in request.session.items if item.path.parent == here]
    if {p.name for p in here.glob("test_*.py")} - {item.path.name for item in of_faults}:
        pytest.skip("only a part of the faults was collected")
    smoke = [item for item in request.session.items if not item.get_closest_marker("full")]
    covered = {cell for item in smoke for cell in cells_of(item)}
    assert not sorted(cells() - covered)


def test_the_page_shows_every_kind_and_that_nothing_was_lost(root):
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    for kind, (title, _) in MATRIX.items():
        assert f"| {kind} | {title} |" in page
    assert "lost 0, silent 0, hung 0, leaked 0, not fired 0" in page
    assert "not run" not in page.partition("<!-- faults -->")[2].partition("<!-- /faults")[0]
