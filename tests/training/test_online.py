"""Rows that the policy makes itself: the reward rises, nothing is decided by chance or by place.

Byte prompts on a random two-layer model; the reward is on token ids.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from small_groups import random_groups, scorer
from truing.config import Lora, Model
from truing.data.packing import pack
from truing.errors import NumericsError, UsageError
from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.rewards.base import Scores
from truing.training.build import build
from truing.training.inputs import Inputs
from truing.training.method import resolve
from truing.training.online import Online

PLAIN = {
    "reward": "any",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "num_rollouts": 3,
    "rollout_batch_size": 8,
    "batch_size": 8,
    "max_completion_length": 6,
}


@scorer
def low_bytes(completion, group):
    """Share of tokens from the lower half of the alphabet."""
    return sum(i < 130 for i in completion.ids) / len(completion.ids)


def prompts(number=16):
    return [TokenGroup(g.prompt_ids) for g in random_groups(1, number, 0)]


def built(method, reward=low_bytes, lora=None, rollouts=None, train=None, **knobs):
    """A stage; its rollouts are appended to `rollouts`."""
    seen = [] if rollouts is None else rollouts
    return build(
        resolve("stage", {**PLAIN, "method": method, **knobs}, "test"),
        Inputs(
            source="random:llama",
            revision=None,
            model=Model(path="random:llama", lora=lora, dtype="float32"),
            stop_id=2,
            train=prompts() if train is None else train,
            heldout=[],
            demonstrations=[],
            reward_run=None,
            shares_trunk=False,
            reward=reward,
            on_rollout=lambda index, rollout: seen.append(rollout),
            seed=3,
            where="test",
        ),
    )


def trained(method, **knobs):
    """The stage after its steps, the metrics of each, and its rollouts."""
    rollouts = []
    stage = built(method, rollouts=rollouts, **knobs)
    metrics = [
        stage.step(work.micro_batches, work.metrics) for work in stage.source if work.micro_batches
    ]
    return stage, metrics, rollouts


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("ipo", {}),
        ("simpo", {"selection": "all"}),
        ("kto", {"desirable_weight": 1.0}),
        ("infonca", {}),
        ("sft", {"threshold": 0.5}),
        ("mixture", {"parts": [{"method": "dpo"}, {"method": "sft", "weight": 0.2}]}),
    ],
)
def test_any_offline_method_learns_online_when_it_is_given_a_reward(method, knobs):
    _, _, rollouts = trained(method, num_rollouts=12, num_generations=4, **knobs)
    scores = [rollout.metrics["objective/scores"] for rollout in rollouts]
    assert len(scores) == 12
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2 + 0.1


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["online_dpo", "xpo"])
def test_before_the_first_update_nothing_prefers_anything(method, lora):
    """Whatever the temperature samples are drawn at, the loss reads the model itself."""
    stage, metrics, _ = trained(method, lora=lora, temperature=0.7)
    assert stage.roles.temperature == 1.0
    assert stage.roles.copies == (1 if lora else 2)
    assert metrics[0]["objective/kl"] == 0
    assert metrics[0]["rewards/margins"] == 0
    if method == "online_dpo":
        assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics[-1]["objective/kl"] != 0


def test_a_reference_that_is_not_the_policy_is_refused_before_the_first_update():
    stage = built("online_dpo")
    with torch.no_grad():
        for parameter in stage.roles.reference_copy.parameters():
            parameter.mul_(1.5)
    work = next(iter(stage.source))
    assert abs(work.metrics["objective/kl"]) > 1e-3
    with pytest.raises(NumericsError):
        stage.step(work.micro_batches, work.metrics)


def test_the_rows_are_the_policys_own_and_ordered_by_the_reward():
    stage = built("online_dpo", num_generations=4)
    for work in stage.source:
        for batch in work.micro_batches:
            assert (
                batch["scores_C"][batch["chosen_G"]] > batch["scores_C"][batch["rejected_G"]]
            ).all()
            said = stage.roles.outputs(batch, "policy").logps_N
            stage.roles.temperature = 0.9  # that of the sampler
            drawn = stage.roles.outputs(batch, "policy").logps_N
            stage.roles.temperature = 1.0
            torch.testing.assert_close(drawn, batch["sampler_logps_N"], rtol=0, atol=1e-4)
            assert (said - drawn).abs().max() > 1e-3


def test_ties_are_left_out_and_counted():
    """Of prompts of odd length all completions are equal."""

    @scorer
    def half_silent(completion, group):
        return 0.0 if len(group.prompt_ids) % 2 else float(group.completions.index(completion))

    rollouts = []
    stage = built("online_dpo", half_silent, rollouts=rollouts, num_rollouts=2)
    for work, _ in zip(stage.source, range(2), strict=True):
        drawn = rollouts[-1].groups
        even = [g for g in drawn if len(g.prompt_ids) % 2 == 0]
        assert 0 < len(even) < len(drawn) == 8
        assert sum(batch.size_G for batch in work.micro_batches) == len(even)
        assert work.metrics["curation/ties"] == pytest.approx(1 - len(even) / 8)
        assert work.metrics["curation/kept_fraction"] == pytest.approx(len(even) / 8)


def test_a_rollout_of_ties_teaches_nothing_and_is_told():
    stage = built("online_dpo", scorer(lambda completion, group: 1.0))
    works = list(stage.source)
    assert [work.micro_batches for work in works] == [[], [], []]
    assert all(work.metrics["curation/ties"] == 1 for work in works)
    assert all(work.metrics["objective/scores"] == 1 for work in works)


def test_a_completion_without_a_score_is_in_no_row():
    """Every third one, counted by its reason; what is left of a group still makes its pair."""

    def faulty(groups):
        values = [
            None if (i + j) % 3 == 0 else float(j)
            for i, group in enumerate(groups)
            for j, _ in enumerate(group.completions)
        ]
        return Scores.of(values, ["odd" if value is None else None for value in values])

    rollouts = []
    stage = built("online_dpo", faulty, rollouts=rollouts, num_generations=3, num_rollouts=1)
    (work,) = stage.source
    assert work.metrics["rewards/unscored/odd"] == pytest.approx(1 / 3)
    assert [len(group.completions) for group in rollouts[0].groups] == [2] * 8
    assert sum(batch.size_G for batch in work.micro_batches) == 8
    expected = {0: (2.0, 1.0), 1: (2.0, 0.0), 2: (1.0, 0.0)}  # which place the fault takes
    found = sorted(
        (batch["scores_C"][w].item(), batch["scores_C"][r].item())
        for batch in work.micro_batches
        for w, r in zip(batch["chosen_G"], batch["rejected_G"], strict=True)
    )
    assert found == sorted(expected[(-i) % 3] for i in range(8))


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_the_reference_becomes_the_policy_every_k_rollouts_and_stands_between(lora):
    stage = built("dpo", lora=lora, num_rollouts=6, sync_reference_rollouts=2)

    def weights(network):
        return {name: weight.detach().clone() for name, weight in network}

    began, moved = None, []
    for work in stage.source:
        reference = weights(stage.roles.reference_copy.base.named_parameters())
        policy = weights(stage.roles.policy.merged_weights())
        same = all(torch.allclose(reference[n], policy[n], atol=1e-7) for n in policy)
        changed = began is not None and any(not torch.equal(reference[n], began[n]) for n in began)
        moved.append((same, changed))
        # the KL since the reference last moved: it is measured before it moves again
        assert (abs(work.metrics["objective/kl"]) < 1e-4) is (len(moved) == 1)
        began = reference
        stage.step(work.micro_batches, work.metrics)
    assert [same for same, _ in moved] == [True, False] * 3
    assert [changed for _, changed in moved] == [False, False, True, False, True, False]


def test_a_method_without_a_reference_may_still_be_held_against_one():
    """simpo reads no reference, but its rows are compared with what one draws."""
    stage, metrics, _ = trained("simpo", curation="against_reference", num_rollouts=2)
    assert stage.roles.copies == 2
    assert metrics


def test_without_it_the_reference_stays():
    stage, metrics, _ = trained("dpo", num_rollouts=4)
    assert all(abs(metric["objective/kl"]) > 1e-4 for metric in metrics[1:])
    assert not stage.roles.reference_masters


@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["full", "lora"])
def test_xpo_meets_what_the_reference_draws(lora):
    """A policy that has moved far still meets the completions of the model it began as."""

    @scorer
    def hardly_ever_ties(completion, group):
        return sum(completion.ids) + 1e-3 * len(completion.ids)

    base = built("xpo", hardly_ever_ties, lora)
    first = next(iter(base.source))
    moved = built("xpo", hardly_ever_ties, lora)
    with torch.no_grad():
        for name, parameter in moved.roles.policy.named_parameters():
            if "lora_B" in name or lora is None:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    second = next(iter(moved.source))

    def drawn(work, theirs):
        return {
            tuple(batch.token_ids_N[batch.completion_N == c].tolist())
            for batch in work.micro_batches
            for c in range(batch.size_C)
            if bool(batch["of_reference_C"][c]) is theirs
        }

    assert len(drawn(first, True) & drawn(second, True)) >= 7
    assert len(drawn(first, False) & drawn(second, False)) <= 1
    for work in (first, second):
        for batch in work.micro_batches:
            of = batch["of_reference_C"]
            assert (of[batch["chosen_G"]] ^ of[batch["rejected_G"]]).all()
    assert second.metrics["objective/kl"] != 0
    assert {*second.metrics} >= {"curation/wins", "completions/mean_length"}


def test_own_scores_are_not_mixed_with_the_references():
    def theirs_are_worse(groups):
        return Scores([-9.0 * c.of_reference for g in groups for c in g.completions])

    work = next(iter(built("xpo", theirs_are_worse).source))
    assert work.metrics["objective/scores"] == 0
    assert work.metrics["curation/wins"] == 1


def by_hand(draw, score=low_bytes, method="raft", **changes):
    """A source on hand-made parts: what it is given is all it reads."""
    given = {
        "prompts": prompts(4),
        "draw": draw,
        "score": score,
        "curation": resolve("s", {"method": method, "reward": "r"}, "here").curation,
        "arrange": lambda rows, seed: list(rows),
        "complete": lambda batch, groups: batch,
        "on_rollout": lambda index, rollout: None,
        "prompts_per_rollout": 4,
        "completions_per_prompt": 3,
        "rollouts": 2,
        "batch_size": 4,
        "micro_batch_tokens": 64,
        "epochs": 1,
        "seed": 1,
    }
    return Online(**given | changes)


def three_answers(given, seed):
    """The same three to every prompt; the longest was cut before its end."""
    ids = ((9, 2), (9, 9, 2), (9, 9, 9))
    completions = tuple(
        TokenCompletion(i, FinishReason.STOP if i[-1] == 2 else FinishReason.LENGTH) for i in ids
    )
    return [replace(prompt, completions=completions) for prompt in given]


@pytest.mark.parametrize(("penalty", "cut_wins"), [(None, True), (0.5, True), (1.5, False)])
def test_a_penalty_on_cut_completions_makes_them_lose(penalty, cut_wins):
    """By the reward alone the last one wins by 1, and it was cut."""
    rollouts = []
    source = by_hand(
        three_answers,
        scorer(lambda completion, group: float(group.completions.index(completion))),
        missing_eos_penalty=penalty,
        on_rollout=lambda index, rollout: rollouts.append(rollout),
    )
    finished = [b["finished_C"].tolist() for work in source for b in work.micro_batches]
    assert [flag for flags in finished for flag in flags] == [not cut_wins] * 8
    for rollout in rollouts:  # what is kept to be read is the reward's own number
        assert [group.scores for group in rollout.groups] == [[0.0, 1.0, 2.0]] * 4
        assert rollout.metrics["objective/scores"] == 1
        assert rollout.metrics["completions/clipped_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("knob", "few", "many"),
    [("num_generations", 2, 5), ("rollout_batch_size", 4, 8), ("num_rollouts", 1, 3)],
)
def test_more_of_it_draws_more(knob, few, many):
    def drawn(number):
        _, _, rollouts = trained("online_dpo", **{knob: number})
        return sum(len(g.completions) for r in rollouts for g in r.groups)

    assert drawn(few) * many == drawn(many) * few


def test_every_row_comes_once_an_epoch_and_steps_end_where_they_were_told():
    stage = built("simpo", selection="all", num_generations=3, num_rollouts=2, batch_size=5)
    assert stage.source.total_steps == 2 * math.ceil(8 * 3 / 5)
    once = [sum(b.size_G for b in work.micro_batches) for work in stage.source]
    assert max(once) == 5
    assert sum(once) <= 2 * 8 * 3
    twice = built(
        "simpo",
        selection="all",
        num_generations=3,
        num_rollouts=2,
        batch_size=5,
        num_train_epochs=2,
    )
    assert sum(sum(b.size_G for b in w.micro_batches) for w in twice.source) == 2 * sum(once)
    short = built("simpo", max_steps=2, num_rollouts=9)
    assert len(list(short.source)) == short.source.total_steps == 2


def test_kto_lends_completions_across_the_prompts_of_a_rollout():
    stage = built("kto", num_generations=4)
    work = next(iter(stage.source))
    lent = sum(int(batch["mismatched_C"].sum()) for batch in work.micro_batches)
    assert lent == sum(batch.size_G for batch in work.micro_batches)
    alone = next(iter(built("kto", num_generations=4, train=prompts(1)).source))
    assert alone.micro_batches == []  # ties may leave one prompt: the next rollout has others
    with pytest.raises(UsageError, match="rollout_batch_size"):
        built("kto", num_generations=4, rollout_batch_size=1)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            {"method": "dpo", "curation": "verdicts"},
            ["makes unpaired rows", "set curation to pairs"],
        ),
        ({"method": "dpo", "curation": "pair"}, ["did you mean 'pairs'"]),
        ({"method": "dpo", "selecton": "all"}, ["unknown key", "did you mean 'selection'"]),
        ({"method": "dpo", "take": 2}, ["unknown key"]),
        ({"method": "dpo", "kl_coef": 2}, ["unknown key"]),
        ({"method": "dpo", "min_gap": -1}, ["stages.s.min_gap", "greater than or equal to 0"]),
        ({"method": "dpo", "num_generations": 1}, ["set it to 2 or more"]),
        ({"method": "sft", "sync_reference_rollouts": 1}, ["reads no reference"]),
        ({"method": "tr_dpo", "sync_reference_rollouts": 1}, ["moves its reference itself"]),
        ({"method": "bradley_terry"}, ["trains a reward model", "method: preferences"]),
        ({"method": "process_reward"}, ["trains a reward model"]),
        ({"method": "xpo", "curation": "pairs"}, ["draws nothing from the reference"]),
        ({"method": "online_dpo", "reward": None}, ["stages.s.reward"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_loads(raw, words):
    with pytest.raises(UsageError) as caught:
        resolve("s", {"reward": "any", **raw}, "my.yaml")
    for word in ("my.yaml", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("method", ["online_dpo", "xpo", "raft"])
def test_a_method_that_draws_asks_for_its_reward(method):
    with pytest.raises(UsageError, match=r"'stages\.s\.reward' is missing"):
        resolve("s", {"method": method}, "my.yaml")


def test_temperature_zero_is_refused():
    with pytest.raises(UsageError, match="variety"):
        built("online_dpo", temperature=0)


def test_a_curation_can_be_named_and_brings_its_own_keys():
    method = resolve("s", {"method": "kto", "reward": "r", "curation": "pairs"}, "here")
    assert method.knobs["curation"] == "pairs"
    assert method.knobs["selection"] == "best_worst"
    work = next(iter(built("kto", curation="pairs", num_generations=4).source))
    for batch in work.micro_batches:
        own = ~batch["mismatched_C"]
        assert batch["label_C"][own].tolist() == [True, False] * batch.size_G


def test_without_a_reference_there_is_no_drift_to_measure():
    source = by_hand(three_answers, scorer(lambda c, group: float(group.completions.index(c))))
    works = list(source)
    assert len(works) == 2 == source.total_steps
    assert all("objective/kl" not in work.metrics for work in works)


@pytest.mark.parametrize("method", ["nash_md", "vbon"])
def test_policy_gradients_compare_with_an_opponent(method):
    """What is learnt from is the comparison; what the reward gave is told beside it."""
    own, mixed = [], {}
    for opponents in (0, 3):
        rollouts = []
        stage = built(method, rollouts=rollouts, opponents=opponents, num_generations=2)
        work = next(iter(stage.source))
        own.append([c.score for g in rollouts[0].groups for c in g.completions])
        mixed[opponents] = work.metrics
        stage.step(work.micro_batches, work.metrics)
    assert all(0 <= score <= 1 for score in own[0])
    low, high = (-0.5, 0.5) if method == "nash_md" else (math.log(1 / 4), 0.0)
    assert all(low <= score <= high for score in own[1])
    assert min(own[1]) < 0
    assert mixed[3]["rewards/plain/mean"] == pytest.approx(mixed[0]["objective/scores"])
    assert "rewards/opponent/mean" in mixed[3]
    assert mixed[3]["completions/mean_length"] == mixed[0]["completions/mean_length"]


def test_the_opponent_is_the_reference_or_nearer_to_the_policy():
    """Its log-probs, as its sampler gave them, are those of the model it is said to be."""

    def gap_to_reference(mixture):
        met = []

        def watching(groups):
            met.extend(replace(g, completions=g.completions[1:]) for g in groups)
            return low_bytes(groups)

        stage = built("nash_md", watching, opponent_mixture=mixture)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in stage.roles.policy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        next(iter(stage.source))
        assert len(met) == 8
        batch = pack(met)
        return (batch["sampler_logps_N"] - stage.roles.reference_logps(batch)).abs().mean().item()

    gaps = [gap_to_reference(mixture) for mixture in (1.0, 0.6, 0.2)]
    assert gaps[0] < 1e-4
    assert 1e-3 < gaps[1] < gaps[2]
