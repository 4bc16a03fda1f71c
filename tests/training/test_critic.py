"""A critic that starts as the reward model: what it says, what teaches it, what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from small_groups import random_groups, scorer
from truing.config import Lora, Model
from truing.models import loading, saving
from truing.models.heads import new_score_head
from truing.models.network import Network
from truing.rewards.base import Scores
from truing.training.build import build
from truing.training.inputs import Inputs
from truing.training.method import resolve
from truing.training.networks import lora_config

SOURCE = "random:llama"
LORA, LAST = Lora(rank=4), Lora(rank=4, last_layers=1)
ADAPTERS = {"adapter": LORA, "own, adapters": LORA, "own, last adapters": LAST, "own": None}
KINDS = tuple(ADAPTERS)
"""On the policy's trunk; a network of its own with adapters, in all layers or the last (then the
policy's batches bring the states of the layers below); a network of its own, fully tuned."""
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def reward_runs(tmp_path_factory):
    """With adapters or without -> the run directory of a reward model with an opinion."""
    tokenizer, runs = loading.load_tokenizer(SOURCE), {}
    for lora in (None, LORA):
        folder = tmp_path_factory.mktemp("reward")
        model = loading.load_causal(SOURCE, torch.float32)
        head = new_score_head(model.config.hidden_size, seed=5)
        wanted = lora_config(Model(path=SOURCE, lora=lora), model)
        network = Network(model, lora=wanted, score_head=head)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            head.weight.mul_(10)
            for name, weight in network.named_parameters():
                if ".lora_B." in name or (lora is None and weight.ndim == 2):
                    weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
        merged = model
        if network.peft is not None:
            adapter = folder / saving.ADAPTER_FOLDER
            network.peft.save_pretrained(adapter)
            saving.save_head(adapter / saving.SCORE_HEAD_FILE, head)
            merged = network.peft.merge_and_unload()
        saving.save_scorer(folder, merged, head, tokenizer, 2, torch.float32)
        runs[lora] = folder
    return runs


@scorer
def low_bytes(completion, group):
    return sum(i < 130 for i in completion.ids) / len(completion.ids)


@pytest.fixture
def staged(reward_runs):
    """A ppo stage whose critic is of this kind, or the policy's own head (None)."""

    def make(kind, *, score=low_bytes, reward_model=True, **knobs):
        lora = ADAPTERS.get(kind)
        torch.manual_seed(0)  # new adapters begin at random
        raw = {
            "method": "ppo",
            "reward": "given",
            "critic": "policy" if kind is None else "reward",
            "num_rollouts": 3,
            "rollout_batch_size": 8,
            "batch_size": 4,
            "max_completion_length": 5,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
            **knobs,
        }
        return build(
            resolve("stage", raw, "test"),
            Inputs(
                source=SOURCE,
                revision=None,
                model=Model(path=SOURCE, lora=lora, dtype="float32", device="cpu"),
                stop_id=2,
                train=random_groups(1, 8, 0),
                heldout=[],
                demonstrations=[],
                reward_run=reward_runs[lora and LORA] if reward_model else None,
                shares_trunk=kind == "adapter",
                reward=score,
                on_rollout=lambda index, rollout: None,
                seed=3,
                where="test",
            ),
        )

    return make


def is_critics(name):
    return name.startswith(("critic", "value_head")) or ".critic." in name


def parts(stage):
    """(masters of the policy, masters of the critic), as they are now."""
    found = {n: p.detach().clone() for n, p in stage.step.masters.masters.items()}
    critic = {n: p for n, p in found.items() if is_critics(n)}
    return {n: p for n, p in found.items() if n not in critic}, critic


def first(stage):
    return next(iter(stage.source))


@every_kind
def test_values_start_as_the_reward_models_scores_of_every_state(kind, staged, reward_runs):
    """Against a plain classifier that reads each beginning of a text alone."""
    stage = staged(kind, score_normalization="none")
    folder = reward_runs[ADAPTERS[kind] and LORA]
    judge = AutoModelForSequenceClassification.from_pretrained(folder)
    for batch in first(stage).micro_batches:
        values_N = stage.step.compute(batch).values_N
        torch.testing.assert_close(values_N, batch["values_N"])
        for n in range(0, batch.size_N, 3):
            end, group = int(batch.source_N[n]), int(batch.group_T[batch.source_N[n]])
            branch = int(batch.branch_T[batch.target_N[n]])
            seen = [
                int(token)
                for t, token in enumerate(batch.tokens_T)
                if t <= end and batch.group_T[t] == group and batch.branch_T[t] in (0, branch)
            ]
            with torch.no_grad():
                state = judge.base_model(torch.tensor([seen])).last_hidden_state[0, -1]
                score = judge.score(state).item()
            assert values_N[n].item() == pytest.approx(score, abs=1e-4)
        assert values_N.std() > 0.05  # a reward model that says something


