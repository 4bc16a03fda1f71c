"""DPO and its relatives against TRL's `DPOTrainer._compute_loss`."""

from types import SimpleNamespace

import doubles
import pytest
import torch
from doubles import DTYPES, differ, mean_loss, method, same, whole_step
from torch import nn
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.dpo_trainer import DPOTrainer

from objectives.flat_batches import random_batch, take
from truing.batch import Outputs
from truing.models.roles import Roles

BETA = 0.3
NEEDS = {"chosen_G", "rejected_G", "reference_logps_N"}


class Point:
    """Pairs of uneven lengths in no order, with log-probs that take a gradient."""

    def __init__(self, dtype=torch.float64, groups=4, seed=7, drift=1.0):
        self.batch, said = random_batch(NEEDS, seed, groups, dtype)
        reference_N = self.batch["reference_logps_N"]
        self.logps_N = (reference_N + drift * (said.logps_N - reference_N)).requires_grad_()
        self.collision_N = said.collision_N

    @property
    def outputs(self):
        return Outputs(logps_N=self.logps_N, collision_N=self.collision_N)

    def ours(self, name, **settings):
        return mean_loss(method(name, **settings), self.batch, self.outputs)

    def theirs(self, *loss_types, scale_N=1.0, shift_N=0.0, pairs=None, **settings):
        """TRL's loss of these pairs (all if not said) as one micro-batch."""
        pairs = list(range(self.batch.size_G)) if pairs is None else pairs
        order = torch.cat([self.batch["chosen_G"][pairs], self.batch["rejected_G"][pairs]])
        sheet = doubles.Sheet(self.batch, order.tolist())
        policy = doubles.scoring(sheet, self.logps_N * scale_N + shift_N, self.collision_N)
        attributes = {
            "ref_model": doubles.scoring(sheet, self.batch["reference_logps_N"] * scale_N),
            "precompute_ref_logps": False,
            "beta": BETA,
            "ld_alpha": None,
            "label_smoothing": 0.0,
            "f_divergence_type": "reverse_kl",
            "use_weighting": False,
            "loss_types": loss_types,
            "loss_weights": [1.0] * len(loss_types),
            "args": {"discopop_tau": 0.2},
        }
        self.trainer = doubles.trainer(DPOTrainer, **attributes | settings)
        inputs = doubles.supervised_inputs(sheet)
        return DPOTrainer._compute_loss(self.trainer, policy, inputs, False)


AGREE = [
    ("sigmoid", {}, "dpo", {}),
    ("hinge", {}, "hinge", {}),
    ("ipo", {}, "ipo", {"tau": BETA}),
    ("nca_pair", {}, "nca_pair", {}),
    ("robust", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("sppo_hard", {}, "sppo", {}),
    ("aot", {}, "aot", {}),
    ("aot_unpaired", {}, "aot_unpaired", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {}, "discopop", {"tau": 0.2}),
    ("sigmoid_norm", {}, "dpo_norm", {}),
    ("sigmoid", {"ld_alpha": 0.4}, "ld_dpo", {"alpha": 0.4}),
    ("sigmoid", {"use_weighting": True}, "wpo", {}),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, "f_dpo_forward_kl", {}),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, "f_dpo", {}),
]


@DTYPES
@pytest.mark.parametrize(
    ("loss", "settings", "name", "fields"), AGREE, ids=[f"{row[2]}-{row[0]}" for row in AGREE]
)
def test_pairwise_losses_agree(loss, settings, name, fields, dtype):
    point = Point(dtype)
    fields = {"beta": BETA} | fields if name != "ipo" else fields
    same(point.ours(name, **fields), point.theirs(loss, **settings), point.logps_N)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_exo_pair_agrees_as_far_as_trl_computes_it(dtype):
    """TRL takes log ε in float32 whatever the log-probs are."""
    point, smoothing = Point(dtype), {"label_smoothing": 1e-3}
    ours = point.ours("exo_pair", beta=BETA, **smoothing)
    same(ours, point.theirs("exo_pair", **smoothing), point.logps_N, 1e-6)


def test_metrics_of_a_pair_agree():
    point = Point()
    objective = method("dpo", beta=BETA)
    ours = whole_step(objective, [(point.batch, point.outputs)]).metrics
    point.theirs("sigmoid")
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
    for name in [*names, "logps/chosen", "logps/rejected"]:
        (peer,) = point.trainer._metrics["train"][name]
        assert float(ours[name].total) / ours[name].weight == pytest.approx(peer, rel=1e-6)


