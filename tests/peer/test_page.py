"""docs/peers.md says what these tests show, line by line; it needs no TRL."""

import importlib.util
import re
from pathlib import Path

import pytest


def test_every_test_has_its_line_on_the_page(root):
    page = (root / "docs/peers.md").read_text()
    told = set(re.findall(r"`(test_\w+)`", page))
    here = Path(__file__).parent.glob("test_*_against_trl.py")
    run = {name for path in here for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert told == run


GONE = ["bco", "ppo", "xpo", "nash_md", "prm"]


@pytest.mark.parametrize("name", GONE)
def test_what_the_page_calls_gone_is_gone(name):
    pytest.importorskip("trl")
    experimental = importlib.util.find_spec("trl").submodule_search_locations[0]
    assert Path(experimental, "experimental/cpo").exists()
    assert not Path(experimental, "experimental", name).exists()
    assert not Path(experimental, "trainer", f"{name}_trainer.py").exists()
