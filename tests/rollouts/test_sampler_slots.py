"""What is stored while completions are drawn: each prompt once, and no more than is used."""

from __future__ import annotations

import pytest
from rollouts_sampling import network_of, often_drawn, prompts, settings, texts

from truing.rollouts import slots
from truing.rollouts.engines import local
from truing.rollouts.sampler import sample

LAYERS, KEY_HEADS, SIZE = 2, 2, 16


@pytest.fixture(scope="module")
def network():
    return network_of("llama")


@pytest.fixture
def blocks(monkeypatch):
    """Every block of prompts that is made."""
    made = []

    class Noted(slots.PromptBlock):
        def __init__(self, *given):
            super().__init__(*given)
            made.append((self, list(self.prompts)))

    monkeypatch.setattr(local, "PromptBlock", Noted)
    return made


@pytest.fixture
def arranged(monkeypatch):
    """The state of the slots whenever rows were arranged: blocks, rows, and the slots."""
    seen = []
    arrange = slots.Slots.arrange

    def noted(self, rows, waiting):
        arrange(self, rows, waiting)
        seen.append(([list(b.prompts) for b in self.blocks], list(rows), self))

    monkeypatch.setattr(slots.Slots, "arrange", noted)
    return seen


def numbers(block):
    return sum(stored.numel() for stored in block.stored.values())


def test_a_prompt_is_computed_and_stored_once_for_all_its_completions(network, blocks):
    given = prompts(5)
    sample(network, given, settings(8, batch_size=4), completions=6, seed=1)
    computed = [prompt for _, members in blocks for prompt in members]
    assert sorted(computed) == [0, 1, 2, 3, 4]
    blocks.clear()
    sample(network, given[:1], settings(8, batch_size=64), completions=50, seed=1)
    ((block, _),) = blocks
    assert numbers(block) == LAYERS * 2 * KEY_HEADS * SIZE * len(given[0].prompt_ids)


def test_seats_of_answered_prompts_are_given_up(network, arranged):
    given = prompts(12)
    stop = often_drawn(network, given, length=12)
    sample(network, given, settings(12, batch_size=4, stop=stop), completions=3, seed=9)
    for resident, rows, _ in arranged:
        seats = [prompt for block in resident for prompt in block]
        assert set(rows) <= set(seats)
        assert len(seats) <= 4 / slots.COMPACT_BELOW + 1
    assert arranged[-1][0] == []


def test_text_is_the_same_however_prompts_are_put_into_blocks(network, monkeypatch, arranged):
    given = prompts(9, longest=30)
    stop = often_drawn(network, given, length=12)
    how = settings(12, batch_size=8, stop=stop)
    together = texts(sample(network, given, how, completions=2, seed=9))
    monkeypatch.setattr(local, "PREFILL_TOKENS", 25)
    arranged.clear()
    assert texts(sample(network, given, how, completions=2, seed=9)) == together
    assert max(len(resident) for resident, *_ in arranged) > 1


def test_slots_grow_with_the_text_not_with_the_limit(network, arranged):
    ((ids,),) = texts(sample(network, prompts(1), settings(40, temperature=1.0, stop=-1)))
    assert rooms(arranged) == {40}
    for end, room in ((3, slots.FIRST_SLOT), (35, 2 * slots.FIRST_SLOT)):
        stop = next(i for i in ids[end:] if ids.index(i) >= end)
        how = settings(400, temperature=1.0, stop=stop)
        ((cut,),) = texts(sample(network, prompts(1), how))
        assert cut == ids[: ids.index(stop) + 1]
        assert rooms(arranged) == {room}


def rooms(arranged):
    own = arranged[-1][2].own
    assert len(own) == LAYERS
    return {stored.shape[3] for stored in own.values()}