def test_trls_alpha_is_one_minus_the_papers():
    """Float32 alone: TRL's table of clamps has no float64."""
    point = Point(torch.float32, drift=0.5)
    divergence = {"f_divergence_type": "alpha_divergence"}
    theirs = point.theirs("sigmoid", f_alpha_divergence_coef=0.7, **divergence)
    same(point.ours("f_dpo_alpha", beta=BETA, alpha=0.3), theirs, point.logps_N)
    differ(point.ours("f_dpo_alpha", beta=BETA, alpha=0.7), theirs)
    half = point.theirs("sigmoid", f_alpha_divergence_coef=0.5, **divergence)
    same(point.ours("f_dpo_alpha", beta=BETA, alpha=0.5), half, point.logps_N)
    with pytest.raises(KeyError):
        Point(torch.float64).theirs("sigmoid", f_alpha_divergence_coef=0.7, **divergence)


def test_forward_kl_is_limited_at_e20_here_and_not_there():
    """A chosen answer e^25 times rarer than under the reference: its gradient is ours or e^25."""
    point = Point(drift=0.0)
    chosen = int(point.batch["chosen_G"][0])
    fallen_N = point.batch.completion_N == chosen
    point.logps_N = (point.logps_N.detach() - 25 * fallen_N / fallen_N.sum()).requires_grad_()
    kind = {"f_divergence_type": "forward_kl"}
    (peer,) = torch.autograd.grad(point.theirs("sigmoid", **kind), point.logps_N)
    (mine,) = torch.autograd.grad(point.ours("f_dpo_forward_kl", beta=BETA), point.logps_N)
    torch.testing.assert_close(
        peer[fallen_N], torch.full_like(peer[fallen_N], -BETA * torch.e**25 / 4), rtol=1e-6, atol=0
    )
    assert (mine[fallen_N] == 0).all()


def test_trls_sigmoid_ignores_label_smoothing():
    point = Point()
    theirs = point.theirs("sigmoid", label_smoothing=0.2)
    same(point.ours("dpo", beta=BETA), theirs, point.logps_N)
    point.theirs("sigmoid")
    (margin,) = point.trainer._metrics["train"]["rewards/margins"]
    smoothed = point.ours("cdpo", beta=BETA, label_smoothing=0.2)
    assert (smoothed - theirs).item() == pytest.approx(0.2 * margin, rel=1e-8)


def test_trls_bco_pair_has_no_shift():
    point = Point()
    objective, theirs = method("bco_pair", beta=BETA), point.theirs("bco_pair")
    unshifted = point.batch.with_columns(reward_shift=torch.tensor(0.0, dtype=torch.float64))
    loss = objective(unshifted, point.outputs)
    same(loss.total / loss.weight, theirs, point.logps_N)

    differ(point.ours("bco_pair", beta=BETA), theirs)
    metrics = point.trainer._metrics["train"]
    shift = (metrics["rewards/chosen"][0] + metrics["rewards/rejected"][0]) / 2
    lengths_N = point.batch.lengths_C[point.batch.completion_N]
    shifted = point.theirs("bco_pair", shift_N=-shift / BETA / lengths_N)
    same(point.ours("bco_pair", beta=BETA), shifted, point.logps_N, 1e-7)  # metrics are rounded


def test_trls_ipo_has_no_summed_form():
    """Only log-ratios multiplied by their lengths turn TRL's IPO into the paper's."""
    point = Point()
    summed = point.ours("ipo_sum", tau=BETA)
    differ(summed, point.theirs("ipo"))
    lengths_N = point.batch.lengths_C[point.batch.completion_N]
    same(summed, point.theirs("ipo", scale_N=lengths_N), point.logps_N)


