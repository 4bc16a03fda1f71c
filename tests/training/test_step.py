"""The step: one division, exact accumulation, float32 masters, refusal before a bad update."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from small_groups import random_groups, scorer
from truing.batch import Loss, Metric, mean_of
from truing.config import Lora, Model
from truing.data.packing import pack
from truing.errors import NumericsError, UsageError
from truing.objectives import find
from truing.objectives.supervised.sft import SFT
from truing.training.build import build
from truing.training.contract import check_gradients, check_numbers
from truing.training.inputs import Inputs
from truing.training.method import resolve
from truing.training.optim import MasterWeights, make_optimizer, make_schedule

STAGES = {
    "sft": {},
    "bradley_terry": {},
    "dpo": {},
    "tr_dpo": {},
    "ppo": {
        "reward": "character_share",
        "num_rollouts": 2,
        "rollout_batch_size": 8,
        "max_completion_length": 6,
    },
}


def built(method, lora=None, dtype="float32", micro_batch_tokens=2048, **knobs):
    raw = {"method": method, "batch_size": 8, "learning_rate": 1e-2, **STAGES[method], **knobs}
    stage = resolve(method, {**raw, "micro_batch_tokens": micro_batch_tokens}, "test")
    pairs = random_groups(1, 16, 2, pairs=True)
    if method == "sft":
        pairs = random_groups(1, 16, 1)

    @scorer
    def count(completion, group):
        return float(sum(i < 100 for i in completion.ids))

    return build(
        stage,
        Inputs(
            source="random:llama",
            revision=None,
            model=Model(path="random:llama", lora=lora, dtype=dtype),
            stop_id=2,
            train=pairs if method != "ppo" else random_groups(1, 16, 0),
            heldout=pairs,
            demonstrations=[],
            reward_run=None,
            shares_trunk=False,
            reward=count,
            on_rollout=lambda index, rollout: None,
            seed=3,
            where=method,
        ),
    )


LORAS = {"full": None, "lora": Lora(rank=4), "last": Lora(rank=4, last_layers=1)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("method", STAGES)
def test_every_method_keeps_the_step_zero_contract_and_learns(method, lora, dtype):
    """Value at the start, a gradient everywhere, and after a step the weights have moved."""
    stage = built(method, LORAS[lora], dtype)
    before = {n: p.detach().clone() for n, p in stage.step.masters.masters.items()}
    frozen = {
        n: p.detach().clone()
        for n, p in stage.roles.policy.named_parameters()
        if not p.requires_grad
    }
    work = list(stage.source)
    for item in work:
        stage.step(item.micro_batches, item.metrics)
    assert stage.step.taken == len(work) == stage.source.total_steps
    for metric, (value, tolerance) in stage.step.objective.step_zero.items():
        assert abs(stage.step.first_metrics[metric] - value) <= tolerance
    moved = [n for n, p in stage.step.masters.masters.items() if not torch.equal(p, before[n])]
    # at the first step with a rate, LoRA moves its B only: A has no gradient while B is 0
    assert len(moved) >= len(before) / 2
    for name, parameter in stage.roles.policy.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("method", STAGES)
def test_adapters_begin_by_the_seed_and_not_by_chance(method):
    """Else no two runs of one recipe are the same, and no number can be had again."""
    began = []
    for chance in (1, 2):
        torch.manual_seed(chance)
        before = torch.get_rng_state()
        masters = built(method, LORAS["lora"]).step.masters.masters
        assert torch.equal(torch.get_rng_state(), before)
        began.append({name: master.detach().clone() for name, master in masters.items()})
    assert any(".lora_A." in name and weight.std() > 0 for name, weight in began[0].items())
    for name, weight in began[0].items():
        assert torch.equal(weight, began[1][name]), name


def test_copies_in_memory_are_what_the_roles_need():
    assert built("sft").roles.copies == 1
    assert built("dpo").roles.copies == 2
    assert built("dpo", LORAS["lora"]).roles.copies == 1
    assert built("ppo", LORAS["lora"]).roles.copies == 1


@pytest.mark.parametrize("method", ["sft", "bradley_terry", "dpo"])
def test_micro_batch_size_does_not_change_the_update(method):
    """Sums are divided once, so three micro-batches give the step of one."""
    after = []
    for budget in (10_000, 40):
        stage = built(method, dtype="float32", micro_batch_tokens=budget)
        work = next(iter(stage.source))
        assert (len(work.micro_batches) > 1) is (budget == 40)
        metrics = stage.step(work.micro_batches, {})
        work = next(iter(stage.source))
        metrics = stage.step(work.micro_batches, {})  # the first has learning rate 0 (warm-up)
        after.append((metrics, dict(stage.step.masters.masters)))
    (whole, weights), (split, split_weights) = after
    assert whole["loss"] == pytest.approx(split["loss"], rel=1e-5)
    assert whole["grad_norm"] == pytest.approx(split["grad_norm"], rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, split_weights[name], rtol=1e-3, atol=1e-4)


def test_small_updates_survive_bfloat16():
    """1e-5 on a weight of 1 is lost in bfloat16 and kept by the master."""
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    masters = MasterWeights({"w": weight})
    optimizer = make_optimizer(masters, learning_rate=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        masters.publish()
    assert masters.masters["w"].dtype == torch.float32
    assert masters.masters["w"].mean().item() == pytest.approx(0.99, abs=1e-4)
    assert weight.float().mean().item() == pytest.approx(0.99, abs=4e-3)


def test_gradients_of_micro_batches_add_up_in_float32():
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    masters = MasterWeights({"w": weight})
    for value in (256.0, *[1.0] * 8):  # in bfloat16 256 + 1 is 256
        weight.grad = torch.full_like(weight, value)
        masters.collect()
    assert masters.masters["w"].grad.item() == 264.0


def test_a_non_finite_loss_stops_before_the_update():
    stage = built("sft")
    before = {n: p.detach().clone() for n, p in stage.step.masters.masters.items()}

    class Broken(SFT):
        def __call__(self, batch, outputs):
            loss = outputs.logps_N.sum() * 1.0
            return Loss(loss, 1.0, {"loss": Metric(torch.tensor(float("nan")), 1.0)})

    stage.step.objective = Broken()
    stage.step.before_first_update = lambda metrics, batches: None
    with pytest.raises(NumericsError, match="loss is nan"):
        stage.step(next(iter(stage.source)).micro_batches, {})
    for name, parameter in stage.step.masters.masters.items():
        assert torch.equal(parameter, before[name])


def test_contract_names_what_is_wrong():
    with pytest.raises(NumericsError, match=r"val/ratio is 1\.01 .* must be 1 exactly"):
        check_numbers({"val/ratio": (1.0, 0.0)}, {"val/ratio": 1.01}, "ppo")
    check_numbers({"loss": (0.6931472, 1e-5)}, {"loss": 0.693148}, "dpo")
    layer = nn.Linear(2, 2)
    with pytest.raises(NumericsError, match="get no gradient"):
        check_gradients({"w": None}, [], "x")
    with pytest.raises(NumericsError, match="is not finite"):
        check_gradients({"w": torch.tensor([float("inf")])}, [], "x")
    with pytest.raises(NumericsError, match="every gradient is zero"):
        check_gradients({"w": torch.zeros(2)}, [], "x")
    layer.weight.grad = torch.ones(2, 2)
    layer.weight.requires_grad_(False)
    with pytest.raises(NumericsError, match="frozen tensor weight got a gradient"):
        check_gradients({"w": torch.ones(2)}, [layer], "x")


def test_a_wrong_reference_is_refused_before_the_first_update():
    stage = built("dpo")
    with torch.no_grad():
        for parameter in stage.roles.reference_copy.parameters():
            parameter.mul_(1.5)
    with pytest.raises(NumericsError, match="before the first update"):
        stage.step(next(iter(stage.source)).micro_batches, {})


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("learning_rate", 3e-2),
        ("batch_size", 4),
        ("max_grad_norm", 1e-3),
        ("weight_decay", 0.5),
        ("warmup_ratio", 1.0),
        ("lr_scheduler_type", "constant"),
        ("num_train_epochs", 2),
        ("max_steps", 1),
    ],
)
def test_every_training_knob_changes_the_result(knob, value):
    def weights(**knobs):
        stage = (
            built("sft", warmup_ratio=0.0, **knobs)
            if knob != "warmup_ratio"
            else built("sft", **{"warmup_ratio": 0.0, **knobs})
        )
        for work in stage.source:
            stage.step(work.micro_batches, {})
        return next(iter(stage.step.masters.masters.values())).detach().clone()

    assert not torch.equal(weights(), weights(**{knob: value}))


def test_schedule_rises_and_falls():
    rates = {}
    for name in ("linear", "cosine", "constant"):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make_schedule(optimizer, name, total_steps=10, warmup_ratio=0.15)
        rates[name] = []
        for _ in range(10):
            rates[name].append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    assert rates["linear"][:3] == [0.0, 0.5, 1.0]
    assert rates["linear"][-1] == pytest.approx(1 / 8)
    assert rates["constant"][2:] == [1.0] * 8
    assert rates["cosine"][6] == pytest.approx(0.5)


def test_lora_last_layers_is_bounded_by_the_model():
    with pytest.raises(UsageError, match="the model has 2 layers"):
        built("sft", Lora(last_layers=3))
    stage = built("sft", LORAS["last"])
    assert all(".layers.1." in name for name in stage.step.masters.masters)


def test_temperature_zero_cannot_learn():
    with pytest.raises(UsageError, match="variety"):
        built("ppo", temperature=0)


def test_objective_and_metric_helpers_agree_with_plain_means():
    objective = find("sft")()
    batch = pack(random_groups(1, 3, 1))
    from truing.batch import Outputs, combine

    logps_N = torch.linspace(-3, -1, batch.size_N)
    loss = objective(batch, Outputs(logps_N=logps_N))
    assert combine([loss.metrics])["loss"] == pytest.approx(-logps_N.mean().item(), rel=1e-6)
    assert mean_of(torch.tensor([1.0, 3.0])) == Metric(torch.tensor(4.0), 2.0)
