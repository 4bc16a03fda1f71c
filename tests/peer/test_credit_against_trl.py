"""Advantages: what TRL makes of scores, against the rule `group`."""

import doubles
import pytest
import torch
from doubles import differ
from trl import GRPOConfig
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from objectives.flat_batches import make_batch
from truing import objectives
from truing.rollouts.credit.group import GroupCredit

LENGTHS = [3, 1, 5, 2, 4, 1, 2, 2, 3]
SCORES = [1.3, -0.5, 2.5, 0.25, 0.0, 0.75, 2.0, 2.0, 2.0]
TIMES = 3
"""Completions of a prompt; the last prompt's are all worth the same."""


def batch_of(dtype):
    drift_N = torch.linspace(-1, 1, sum(LENGTHS), dtype=dtype)
    return make_batch(
        LENGTHS,
        [i // TIMES for i in range(len(LENGTHS))],
        dtype,
        scores_C=SCORES,
        sampled_logps_N=drift_N - 2,
        reference_logps_N=torch.full_like(drift_N, -2.0),
        finished_C=[1] * len(LENGTHS),
    )


def ours(batch, **settings):
    """One advantage per completion."""
    (credited,), _ = GroupCredit(**settings)([batch])
    return credited["advantages_N"][batch.last_C]


def theirs(batch, kind, **settings):
    """What TRL's trainer makes of completions that were sampled and scored just so."""
    sheet = doubles.Sheet(batch, range(batch.size_C), prompts=False)
    ids = [[1] * length for length in LENGTHS]
    generated = ([[1]] * len(ids), ids, None, ids, None, {}, None, None)
    names = ["reward"]
    attributes = {
        "_tokenizer": type("Tokenizer", (), {"pad_token_id": 0}),
        "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "beta": 0.0,
        "ref_model": "reference",
        "num_generations": TIMES,
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": torch.ones(1, dtype=batch["scores_C"].dtype),
        "reward_clip_range": None,
        "normalize_advantages": False,
        "scale_rewards": "group",
        "reward_funcs": names,
        "reward_func_names": names,
        "num_iterations": 1,
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "log_multimodal": False,
        "_logs": {name: [] for name in ("prompt", "completion", "advantages")}
        | {"rewards": {"reward": []}, "extra": {}},
    }
    args = {"per_device_train_batch_size": 9, "steps_per_generation": 1}
    args["gradient_accumulation_steps"] = 1
    made = doubles.trainer(kind, **attributes | settings, args=args)
    made._generate = lambda _: generated if kind is GRPOTrainer else (generated[0], ids, ids)
    made._calculate_rewards = lambda *_: batch["scores_C"][:, None]

    def logps(model, *_, **__):
        name = "reference_logps_N" if model == "reference" else "sampled_logps_N"
        return sheet.spread(batch[name])[:, : max(LENGTHS)], None, None

    made._get_per_token_logps_and_entropies = logps
    inputs = [{"prompt": "?"} for _ in LENGTHS]
    return kind._generate_and_score_completions(made, inputs)["advantages"]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_advantages_agree(scale):
    """Bessel's deviation and 1e-4, and 0 in a group that has nothing to say."""
    batch = batch_of(torch.float64)
    advantages_C = theirs(batch, GRPOTrainer, scale_rewards=scale)
    close(ours(batch, scale_rewards=scale), advantages_C)
    assert advantages_C[:6].abs().min() > 0.05
    close(advantages_C[6:], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_rloo_advantages_agree(kl_coef):
    """The KL of the whole completion is in the return, so also in the baseline."""
    batch = batch_of(torch.float64)
    settings = {"baseline": "leave_one_out", "scale_rewards": "none", "kl_coef": kl_coef}
    close(ours(batch, **settings), theirs(batch, RLOOTrainer, beta=kl_coef))


def test_scale_rewards_batch_is_another_thing():
    """TRL divides by the deviation of all scores; ours whitens advantages over all tokens."""
    batch = batch_of(torch.float64)
    centred_C = ours(batch, scale_rewards="none")
    advantages_C = theirs(batch, GRPOTrainer, scale_rewards="batch")
    close(advantages_C, centred_C / (batch["scores_C"].std() + 1e-4))
    centred_N = centred_C[batch.completion_N]
    whitened_C = (centred_C - centred_N.mean()) / centred_N.std()
    torch.testing.assert_close(ours(batch, scale_rewards="batch"), whitened_C, rtol=0, atol=1e-7)
    assert (advantages_C - whitened_C).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_trls_dr_grpo_still_divides_by_the_deviation(tmp_path):
    """Its loss_type says nothing of scale_rewards; our preset sets both."""
    config = GRPOConfig(str(tmp_path), loss_type="dr_grpo", bf16=False, use_cpu=True)
    batch = batch_of(torch.float64)
    preset = objectives.presets()["dr_grpo"].keys
    unscaled_C = ours(batch, scale_rewards=preset["scale_rewards"])
    advantages_C = theirs(batch, GRPOTrainer, scale_rewards=config.scale_rewards)
    deviation_C = batch["scores_C"].view(-1, TIMES).std(1).repeat_interleave(TIMES)
    close(advantages_C, unscaled_C / (deviation_C + 1e-4))
    differ(advantages_C.abs().sum(), unscaled_C.abs().sum())


def test_the_soft_overlong_punishment_agrees():
    lengths = [3, 12, 13, 17, 20]
    batch = make_batch(
        lengths,
        scores_C=[0.0] * 5,
        finished_C=[1] * 5,
        sampled_logps_N=[0.0] * sum(lengths),
        reference_logps_N=[0.0] * sum(lengths),
    )
    settings = {"baseline": "none", "scale_rewards": "none", "max_completion_length": 20}
    peer = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
    punished_C = torch.tensor(peer([[0] * length for length in lengths]), dtype=torch.float64)
    assert punished_C[0] == 0
    assert punished_C[-1] == -1
    close(ours(batch, overlong_cache=8, **settings), punished_C)
