"""GRPO and its relatives, RLOO and GMPO against TRL's trainers."""

import doubles
import pytest
import torch
from doubles import DTYPES, differ, method, same, whole_step
from trl import GRPOConfig
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from objectives.flat_batches import make_batch
from truing.batch import Outputs

LENGTHS = [3, 1, 5, 2, 4, 1]
LIMIT = 9
KL = 0.2


class Rollout:
    """Six completions of a policy that has drifted far enough for every clip to bite."""

    def __init__(self, dtype=torch.float64, drift=0.5):
        g = torch.Generator().manual_seed(11)
        bare = make_batch(LENGTHS)
        noise = torch.randn(3, bare.size_N, generator=g, dtype=torch.float64)
        self.advantages_C = torch.tensor([1.0, -0.5, -2.0, 0.8, 0.3, -0.7], dtype=dtype)
        logps_N = (-noise[0].abs()).to(dtype)
        self.batch = make_batch(
            LENGTHS,
            [0, 0, 0, 1, 1, 1],
            dtype,
            sampled_logps_N=logps_N + (drift * noise[1]).to(dtype),
            reference_logps_N=logps_N - (0.6 * noise[2]).to(dtype),
            advantages_N=self.advantages_C[bare.completion_N],
        )
        self.logps_N = logps_N.requires_grad_()

    def ours(self, name, kept=None, **settings):
        """Our loss, on some of the completions if said."""
        kept_C = torch.ones(6, dtype=torch.bool) if kept is None else torch.tensor(kept)
        outputs = Outputs(logps_N=self.logps_N[kept_C[self.batch.completion_N]])
        loss = whole_step(method(name, **settings), [(self.batch.keep(kept_C), outputs)])
        self.metrics = loss.metrics
        return loss.total / loss.weight

    def micro_batch(self, rows, cut=()):
        """TRL's inputs for these completions; those in `cut` are masked."""
        sheet = doubles.Sheet(self.batch, rows, prompts=False)
        kept = torch.tensor([row not in cut for row in rows])
        mask, batch = sheet.mask * kept[:, None], self.batch
        inputs = {
            "prompt_ids": torch.ones(len(rows), 2, dtype=torch.long),
            "prompt_mask": torch.ones(len(rows), 2, dtype=torch.long),
            "completion_ids": mask,
            "completion_mask": mask,
            "advantages": self.advantages_C[rows],
            "old_per_token_logps": sheet.spread(batch["sampled_logps_N"]),
            "ref_per_token_logps": sheet.spread(batch["reference_logps_N"]),
        }
        inputs["old_logps"] = (inputs["old_per_token_logps"] * mask).sum(1)
        return inputs, sheet.spread(self.logps_N)

    def theirs(self, loss_type="grpo", kind=GRPOTrainer, cuts=None, cut=(), waiting=1, **settings):
        """TRL's loss of one optimizer step, cut into micro-batches.

        `waiting` optimizer steps are made from what is sampled at once.
        """
        cuts = [list(range(6))] if cuts is None else cuts
        tokens = sum(length for i, length in enumerate(LENGTHS) if i not in cut)
        args = {"use_bias_correction_kl": False, "delta": None, "sapo_temperature_pos": 0.75}
        args |= {"sapo_temperature_neg": 1.25, "steps_per_generation": waiting * len(cuts)}
        attributes = {
            "loss_type": loss_type,
            "importance_sampling_level": "token",
            "epsilon_low": 0.2,
            "epsilon_high": 0.3,
            "beta": 0.0,
            "max_completion_length": LIMIT,
            "current_gradient_accumulation_steps": len(cuts),
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "use_vllm": False,
            "_entropy_bonus_enabled": False,
        }
        args |= settings.pop("args", {})
        self.trainer = doubles.trainer(kind, **attributes | settings, args=args)
        losses = []
        for rows in cuts:
            inputs, logps = self.micro_batch(rows, cut)
            inputs["num_items_in_batch"] = torch.tensor(tokens)
            said = (logps, torch.zeros_like(logps), None)
            self.trainer._get_per_token_logps_and_entropies = lambda *_, said=said, **__: said
            losses.append(kind._compute_loss(self.trainer, None, inputs))
        return torch.stack(losses).sum()