@DTYPES
def test_trls_sft_term_is_a_token_mean(dtype):
    """As our mixture's; RPO's NLL is per sequence, so that every pair weighs the same."""
    point = Point(dtype)
    theirs = point.theirs("sigmoid", "sft", loss_weights=[1.0, 0.7])
    parts = ({"method": "dpo", "beta": BETA}, {"method": "sft", "weight": 0.7})
    same(point.ours("mixture", parts=parts), theirs, point.logps_N)

    rpo = point.ours("rpo", beta=BETA, nll_coef=0.7)
    differ(rpo, theirs)
    batch = point.batch
    nll_C = torch.zeros(batch.size_C, dtype=dtype).index_add(0, batch.completion_N, -point.logps_N)
    nll_P, lengths_P = nll_C[batch["chosen_G"]], batch.lengths_C[batch["chosen_G"]]
    gap = nll_P.sum() / lengths_P.sum() - (nll_P / lengths_P).mean()
    same(rpo + 0.7 * gap, theirs, point.logps_N)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_trl_sorts_each_micro_batch_alone(loss):
    point, cuts = Point(), ([0, 1], [2, 3])
    theirs = torch.stack([point.theirs(loss, pairs=cut) for cut in cuts]).mean()
    objective = method(loss, beta=BETA)
    parts = [take(point.batch, point.outputs, cut) for cut in cuts]
    whole = whole_step(objective, parts)
    differ(whole.total / whole.weight, theirs)
    same(whole.total / whole.weight, point.theirs(loss), point.logps_N)
    alone = [whole_step(objective, [part]) for part in parts]
    same(sum(one.total for one in alone) / 4, theirs, point.logps_N)


def test_trl_weighs_the_pairs_of_a_smaller_micro_batch_more():
    """Its trainer averages means; ours divides the sum by the step's pairs."""
    assert DPOTrainer.loss_is_scaled_for_ga is False
    point = Point()
    three, one = point.theirs("sigmoid", pairs=[0, 1, 2]), point.theirs("sigmoid", pairs=[3])
    ours = point.ours("dpo", beta=BETA)
    differ(ours, (three + one) / 2)
    same(ours, (3 * three + one) / 4, point.logps_N)


def test_trls_weights_of_wpo_are_not_capped():
    """Agreement above is on weights that a cap at 1 would change."""
    point = Point()
    point.collision_N = point.collision_N - 1.0
    objective = method("wpo", beta=BETA)
    loss = whole_step(objective, [(point.batch, point.outputs)])
    weight = loss.metrics["policy_weights"]
    assert float(weight.total) / weight.weight > 1
    theirs = point.theirs("sigmoid", use_weighting=True)
    same(loss.total / loss.weight, theirs, point.logps_N)


@pytest.mark.parametrize("loss", ["hinge", "sft"])
def test_trls_weighting_fails_with_hinge_and_sft(loss):
    """It multiplies in place what autograd has kept, or what is one number seen many times."""
    point = Point()
    with pytest.raises(RuntimeError, match=r"inplace|single memory location"):
        point.theirs(loss, use_weighting=True).backward()


def test_trls_discopop_overflows_on_lost_pairs():
    """e^−h is infinite where σ(h/τ) is 0; the product is NaN there and 0 here."""
    point = Point(torch.float32)
    lost_C = torch.zeros(point.batch.size_C).index_fill(0, point.batch["chosen_G"], 1.0)
    drop_N = (400 * lost_C / point.batch.lengths_C)[point.batch.completion_N]
    point.logps_N = (point.logps_N.detach() - drop_N).requires_grad_()
    ours, dpo = point.ours("discopop", beta=BETA, tau=0.2), point.ours("dpo", beta=BETA)
    assert point.theirs("discopop").isnan()
    same(ours, dpo, point.logps_N)  # lost pairs are DPO's


def moved(dtype, policies, alpha):
    """Our reference and TRL's after following some policies, from 1."""
    mine, peer, policy = (nn.Linear(3, 2, bias=False, dtype=dtype) for _ in range(3))
    for model in (mine, peer):
        nn.init.ones_(model.weight)
    copied = SimpleNamespace(base=mine)
    roles = Roles(SimpleNamespace(merged_weights=policy.named_parameters), reference_copy=copied)
    for value in policies:
        nn.init.constant_(policy.weight, value)
        roles.move_reference(alpha)
        SyncRefModelCallback._sync_target_model(policy, peer, alpha)
    return mine.weight.detach(), peer.weight.detach()


def test_the_reference_of_tr_dpo_moves_alike():
    ours, theirs = moved(torch.float64, [3.0, -2.0], 0.6)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert ours.mean().item() == pytest.approx(0.4 * (0.4 + 0.6 * 3) - 0.6 * 2, rel=1e-6)


def test_trls_reference_of_tr_dpo_stands_still_in_bfloat16():
    """It averages in the model's precision; ours keeps float32 beside it."""
    ours, theirs = moved(torch.bfloat16, [1 + 2**-7] * 30, 0.1)
    assert (theirs == 1).all()
    assert (ours == 1 + 2**-7).all()
