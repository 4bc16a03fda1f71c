"""PPO-ptx: demonstrations beside a rollout (algorithm sheet 1.3)."""

import pytest
import torch
from flat_batches import leaf, make_batch
from pydantic import ValidationError

from truing.batch import Outputs
from truing.objectives.base import WholeStep
from truing.objectives.policy_gradient.ppo import PPO

ROLLOUT = {
    "sampled_logps_N": [-1.0, -1.5, -0.5],
    "advantages_N": [1.0, -0.5, 2.0],
    "returns_N": [1.0, 0.5, 0.0],
    "values_N": [0.8, 0.2, 0.1],
}
NOW = ([-0.9, -1.7, -0.2], [0.7, 0.3, 0.3])  # log-probs and values


def demonstrations(*rows):
    """A micro-batch of demonstrations: what belongs to a rollout is blank."""
    logps = [x for row in rows for x in row]
    blank = {name: [0.0] * len(logps) for name in ROLLOUT}
    batch = make_batch([len(row) for row in rows], **blank)
    outputs = Outputs(leaf(logps), None, leaf([9.0] * len(logps)))
    flags = torch.ones(len(rows), dtype=torch.bool)
    return batch.with_columns(demonstration_C=flags), outputs


def ptx_step(ptx_coef, *parts):
    """(loss of the step, its parts' outputs): prepared together, divided once."""
    objective = PPO(ptx_coef=ptx_coef, vf_coef=0.3)
    by_batch = {id(batch): outputs for batch, outputs in parts}
    whole = WholeStep([batch for batch, _ in parts], lambda b: by_batch[id(b)])
    losses = [
        objective(batch, outputs)
        for batch, (_, outputs) in zip(objective.prepare(whole), parts, strict=True)
    ]
    total = sum(loss.total for loss in losses) / sum(loss.weight for loss in losses)
    total.backward()
    return total.item()


def rollout():
    batch = make_batch([2, 1], **ROLLOUT)
    flags = torch.zeros(2, dtype=torch.bool)
    return batch.with_columns(demonstration_C=flags), Outputs(leaf(NOW[0]), None, leaf(NOW[1]))


@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "a batch each"])
def test_ptx_adds_the_mean_over_demonstration_tokens(apart):
    rows = [[-0.7, -2.0], [-1.1, -0.4, -3.0]]
    alone = ptx_step(0.0, rollout())
    shown = [demonstrations(row) for row in rows] if apart else [demonstrations(*rows)]
    mine = rollout()
    together = ptx_step(1.7, mine, *shown)
    assert together - alone == pytest.approx(1.7 * 7.2 / 5, abs=1e-10)
    for _, outputs in shown:
        pull = outputs.logps_N.grad
        assert pull.tolist() == pytest.approx([-1.7 / 5] * len(pull), abs=1e-10)
        assert outputs.values_N.grad is None or not outputs.values_N.grad.any()
    lone = rollout()
    ptx_step(0.0, lone)
    assert mine[1].logps_N.grad.tolist() == pytest.approx(lone[1].logps_N.grad.tolist(), abs=1e-12)
    assert mine[1].values_N.grad.tolist() == pytest.approx(
        lone[1].values_N.grad.tolist(), abs=1e-12
    )


def test_ptx_reads_demonstrations_only_when_asked():
    assert "demonstration_C" in PPO(ptx_coef=0.1).required
    assert "demonstration_C" not in PPO().required
    with pytest.raises(ValidationError):
        PPO(ptx_coef=-0.1)