CLIP = {"epsilon": 0.2, "epsilon_high": 0.3, "beta": 0.0}
SEQUENCE = {"importance_sampling_level": "sequence"}
AGREE = {
    "grpo": ("grpo", {}, "grpo", {**CLIP}),
    "k3": ("grpo", {"beta": KL}, "grpo", {**CLIP, "beta": KL, "kl_estimator": "k3"}),
    "weighted_k3": (
        "grpo",
        {"beta": KL, "args": {"use_bias_correction_kl": True}},
        "grpo",
        {**CLIP, "beta": KL},
    ),
    "dual_clip": ("grpo", {"args": {"delta": 1.5}}, "grpo", {**CLIP, "dual_clip": 1.5}),
    "dapo": ("dapo", {}, "dapo", {**CLIP}),
    "dr_grpo": ("dr_grpo", {}, "dr_grpo", {**CLIP, "max_completion_length": LIMIT}),
    "bnpo": ("bnpo", {}, "grpo", {**CLIP, "aggregation": "token"}),
    "luspo": ("luspo", {}, "grpo", {**CLIP, "aggregation": "sequence_sum"}),
    "cispo": ("cispo", {"epsilon_high": 1.3}, "cispo", {"ratio_max": 1.3}),
    "sapo": ("sapo", {}, "sapo", {"tau_positive": 0.75, "tau_negative": 1.25}),
    "gspo": ("grpo", SEQUENCE, "gspo", {"epsilon": 0.2, "epsilon_high": 0.3}),
    "gspo_token": ("grpo", SEQUENCE, "gspo_token", {"epsilon": 0.2, "epsilon_high": 0.3}),
}


@DTYPES
@pytest.mark.parametrize(("loss", "settings", "name", "fields"), AGREE.values(), ids=AGREE)
def test_losses_of_one_micro_batch_agree(loss, settings, name, fields, dtype):
    point = Rollout(dtype)
    same(point.ours(name, **fields), point.theirs(loss, **settings), point.logps_N)


@DTYPES
def test_rloo_and_gmpo_agree(dtype):
    """Ratios of sums, and of clipped means, so the drift of single tokens is smaller."""
    point = Rollout(dtype, drift=0.15)
    theirs = point.theirs(kind=RLOOTrainer, epsilon_high=0.2)
    same(point.ours("rloo", cliprange=0.2), theirs, point.logps_N)
    point = Rollout(dtype)
    theirs = point.theirs(kind=GMPOTrainer, epsilon_low=0.4, epsilon_high=0.4)
    same(point.ours("gmpo", log_clip=0.4), theirs, point.logps_N)


def test_metrics_of_grpo_agree():
    point = Rollout()
    point.ours("grpo", **{**CLIP, "beta": KL, "kl_estimator": "k3"})
    point.theirs(beta=KL)
    for name in ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        (peer,) = point.trainer._metrics["train"][name]
        ours = point.metrics[name]
        assert peer > 0
        assert float(ours.total) / ours.weight == pytest.approx(peer, rel=1e-6)


HALVES = ([0, 1, 2], [3, 4, 5])


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "luspo"])
def test_losses_of_two_equal_micro_batches_agree(name):
    point = Rollout()
    loss, settings, method_name, fields = AGREE[name]
    theirs = point.theirs(loss, cuts=HALVES, **settings)
    same(point.ours(method_name, **fields), theirs, point.logps_N)


def test_bnpo_depends_on_the_micro_batches():
    point = Rollout()
    theirs = point.theirs("bnpo", cuts=HALVES)
    token = {**CLIP, "aggregation": "token"}
    differ(point.ours("grpo", **token), theirs)
    halves = [point.ours("grpo", [i in half for i in range(6)], **token) for half in HALVES]
    same(sum(halves) / 2, theirs, point.logps_N)


def test_trls_dapo_divides_by_the_mean_of_the_steps_to_come():
    """Half of a rollout per optimizer step: ours divides by that step's own tokens."""
    point = Rollout()
    theirs = point.theirs("dapo", cuts=[HALVES[0]], waiting=2)
    own = sum(LENGTHS[i] for i in HALVES[0])
    ours = point.ours("dapo", [i in HALVES[0] for i in range(6)], **CLIP)
    differ(ours, theirs)
    same(ours * own / (sum(LENGTHS) / 2), theirs, point.logps_N)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "luspo"])
def test_masked_completions_are_counted_there_and_not_here(name):
    """mask_truncated_completions against overlong_filter: token means alone agree."""
    point, cut = Rollout(), (2, 5)
    loss, settings, method_name, fields = AGREE[name]
    theirs = point.theirs(loss, cut=cut, **settings)
    ours = point.ours(method_name, [i not in cut for i in range(6)], **fields)
    counted = 1.0 if name == "dapo" else 4 / 6
    same(ours * counted, theirs, point.logps_N)


def test_the_kl_term_is_weighted_by_default_there_too():
    """Off, it is k3 alone: row `k3` above. TRL leaves the term out unless beta is set."""
    assert GRPOConfig.use_bias_correction_kl is True
    assert GRPOConfig.beta == 0.0
    point = Rollout()
    weighted = point.theirs(beta=KL, args={"use_bias_correction_kl": True})
    differ(point.theirs(beta=KL), weighted)


def test_the_bound_of_cispo_is_absolute_and_follows_epsilon_there():
    """epsilon_high left out is epsilon, 0.2: every weight is 0.2, whatever the ratio."""
    assert GRPOConfig.epsilon == 0.2
    assert GRPOConfig.epsilon_high is None
    point = Rollout()
    theirs = point.theirs("cispo", epsilon_high=GRPOConfig.epsilon)
    same(0.2 * point.ours("reinforce"), theirs, point.logps_N)
    differ(point.ours("cispo"), theirs)
