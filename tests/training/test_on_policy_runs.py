"""Whole runs of a two-layer model, with one knob of the recipe turned: what it does to the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from test_step import LORAS

from small_groups import random_groups, scorer
from truing.config import Model
from truing.data.packing import pack
from truing.errors import RolloutError, UsageError
from truing.models import loading
from truing.models.network import Network
from truing.models.roles import Roles
from truing.rewards.base import Scores
from truing.rollouts.sampler import sample
from truing.training.build import build
from truing.training.inputs import Inputs
from truing.training.method import resolve


@dataclass
class Run:
    """What a run left."""

    rollouts: list = field(default_factory=list)
    metrics: list = field(default_factory=list)
    works: list = field(default_factory=list)
    start: dict = field(default_factory=dict)
    end: dict = field(default_factory=dict)

    @property
    def completions(self):
        """Of each rollout."""
        return [[c for g in r.groups for c in g.completions] for r in self.rollouts]

    def of_rollouts(self, name):
        return [r.metrics[name] for r in self.rollouts]

    @property
    def walked(self):
        return sum((self.end[n] - p).square().sum().item() for n, p in self.start.items()) ** 0.5


def low_share(completion):
    """Share of tokens from the lower half of the alphabet."""
    return sum(i < 130 for i in completion.ids) / len(completion.ids)


low_bytes = scorer(lambda completion, group: low_share(completion))


def ran(method="grpo", reward=low_bytes, seed=3, lora=None, shown=(), readable=None, **knobs):
    """A short run: four prompts a rollout, up to four rollouts."""
    found = Run()
    raw = {
        "method": method,
        "reward": "given",
        "num_rollouts": 2,
        "rollout_batch_size": 4,
        "num_generations": 2,
        "batch_size": 4,
        "max_completion_length": 5,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        **knobs,
    }
    stage = build(
        resolve("stage", raw, "test"),
        Inputs(
            source="random:llama",
            revision=None,
            model=Model(path="random:llama", dtype="float32", device="cpu", lora=LORAS.get(lora)),
            stop_id=2,
            train=random_groups(1, 8, 0),
            heldout=[],
            demonstrations=list(shown),
            reward_run=None,
            shares_trunk=False,
            reward=reward,
            on_rollout=lambda index, rollout: found.rollouts.append(rollout),
            seed=seed,
            where="test",
            readable=readable,
        ),
    )
    masters = stage.step.masters.masters
    found.start = {n: p.detach().clone() for n, p in masters.items()}
    for work in stage.source:
        found.works.append(work)
        found.metrics.append(stage.step(work.micro_batches, work.metrics))
        stage.source.observe(found.metrics[-1])
    found.end = {n: p.detach().clone() for n, p in masters.items()}
    return found


def test_num_rollouts():
    for number in (1, 3):
        seen = ran(num_rollouts=number)
        assert len(seen.rollouts) == number
        assert len(seen.metrics) == 2 * number


def test_rollout_batch_size():
    """Prompts in one rollout; more steps with it, of the same size."""
    for size in (2, 4, 8):
        seen = ran(rollout_batch_size=size, num_rollouts=1)
        assert len(seen.rollouts[0].groups) == size
        assert len(seen.metrics) == size // 2


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_num_generations(method):
    """Completions per prompt; a batch of as many completions then holds fewer prompts."""
    for number in (1, 2, 4)[method != "ppo" :]:
        seen = ran(method, num_generations=number, num_rollouts=1)
        assert {len(g.completions) for g in seen.rollouts[0].groups} == {number}
        assert len(seen.completions[0]) == 4 * number
        assert len(seen.metrics) == number
        assert all(sum(b.size_C for b in w.micro_batches) == 4 for w in seen.works)


@pytest.mark.parametrize("method", ["grpo", "rloo", "dr_grpo", "reinforce_pp_baseline"])
def test_one_completion_has_nothing_to_be_compared_with(method):
    with pytest.raises(UsageError, match=r"stages\.stage\.num_generations.*alone in its group"):
        ran(method, num_generations=1)
    assert ran(method, num_generations=2).walked > 0
    assert ran("reinforce", num_generations=1).walked > 0


def test_batch_size():
    """Completions in one step: fewer steps as it grows, none longer than asked."""
    for size, steps in ((2, 4), (4, 2), (8, 1)):
        seen = ran(batch_size=size, num_rollouts=1)
        assert len(seen.metrics) == steps
        assert all(sum(b.size_C for b in w.micro_batches) == size for w in seen.works)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_micro_batch_tokens(method):
    """Memory and speed, not the result."""
    whole, cut = (ran(method, micro_batch_tokens=n, num_rollouts=1) for n in (4096, 12))
    assert max(len(w.micro_batches) for w in whole.works) == 1
    assert min(len(w.micro_batches) for w in cut.works) > 1
    for name in ("loss", "grad_norm", "objective/kl"):
        one, other = ([m[name] for m in r.metrics if name in m] for r in (whole, cut))
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


def test_num_train_epochs():
    """Passes over each rollout: more steps of the same samples, each further from their policy."""
    seen = {n: ran("ppo", num_train_epochs=n, num_rollouts=1, num_generations=1) for n in (1, 3)}
    assert [len(run.metrics) for run in seen.values()] == [1, 3]
    drift = [m["policy/approxkl_avg"] for m in seen[3].metrics]
    assert drift[0] == 0 < drift[1] < drift[2]
    assert seen[3].walked > seen[1].walked


def test_max_steps():
    assert [len(ran(max_steps=n).metrics) for n in (1, 3, 99)] == [1, 3, 4]


def test_learning_rate():
    walked = [ran(learning_rate=rate).walked for rate in (1e-4, 1e-3, 1e-2)]
    assert walked[0] < walked[1] < walked[2]


def test_seed():
    one, same, other = (
        [c.ids for c in ran(seed=s, num_rollouts=1).completions[0]] for s in (1, 1, 2)
    )
    assert one == same != other


def test_max_completion_length():
    for limit in (1, 3, 9):
        seen = ran(max_completion_length=limit)
        lengths = [len(c.ids) for found in seen.completions for c in found]
        assert max(lengths) == limit


def test_temperature():
    """Larger opens the distribution, for the sampler and the trainer alike."""
    entropies = []
    for temperature in (0.02, 0.1, 1.0):
        seen = ran("ppo", temperature=temperature, num_rollouts=1, score_normalization="none")
        entropies.append(seen.metrics[0]["policy/entropy_avg"])
        assert seen.rollouts[0].metrics["sampling/logp_difference_max"] < 1e-3
    assert entropies[0] < entropies[1] < entropies[2]


NARROWER = {"top_k": (0, 8, 1), "top_p": (1.0, 0.02, 1e-6), "min_p": (0.0, 0.8, 1.0)}


@pytest.mark.parametrize("knob", NARROWER)
def test_truncations_narrow_what_is_drawn(knob):
    """Fewer different first tokens; the log-probs stay those of the whole distribution."""
    kinds = []
    for value in NARROWER[knob]:
        few = {"num_rollouts": 1, "rollout_batch_size": 2, "score_normalization": "none"}
        seen = ran("ppo", num_generations=16, batch_size=16, **few, **{knob: value})
        firsts = [{c.ids[0] for c in g.completions} for g in seen.rollouts[0].groups]
        kinds.append(sum(map(len, firsts)))
        assert seen.rollouts[0].metrics["sampling/logp_difference_max"] < 1e-3
    assert kinds[0] > kinds[1] > kinds[2] == 2


def test_stop():
    """A completion ends where its text first contains one of them, and counts as finished."""

    def digits(ids):
        return " ".join(map(str, ids))

    free = ran(num_rollouts=1, readable=digits)
    ids = free.completions[0][0].ids
    assert len(ids) > 2
    seen = ran(num_rollouts=1, readable=digits, stop=[digits(ids[:2])])
    assert seen.completions[0][0].ids == ids[:2]
    assert free.of_rollouts("completions/clipped_ratio") > seen.of_rollouts(
        "completions/clipped_ratio"
    )


def scaled(times, plus=0.0):
    return scorer(lambda c, g: plus + times * (low_share(c) + 0.01 * len(c.ids)))


FOLLOWS = {  # same run for: seven times the reward; seven times and three more
    "none": (False, False),
    "running_scale": (True, False),
    "running": (True, True),
    "reference": (True, True),
}


@pytest.mark.parametrize("kind", FOLLOWS)
def test_score_normalization(kind):
    """Which changes of the reward's unit a whole run does not notice."""

    def losses(reward):
        seen = ran(
            "ppo", reward, score_normalization=kind, whiten_advantages=False, kl_coef=0.0,
            num_rollouts=3, num_generations=1,
        )  # fmt: skip
        return [m["loss/value_avg"] for m in seen.metrics]

    plain = losses(scaled(1.0))
    same = [
        losses(reward) == pytest.approx(plain, rel=1e-2)
        for reward in (scaled(7.0), scaled(7.0, plus=3.0))
    ]
    assert tuple(same) == FOLLOWS[kind]


