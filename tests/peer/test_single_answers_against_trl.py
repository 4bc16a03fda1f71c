"""SFT, DFT, reward models, KTO and APO-zero-unpaired against TRL's trainers."""

from types import SimpleNamespace

import doubles
import pytest
import torch
from doubles import DTYPES, differ, mean_loss, method, same, whole_step
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from objectives.flat_batches import leaf, make_batch, random_batch
from truing.batch import Outputs

BETA = 0.3
WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.6}


def completions(needs, dtype, seed=3, groups=6):
    """A batch, and log-probs that take a gradient."""
    batch, said = random_batch(needs, seed, groups, dtype)
    return batch, said.logps_N.clone().requires_grad_()


def sft_loss(batch, logps_N, rows, loss_type, num_items=None):
    """TRL's loss of these completions as one micro-batch."""
    sheet = doubles.Sheet(batch, rows)
    inputs = doubles.supervised_inputs(sheet)
    mask = inputs.pop("completion_mask")
    inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
    made = doubles.trainer(
        SFTTrainer,
        compute_loss_func=None,
        label_smoother=None,
        args={"loss_type": loss_type, "average_tokens_across_devices": False},
    )
    model = doubles.scoring(sheet, logps_N)
    return SFTTrainer.compute_loss(made, model, inputs, num_items_in_batch=num_items)


@DTYPES
@pytest.mark.parametrize(("loss_type", "name"), [("nll", "sft"), ("dft", "dft")])
def test_supervised_losses_agree_however_a_step_is_cut(loss_type, name, dtype):
    batch, logps_N = completions(set(), dtype)
    rows = list(range(batch.size_C))
    ours = mean_loss(method(name), batch, Outputs(logps_N=logps_N))
    same(ours, sft_loss(batch, logps_N, rows, loss_type), logps_N)
    tokens = torch.tensor(batch.size_N)
    cuts = [sft_loss(batch, logps_N, cut, loss_type, tokens) for cut in (rows[:2], rows[2:])]
    same(ours, sum(cuts), logps_N)


@DTYPES
@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("margin", [False, True])
def test_the_reward_model_agrees(center, margin, dtype):
    batch, _ = random_batch({"chosen_G", "rejected_G", "margin_G"}, 3, 4, dtype)
    scores_C = leaf([0.7, -1.2, 0.4, 2.1, -0.3, 0.9, 1.4, -0.8], dtype)
    settings = {"center_coefficient": center or 0.0, "margin_coef": float(margin)}
    ours = mean_loss(method("bradley_terry", **settings), batch, Outputs(scores_C=scores_C))
    order = torch.cat([batch["chosen_G"], batch["rejected_G"]])
    inputs = {"attention_mask": torch.ones(8, 2)} | (
        {"margin": batch["margin_G"]} if margin else {}
    )
    made = doubles.trainer(RewardTrainer, args={"center_rewards_coefficient": center})
    model = doubles.Model(lambda **_: SimpleNamespace(logits=scores_C[order, None]))
    same(ours, RewardTrainer.compute_loss(made, model, inputs), scores_C)


def kto_loss(batch, logps_N, verdicts, mismatched=None, loss_type="kto"):
    """TRL's loss of these verdicts, judged by these mismatched completions, as one micro-batch."""
    sheet = doubles.Sheet(batch, verdicts)
    reference_N = batch["reference_logps_N"]
    policy, reference = doubles.scoring(sheet, logps_N), doubles.scoring(sheet, reference_N)
    inputs = doubles.supervised_inputs(sheet) | {"label": batch["label_C"][verdicts]}
    if mismatched is not None:
        other = doubles.Sheet(batch, mismatched)
        inputs |= {f"KL_{k}": v for k, v in doubles.supervised_inputs(other).items()}
        policy = either(policy, doubles.scoring(other, logps_N), inputs["KL_input_ids"])
        reference = either(reference, doubles.scoring(other, reference_N), inputs["KL_input_ids"])
    made = doubles.trainer(
        KTOTrainer,
        ref_model=reference,
        precompute_ref_logps=False,
        calculate_KL=mismatched is not None,
        loss_type=loss_type,
        beta=BETA,
        **WEIGHTS,
    )
    return KTOTrainer._compute_loss(made, policy, inputs, False)


def either(verdicts, mismatched, mismatched_ids):
    """A model that answers for the batch it is shown."""

    def answer(input_ids, **inputs):
        shown = mismatched if input_ids is mismatched_ids else verdicts
        return shown(input_ids=input_ids, **inputs)

    return doubles.Model(answer)


@DTYPES
def test_apo_zero_unpaired_agrees(dtype):
    batch, logps_N = completions({"label_C", "reference_logps_N"}, dtype)
    theirs = kto_loss(batch, logps_N, list(range(batch.size_C)), loss_type="apo_zero_unpaired")
    objective = method("apo_zero_unpaired", beta=BETA, **WEIGHTS)
    same(mean_loss(objective, batch, Outputs(logps_N=logps_N)), theirs, logps_N)


class Verdicts:
    """A step of two micro-batches: 0 to 3 are judged, 4 to 7 are there to estimate the KL.

    The policy has drifted up on the mismatched ones of the first micro-batch, down on those of the
    second: there z₀ is clamped.
    """

    judged, others = [0, 1, 2, 3], [4, 5, 6, 7]
    cuts = (([0, 1], [4, 5]), ([2, 3], [6, 7]))

    def __init__(self, dtype=torch.float64):
        batch = make_batch([3, 1, 4, 2, 2, 5, 1, 3], dtype=dtype)
        g = torch.Generator().manual_seed(3)
        noise_2N = torch.randn(2, batch.size_N, generator=g, dtype=torch.float64).to(dtype)
        drift_C = torch.tensor([0.9, -1.4, 0.3, 1.1, 2.5, 2.0, -0.5, -1.0], dtype=dtype)
        drift_N = (drift_C / batch.lengths_C)[batch.completion_N] + 0.1 * noise_2N[0]
        self.logps_N = (-noise_2N[1].abs()).requires_grad_()
        self.batch = batch.with_columns(
            reference_logps_N=self.logps_N.detach() - drift_N,
            label_C=torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]) > 0,
            mismatched_C=torch.arange(8) > 3,
        )

    def theirs(self, cuts):
        losses = [kto_loss(self.batch, self.logps_N, *cut) for cut in cuts]
        return torch.stack(losses).mean()


@DTYPES
def test_kto_agrees_on_a_step_of_one_micro_batch(dtype):
    point = Verdicts(dtype)
    objective = method("kto", beta=BETA, **WEIGHTS)
    loss = whole_step(objective, [(point.batch, Outputs(logps_N=point.logps_N))])
    kl = loss.metrics["kl"]
    assert float(kl.total) > 0.1
    same(loss.total / loss.weight, point.theirs([(point.judged, point.others)]), point.logps_N)


def test_trl_takes_the_baseline_of_kto_per_micro_batch():
    """Ours is the mean over the step; TRL's is ours where each micro-batch is a step of its own."""
    point = Verdicts()
    objective = method("kto", beta=BETA, **WEIGHTS)
    theirs = point.theirs(point.cuts)
    differ(mean_loss(objective, point.batch, Outputs(logps_N=point.logps_N)), theirs)
    alone = []
    for judged, others in point.cuts:
        kept_C = torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(judged + others), True)
        kept_N = kept_C[point.batch.completion_N]
        part = Outputs(logps_N=point.logps_N[kept_N])
        alone.append(mean_loss(objective, point.batch.keep(kept_C), part))
    same(torch.stack(alone).mean(), theirs, point.logps_N)