@every_kind
@pytest.mark.parametrize("normalization", ["reference", "running_scale"])
def test_it_speaks_on_the_scale_of_the_returns(kind, normalization, staged):
    """The returns are of normalised scores: a value in the reward's own unit would be off by its
    mean for many rollouts, which cliprange_value lets it correct by little a time."""

    def far_off(groups):
        return Scores([50 + 4 * value for value in low_bytes(groups).values])

    raw = staged(kind, score=far_off, score_normalization="none")
    stage = staged(kind, score=far_off, score_normalization=normalization)
    plain, scaled = first(raw).micro_batches, first(stage).micro_batches
    scale = stage.source.collector.normalize
    assert scale.mean > 50
    shift = 0.0 if normalization == "running_scale" else scale.mean
    for ours, theirs in zip(plain, scaled, strict=True):
        expected = (ours["values_N"] - shift) / scale.deviation
        torch.testing.assert_close(theirs["values_N"], expected, rtol=1e-4, atol=1e-4)
    again = next(work for work in stage.source)  # once: not with every rollout
    for batch in again.micro_batches:
        torch.testing.assert_close(stage.step.compute(batch).values_N, batch["values_N"])


@every_kind
def test_where_it_lives(kind, staged):
    """On the shared trunk it is no copy; of its own it is one more."""
    roles = staged(kind).roles
    assert (roles.critic is None) is (kind == "adapter")
    copies = {"adapter": 1, "own, adapters": 3, "own, last adapters": 3, "own": 4}
    assert roles.copies == copies[kind]
    assert roles.policy.value_head is None


@every_kind
def test_the_first_ratio_is_exactly_1_and_the_policy_is_as_without_it(kind, staged):
    stage = staged(kind)
    work = first(stage)
    stage.step(work.micro_batches, work.metrics)
    assert stage.step.first_metrics["val/ratio"] == 1.0
    assert stage.step.first_metrics["policy/clipfrac_avg"] == 0.0
    assert abs(stage.step.first_metrics["objective/kl"]) <= 1e-6
    plain, other = staged(None), staged(kind)
    for batch in work.micro_batches:
        logps_N = [s.roles.outputs(batch, "policy").logps_N.detach() for s in (plain, other)]
        torch.testing.assert_close(*logps_N, rtol=0, atol=1e-5)


def gradients(stage, batches, **columns):
    """Of every master, for these batches with other columns."""
    for batch in batches:
        changed = batch.with_columns(**{n: v[: batch.size_N] for n, v in columns.items()})
        stage.step.objective(changed, stage.step.compute(changed)).total.backward()
        stage.step.masters.collect()
    found = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in stage.step.masters.masters.items()
    }
    for master in stage.step.masters.masters.values():
        master.grad = None
    return found


def largest(found, wanted):
    return max(g.abs().max().item() for n, g in found.items() if wanted(n))


@every_kind
def test_only_the_value_loss_teaches_the_critic_and_none_of_it_the_policy(kind, staged):
    stage = staged(kind)
    batches = first(stage).micro_batches
    silent = gradients(stage, batches, advantages_N=torch.zeros(999))
    assert largest(silent, lambda n: not is_critics(n)) == 0
    assert largest(silent, is_critics) > 1e-4
    # red while `using(None)` leaves the critic's adapter frozen behind it: only the head learns
    assert largest(silent, lambda n: is_critics(n) and "head." not in n) > 1e-5
    unvalued = staged(kind, vf_coef=0.0)
    assert largest(gradients(unvalued, batches), is_critics) == 0
    assert largest(gradients(unvalued, batches), lambda n: not is_critics(n)) > 1e-4


