"""A batch divided between its groups is the same batch: every loss, gradient and column."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_groups import random_groups
from truing.batch import COLUMNS, Batch, Outputs
from truing.data.packing import pack
from truing.errors import ResourceError
from truing.groups import TokenCompletion, TokenGroup
from truing.memory import Memory, attempted, is_memory_error, memory_errors
from truing.objectives import find

OBJECTIVES = ("sft", "bradley_terry", "dpo", "ipo", "orpo", "simpo", "dft", "kto", "grpo", "ppo")
SHAPES = st.tuples(st.integers(0, 10**6), st.integers(2, 7), st.integers(2, 4), st.integers(1, 12))


def stepwise(batch, seed):
    """The batch with a labelled step at the end of every completion."""
    ends = batch.target_N[batch.last_C]
    draw = torch.Generator().manual_seed(seed)
    labels = torch.rand(len(ends), generator=draw) < 0.5
    return batch.with_columns(step_end_S=ends, step_label_S=labels)


def full(seed, groups, completions, longest):
    """A batch with every column that any objective reads, at random."""
    batch = pack(random_groups(seed, groups, completions, longest, pairs=True))
    batch = stepwise(batch, seed)
    draw = torch.Generator().manual_seed(seed)
    sizes = {"N": batch.size_N, "C": batch.size_C, "G": batch.size_G, "T": batch.size_T}
    for name in COLUMNS:
        letter = name.rpartition("_")[2][:1]
        if name in batch or letter == "S":
            continue
        shape = (
            () if not letter.isupper() else (sizes[letter], *([3] if name.endswith("H") else []))
        )
        value = torch.rand(shape, generator=draw, dtype=torch.float64)
        is_flag = COLUMNS[name].unit == "bool" or name == "kept_G"
        batch = batch.with_columns(**{name: value < 0.5 if is_flag else value - 0.5})
    return batch


def outputs_of(numbers, batch):
    """Outputs that depend on tokens alone, so that a part's are the whole's."""
    logps_N = torch.log_softmax(numbers, 0)[batch.token_ids_N % len(numbers)]
    scores_C = numbers[batch.tokens_T[batch.target_N[batch.last_C]] % len(numbers)]
    return Outputs(
        logps_N=logps_N,
        entropy_N=logps_N.square(),
        values_N=logps_N * 0.5,
        scores_C=scores_C,
        collision_N=logps_N.detach() * 0.1,
    )


@given(shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_every_column_goes_along_by_its_letter(shape):
    """Put together again, the halves are the batch."""
    batch = full(*shape)
    first, second = batch.halves()
    offset = {"T": first.size_T, "C": first.size_C, "G": first.size_G}
    counted = {"positions_T": None, "group_T": "G", "branch_T": None, "source_N": "T",
               "target_N": "T", "completion_N": "C", "group_C": "G", "tokens_T": None}  # fmt: skip
    ours, theirs, whole = first.tensors(), second.tensors(), batch.tensors()
    assert ours.keys() == theirs.keys() == whole.keys()
    for name, tensor in whole.items():
        into = counted[name] if name in counted else COLUMNS[name].into
        if not tensor.ndim:
            assert torch.equal(ours[name], tensor)
            assert torch.equal(theirs[name], tensor)
            continue
        moved = theirs[name] + offset[into] if into else theirs[name]
        assert torch.equal(torch.cat([ours[name], moved]), tensor), name


@given(shape=SHAPES)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("method", OBJECTIVES)
def test_halves_have_the_loss_and_the_gradient_of_the_whole(method, shape):
    objective = find(method)()
    batch = full(*shape)
    found = []
    for parts in ([batch], batch.halves()):
        numbers = torch.linspace(-2, 2, 37, dtype=torch.float64, requires_grad=True)
        losses = [objective(part, outputs_of(numbers, part)) for part in parts]
        total = sum(loss.total for loss in losses)
        total.backward()
        found.append((float(total.detach()), sum(loss.weight for loss in losses), numbers.grad))
    (whole, weight, gradient), (halved, weight_halved, gradient_halved) = found
    assert halved == pytest.approx(whole, abs=1e-6)
    assert weight_halved == weight
    assert math.isfinite(whole)
    torch.testing.assert_close(gradient_halved, gradient, rtol=0, atol=1e-6)


def test_halves_are_as_alike_as_whole_groups_allow():
    lengths = [30, 3, 4, 5, 6, 7]
    batch = pack([TokenGroup((1,) * n, (TokenCompletion((5, 2)),)) for n in lengths])
    first, second = batch.halves()
    assert (first.size_T, second.size_T) == (32, 35)


def test_each_half_predicts_something():
    """Completions that were left out are among the tokens still: they are no half."""
    batch = pack(random_groups(1, 4, 2))
    left = batch.keep(torch.tensor([False, False, True, False, False, False, True, True]))
    first, second = left.halves()
    assert (first.size_C, second.size_C) == (1, 2)
    assert left.keep(torch.tensor([False, True, True])).halves() is None


def test_a_single_group_cannot_be_divided():
    batch = pack(random_groups(1, 1, 3))
    assert batch.halves() is None
    with pytest.raises(ResourceError, match="single group") as caught:
        Memory(print).halves(batch)
    assert "gradient_checkpointing" in caught.value.remedy


def fits(most):
    """What is computed of batches of at most so many tokens."""

    def compute(batch: Batch) -> torch.Tensor:
        if batch.size_T > most:
            torch.empty(2**50)
        return batch.token_ids_N

    return compute


def test_in_parts_is_in_order_and_what_is_learnt_is_kept():
    said: list[str] = []
    memory = Memory(said.append)
    batch = pack(random_groups(3, 8, 2))
    parts = memory.in_parts(fits(batch.size_T // 3), batch)
    assert len(parts) >= 3
    assert torch.equal(torch.cat(parts), batch.token_ids_N)
    assert len(said) == 1
    halved = memory.taken()
    assert halved == len(parts) - 1
    again = memory.in_parts(fits(batch.size_T // 3), batch)
    assert memory.taken() == 0  # nothing has failed a second time
    assert torch.equal(torch.cat(again), batch.token_ids_N)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, is_one):
    assert is_memory_error(error) is is_one

    def fail():
        raise error

    if is_one:
        assert attempted(fail) is None
        with pytest.raises(ResourceError, match="out of memory"), memory_errors("here", "less"):
            fail()
    else:
        with pytest.raises(type(error)):
            attempted(fail)


def test_the_table_says_of_every_index_what_it_counts():
    told = {name for name, column in COLUMNS.items() if column.unit == "index"}
    assert told == {name for name, column in COLUMNS.items() if column.into}