def test_a_running_scale_follows_and_the_references_stays():
    firsts, laters = [], []
    for kind in ("reference", "running"):
        calls = []

        def rising(groups, calls=calls):
            calls.append(1)
            return scaled(1.0, plus=5.0 * len(calls))(groups)

        seen = ran("ppo", rising, score_normalization=kind, num_rollouts=3, num_generations=1)
        flat = [
            torch.cat([b["scores_C"] for part in r.minibatches for b in part])
            for r in seen.rollouts
        ]
        firsts.append(flat[0].mean().item())
        laters.append(flat[2].mean().item())
    assert firsts == pytest.approx([0, 0], abs=1e-5)
    assert laters[0] > 3 * laters[1] > 0


def prices(**knobs):
    fixed = {"kl_coef": 0.1, "num_rollouts": 4, "num_generations": 1, "max_completion_length": 8}
    return ran("ppo", **fixed | knobs).of_rollouts("objective/kl_coef")


def test_kl_control():
    assert prices() == [pytest.approx(0.1)] * 4
    adaptive = prices(kl_control="adaptive", kl_target=6.0, kl_horizon=10)
    # the first rollout is the reference's own: KL 0, clipped error −0.2, four completions of ten
    assert adaptive[:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 0.4)])
    budget = prices(kl_control="budget", kl_target=6.0, num_rollouts=12)
    # 0.6 of twelve rollouts are 7.2: planned for the first is 1/7.2 of the target, e = −1/7.2
    assert budget[:2] == pytest.approx([0.1, 0.1 * math.exp(-2.5 / 7.2)])
    # of a run that ends after two the first is planned to spend more than half: the largest pull
    short = prices(kl_control="budget", kl_target=6.0, num_rollouts=12, max_steps=2)
    assert short == pytest.approx([0.1, 0.1 * math.exp(-1)])