def test_a_head_on_the_policys_trunk_does_pull_at_it(staged):
    """What `critic: reward` ends."""
    stage = staged(None)
    with torch.no_grad():
        stage.roles.policy.value_head.weight.add_(0.1)
    silent = gradients(stage, first(stage).micro_batches, advantages_N=torch.zeros(999))
    assert largest(silent, lambda n: not is_critics(n)) > 1e-4


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_in_the_warm_up_the_critic_learns_alone(kind, staged):
    """Bit by bit: neither momentum nor decay moves the policy."""
    stage = staged(kind, critic_warmup_rollouts=2, weight_decay=0.1)
    policy, critic = parts(stage)
    per_rollout = stage.source.steps_per_rollout
    assert per_rollout == 2
    for number, work in enumerate(stage.source, start=1):
        stage.step(work.micro_batches, work.metrics)
        now_policy, now_critic = parts(stage)
        still = [n for n, p in policy.items() if torch.equal(p, now_policy[n])]
        if number <= 2 * per_rollout:
            assert still == list(policy)
            assert any(not torch.equal(p, critic[n]) for n, p in now_critic.items())
        else:
            assert len(still) <= len(policy) / 2
        policy, critic = now_policy, now_critic
    assert stage.step.taken == 3 * per_rollout


def test_the_schedule_is_the_policys_and_waits_for_it(staged):
    """The critic alone learns at the peak; the policy's rate rises from 0 afterwards."""
    stage = staged("own", critic_warmup_rollouts=1, num_rollouts=6, warmup_ratio=0.2)
    rates = [stage.step(work.micro_batches, work.metrics)["learning_rate"] for work in stage.source]
    assert len(rates) == 12  # two steps a rollout: ten of the policy, two of them warm-up
    assert rates[:2] == [1e-2, 1e-2]
    assert rates[2:5] == pytest.approx([0.0, 5e-3, 1e-2])
    assert rates[5:] == pytest.approx([1e-2 * k / 8 for k in range(7, 0, -1)])


def test_without_a_warm_up_both_learn_at_once(staged):
    stage = staged("own")
    policy, critic = parts(stage)
    work = first(stage)
    stage.step(work.micro_batches, work.metrics)
    now_policy, now_critic = parts(stage)
    for before, now in ((policy, now_policy), (critic, now_critic)):
        assert any(not torch.equal(p, now[n]) for n, p in before.items())


def test_the_warm_up_is_counted_in_rollouts_however_many_steps_they_give(staged):
    """Half of the first rollout has no score, so it gives one step and not two."""
    # red while the warm-up is counted in steps that a full rollout would have given
    calls = []

    def half_at_first(groups):
        calls.append(1)
        count = sum(len(g.completions) for g in groups)
        values = [0.1 * i for i in range(count)]
        if len(calls) == 1:
            values = [None if i >= count // 2 else v for i, v in enumerate(values)]
        return Scores(values)

    stage = staged("own", score=half_at_first, critic_warmup_rollouts=1)
    work = iter(stage.source)
    moved = []
    for _ in range(2):
        policy, _critic = parts(stage)
        found = next(work)
        stage.step(found.micro_batches, found.metrics)
        moved.append(any(not torch.equal(p, policy[n]) for n, p in parts(stage)[0].items()))
    assert len(calls) == 2
    assert moved == [False, True]


def test_the_policys_own_head_needs_none(staged):
    assert staged(None, reward_model=False).roles.policy.value_head is not None


@every_kind
def test_with_checkpointed_layers_the_gradients_are_the_same(kind, staged):
    plain, saving_memory = staged(kind), staged(kind, gradient_checkpointing=True)
    batches = first(plain).micro_batches
    first(saving_memory)
    ours, theirs = (gradients(stage, batches) for stage in (plain, saving_memory))
    for name, gradient in ours.items():
        if not is_critics(name):
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-5)
    heads = [
        [g for n, g in found.items() if is_critics(n) and n.endswith("head.weight")]
        for found in (ours, theirs)
    ]
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-3, atol=1e-3)
    below = [n for n in theirs if is_critics(n) and "head." not in n]
    assert largest(theirs, lambda n: n in below) > 1e-5
    if saving_memory.roles.critic is not None and plain.roles.critic is None:
        return  # another network with adapters of its own: its other gradients are of other things
    assert ours.keys() == theirs.keys()
    for name in below:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)


@every_kind
def test_it_learns_to_say_what_comes(kind, staged):
    """With the policy held still, the value loss falls."""
    stage = staged(
        kind, critic_warmup_rollouts=12, num_rollouts=13, cliprange_value=None, learning_rate=3e-3
    )
    losses = []
    for work in stage.source:
        if stage.source.rollout == 12:
            break
        losses.append(stage.step(work.micro_batches, work.metrics)["loss/value_avg"])
    assert sum(losses[-6:]) / 6 < 0.75 * sum(losses[:2]) / 2