def test_kl_target():
    """Larger lets the policy go further: the price ends lower."""
    for kind in ("adaptive", "budget"):
        horizon = {"kl_horizon": 10} if kind == "adaptive" else {}
        ends = [prices(kl_control=kind, kl_target=t, **horizon)[-1] for t in (1e-3, 50.0)]
        assert ends[0] > ends[1]


def test_kl_horizon():
    """Larger answers slower."""
    moved = [
        abs(prices(kl_control="adaptive", kl_target=50.0, kl_horizon=h)[-1] - 0.1)
        for h in (10, 100, 10_000)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


def test_importance_correction_and_its_cap(monkeypatch):
    """A sampler that says half a nat less of every token than the trainer."""

    def elsewhere(*args, **kwargs):
        return [
            replace(
                g,
                completions=tuple(
                    replace(c, sampled_logps=tuple(x - 0.5 for x in c.sampled_logps))
                    for c in g.completions
                ),
            )
            for g in sample(*args, **kwargs)
        ]

    monkeypatch.setattr("truing.training.on_policy.sample", elsewhere)
    name = "sampling/importance_mean"
    far = {"num_rollouts": 1, "logp_difference_limit": None}
    assert name not in ran(**far).rollouts[0].metrics
    with pytest.raises(RolloutError, match=r"logp_difference_limit 0\.15"):
        ran(num_rollouts=1)

    def mean(kind, cap):
        seen = ran(**far, importance_correction=kind, importance_cap=cap)
        return seen.rollouts[0].metrics[name]

    factor = math.exp(0.5)
    assert mean("token_truncate", 3.0) == pytest.approx(factor, rel=1e-3)
    assert mean("token_truncate", 1.2) == pytest.approx(1.2, rel=1e-6)
    assert mean("token_mask", 3.0) == pytest.approx(factor, rel=1e-3)
    assert mean("token_mask", 1.2) == 0
    assert mean("sequence_truncate", 50.0) > mean("sequence_truncate", 3.0) > factor


def test_dynamic_rounds():
    """How often more is drawn where nothing differs."""
    for rounds in (1, 3):
        calls = []

        def first_group_only(groups, calls=calls):
            calls.append(len(groups))
            values = [0.0] * sum(len(g.completions) for g in groups)
            if len(calls) == 1:
                values[0] = 1.0
            return Scores(values)

        ran("dapo", first_group_only, dynamic_rounds=rounds, num_rollouts=1, num_generations=2)
        assert len(calls) == 1 + rounds


def test_demonstrations_per_step():
    shown = random_groups(9, 12, 1)
    for number in (1, 3, 8):
        seen = ran("ppo", shown=shown, ptx_coef=0.5, demonstrations_per_step=number)
        for work in seen.works:
            flags = torch.cat([b["demonstration_C"] for b in work.micro_batches])
            assert int(flags.sum()) == number
    without = ran("ppo", shown=shown)
    assert all("demonstration_C" not in b for w in without.works for b in w.micro_batches)


def test_demonstrations_are_learnt_at_no_temperature():
    """People drew them from no model: beside hot or cold samples the loss on them is SFT's."""
    batch = pack(random_groups(1, 4, 1))
    network = Network(loading.load_causal("random:llama", torch.float32))

    def logps(temperature, **columns):
        roles = Roles(network, temperature=temperature)
        return roles.outputs(batch.with_columns(**columns), "policy").logps_N

    mine, people = torch.zeros(batch.size_C).bool(), torch.ones(batch.size_C).bool()
    assert torch.equal(logps(0.5, demonstration_C=people), logps(1.0))
    assert torch.equal(logps(0.5, demonstration_C=mine), logps(0.5))
    assert not torch.allclose(logps(0.5), logps(1.0))
