"""Objectives that look at the whole step: how it is cut into micro-batches changes nothing.

The policy is a table of log-probs, one number per token of the step, and `source_N` says where in
it a batch's tokens are: so batches can be cut, reordered and prepared, and gradients compared.
"""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid

from truing.batch import Batch, Outputs, combine
from truing.objectives.base import WholeStep
from truing.objectives.mixture import Mixture
from truing.objectives.pairwise.aot import AOT
from truing.objectives.pairwise.bco_pair import BCOPair
from truing.objectives.pairwise.beta_dpo import BetaDPO, draw
from truing.objectives.pairwise.dpo import DPO
from truing.objectives.unpaired.bco import BCO
from truing.objectives.unpaired.kto import KTO

GROUPS = 8
WHOLE = [[0, 1, 2, 3, 4, 5, 6, 7]]
CUTS = [[[0, 1, 2], [3], [4, 5, 6, 7]], [[g] for g in range(GROUPS)]]
SHUFFLED = [[5, 2], [7, 0, 1], [6, 4, 3]]


def mixture(*parts):
    return Mixture(parts=parts)


COUPLED = {
    "kto": KTO(beta=0.3, desirable_weight=1.3),
    "bco": BCO(beta=0.3, undesirable_weight=0.7),
    "bco_pair": BCOPair(beta=0.3),
    "aot": AOT(beta=0.3),
    "aot_unpaired": AOT(beta=0.3, pairing="unpaired"),
    "beta_dpo": BetaDPO(beta=0.3, keep_ratio=0.6),
    "mixture": Mixture(),
    "mixture of coupled": mixture(
        {"method": "beta_dpo", "beta": 0.3, "keep_ratio": 0.6},
        {"method": "bco_pair", "weight": 0.5, "beta": 0.2},
        {"method": "aot_unpaired", "weight": 2.0, "beta": 0.4},
        {"method": "sft", "weight": 0.3, "aggregation": "sequence"},
    ),
    "mixture of verdicts": mixture(
        {"method": "kto", "beta": 0.3},
        {"method": "dft", "weight": 0.3},
    ),
}
coupled = pytest.mark.parametrize("objective", COUPLED.values(), ids=COUPLED)


class Table:
    """Eight groups of two completions, a policy and a reference over their tokens."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 5, (2 * GROUPS,), generator=g)
        n = int(self.lengths.sum())
        self.rows = torch.arange(n).split(self.lengths.tolist())
        self.logps_N = (-3 * torch.rand(n, generator=g, dtype=torch.float64)).requires_grad_()
        self.reference_N = self.logps_N.detach() + torch.randn(n, generator=g).double()
        self.first_is_chosen = torch.rand(GROUPS, generator=g) < 0.5
        self.label = torch.rand(2 * GROUPS, generator=g) < 0.5
        self.mismatched = torch.arange(2 * GROUPS) % 2 == 1
        # so that the mean log-ratio of mismatched completions is positive
        for row in torch.nonzero(self.mismatched).flatten():
            self.reference_N[self.rows[row]] -= 1.0

    def pack(self, groups):
        """These groups as one batch, with all columns anyone here needs."""
        completions = torch.tensor([c for g in groups for c in (2 * g, 2 * g + 1)])
        source_N = torch.cat([self.rows[c] for c in completions])
        blank = torch.zeros(1, 1, dtype=torch.long)
        swap = (~self.first_is_chosen[groups]).long()
        first = 2 * torch.arange(len(groups))
        batch = Batch(
            *[blank] * 4,
            source_N=source_N,
            target_N=source_N,
            completion_N=torch.arange(len(completions)).repeat_interleave(
                self.lengths[completions]
            ),
            group_C=torch.arange(len(groups)).repeat_interleave(2),
        )
        return batch.with_columns(
            chosen_G=first + swap,
            rejected_G=first + 1 - swap,
            label_C=self.label[completions],
            mismatched_C=self.mismatched[completions],
            reference_logps_N=self.reference_N[source_N],
        )

    def compute(self, batch):
        return Outputs(logps_N=self.logps_N[batch.source_N])

    def prepare(self, objective, cut, carried=None, number=0):
        @torch.no_grad()
        def compute(batch):
            return self.compute(batch)

        batches = [self.pack(groups) for groups in cut]
        carried = {} if carried is None else carried
        return objective.prepare(WholeStep(batches, compute, carried, number))

    def step(self, objective, cut, carried=None, number=0):
        """(mean loss, its gradient, metrics) of one optimizer step."""
        prepared = self.prepare(objective, cut, carried, number)
        losses = [objective(batch, self.compute(batch)) for batch in prepared]
        mean = sum(loss.total for loss in losses) / sum(loss.weight for loss in losses)
        (gradient,) = torch.autograd.grad(mean, self.logps_N)
        return mean.item(), gradient, combine(loss.metrics for loss in losses)

    def sums(self, values_N):
        """Per completion, in plain Python order. Shape [2·GROUPS]."""
        return torch.stack([values_N[row].sum() for row in self.rows])

    @property
    def ratios(self):
        return self.sums(self.logps_N - self.reference_N)

    def sides(self, values_C):
        """(chosen, rejected) of every group."""
        first, second = values_C[0::2], values_C[1::2]
        swap = ~self.first_is_chosen
        return torch.where(swap, second, first), torch.where(swap, first, second)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-10, atol=1e-12)


def plain(table, loss):
    """(loss, its gradient) of an ordinary autograd expression over the unsplit step."""
    (gradient,) = torch.autograd.grad(loss, table.logps_N)
    return loss.item(), gradient


@coupled
@pytest.mark.parametrize("cut", CUTS, ids=["three parts", "single groups"])
def test_micro_batches_change_nothing(objective, cut):
    at_once, in_parts = {}, {}
    for number, seed in enumerate((1, 2)):
        table = Table(seed)
        whole = table.step(objective, WHOLE, at_once, number)
        parts = table.step(objective, cut, in_parts, number)
        assert_same(parts, whole)
        assert parts[2] == pytest.approx(whole[2], rel=1e-5)
    assert at_once.keys() == in_parts.keys()
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value)


@coupled
def test_a_look_at_one_micro_batch_alone_would_change_the_loss(objective):
    """Otherwise the test above proves nothing."""
    table = Table(1)
    alone = [table.prepare(objective, [groups])[0] for groups in CUTS[0]]
    losses = [objective(batch, table.compute(batch)) for batch in alone]
    mean = sum(loss.total for loss in losses) / sum(loss.weight for loss in losses)
    assert abs(mean.item() - table.step(objective, WHOLE)[0]) > 1e-5


@pytest.mark.parametrize(
    "objective",
    [COUPLED[name] for name in COUPLED if "beta" not in name and "coupled" not in name],
    ids=[name for name in COUPLED if "beta" not in name and "coupled" not in name],
)
def test_the_order_of_groups_changes_nothing(objective):
    table = Table(3)
    assert_same(table.step(objective, SHUFFLED), table.step(objective, WHOLE))


@coupled
def test_it_prepares_what_it_says_and_leaves_no_gradient(objective):
    table = Table()
    before, after = table.pack([0, 1]), table.prepare(objective, [[0, 1]])[0]
    assert after.columns.keys() - before.columns.keys() == objective.prepared
    assert objective.prepared <= objective.needs
    assert not any(values.requires_grad for values in after.columns.values())


@coupled
def test_whoever_copied_what_is_carried_keeps_the_old(objective):
    """Held-out measurement prepares with a copy of the dictionary: the run must not notice."""
    carried = {}
    Table(1).step(objective, WHOLE, carried)
    values = {name: value.clone() for name, value in carried.items()}
    Table(2).step(objective, WHOLE, dict(carried), number=1)
    assert carried.keys() == values.keys()
    assert all(torch.equal(carried[name], value) for name, value in values.items())


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("cut", [WHOLE, *CUTS])
def test_aot_is_an_ordinary_sort_of_the_unsplit_step(seed, cut):
    table, beta = Table(seed), 0.3
    chosen, rejected = table.sides(table.sums(table.logps_N))
    reference = table.sides(table.sums(table.reference_N))
    upper, lower = (chosen - rejected).sort().values, (reference[0] - reference[1]).sort().values
    paired = plain(table, -logsigmoid(beta * (upper - lower)).mean())
    assert_same(table.step(AOT(beta=beta), cut), paired)

    won, lost = table.sides(table.ratios)
    sorted_gap = won.sort().values - lost.sort().values
    unpaired = plain(table, -logsigmoid(beta * sorted_gap).mean())
    assert_same(table.step(AOT(beta=beta, pairing="unpaired"), cut), unpaired)
    assert abs(paired[0] - unpaired[0]) > 1e-3


def test_aot_of_one_pair_is_dpo():
    table = Table(1)
    for pairing in ("paired", "unpaired"):
        one = table.step(AOT(beta=0.3, pairing=pairing), [[4]])
        assert_same(one, table.step(DPO(beta=0.3), [[4]]))


@pytest.mark.parametrize("cut", [WHOLE, *CUTS])
def test_kto_judges_from_the_drift_of_all_mismatched_completions(cut):
    table, beta, weights = Table(1), 0.3, (1.3, 0.6)
    ratio = table.ratios
    baseline = ratio[table.mismatched].mean().item()
    assert baseline > 0.5
    loss, count = 0.0, 0
    for c in range(2 * GROUPS):
        if table.mismatched[c]:
            continue
        sign, weight = (1, weights[0]) if table.label[c] else (-1, weights[1])
        loss = loss + weight * (1 - torch.sigmoid(sign * beta * (ratio[c] - baseline)))
        count += 1
    kto = KTO(beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1])
    found = table.step(kto, cut)
    assert_same(found, plain(table, loss / count))
    assert found[2]["kl"] == pytest.approx(baseline)
    unread = torch.cat([table.rows[c] for c in range(2 * GROUPS) if table.mismatched[c]])
    assert not found[1][unread].any()


def test_kto_never_judges_from_below_the_reference():
    table = Table(1)
    table.reference_N = table.logps_N.detach() + 1.0
    assert table.prepare(KTO(), WHOLE)[0]["kl_baseline"] == 0
    table.mismatched[:] = False
    assert table.prepare(KTO(), WHOLE)[0]["kl_baseline"] == 0


@pytest.mark.parametrize("objective", [BCO(beta=0.3), BCOPair(beta=0.3)], ids=["bco", "bco_pair"])
def test_bco_shifts_by_the_mean_of_every_reward_so_far(objective):
    carried, seen = {}, []
    for number, cut in enumerate(([[0, 1], [2]], [[3, 4, 5, 6, 7]], [[0], [1, 2, 3]])):
        table = Table(number)
        rewards = 0.3 * table.ratios
        members = [c for groups in cut for g in groups for c in (2 * g, 2 * g + 1)]
        seen += rewards[members].tolist()
        shift = math.fsum(seen) / len(seen)
        good = table.label if isinstance(objective, BCO) else None
        if good is None:
            chosen = 2 * torch.arange(GROUPS) + (~table.first_is_chosen).long()
            good = torch.zeros(2 * GROUPS, dtype=torch.bool)
            good[chosen] = True
        signs = torch.where(good, 1.0, -1.0)
        units = len(members) if isinstance(objective, BCO) else len(members) / 2
        loss = -logsigmoid(signs * (rewards - shift))[members].sum() / units
        found = table.step(objective, cut, carried, number)
        assert_same(found, plain(table, loss))
        assert found[2]["rewards/shift"] == pytest.approx(shift, rel=1e-6)
    assert carried["count"] == len(seen) == 2 * (3 + 5 + 4)


def test_beta_dpo_by_hand_over_three_steps():
    objective = BetaDPO(beta=0.3, sensitivity=0.5, keep_ratio=0.6, momentum=0.8)
    carried, usual, width, betas = {}, None, None, []
    for number in range(3):
        table = Table(number)
        won, lost = table.sides(table.ratios)
        gaps = (won - lost).tolist()
        mean = sum(gaps) / GROUPS
        deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (GROUPS - 1))
        usual = mean if usual is None else 0.8 * usual + 0.2 * mean
        width = deviation if width is None else 0.8 * width + 0.2 * deviation
        prepared = table.prepare(objective, CUTS[0], dict(carried), number)
        kept = torch.cat([batch["kept_G"] for batch in prepared])
        assert kept.sum() == 5  # of 8, at 0.6
        clearer = sum(gap for gap, keep in zip(gaps, kept, strict=True) if keep) / 5 - usual
        beta = max(1e-3, 0.3 * (1 + 0.5 * clearer))
        found = table.step(objective, CUTS[0], carried, number)
        assert_same(found, plain(table, -logsigmoid(beta * (won - lost))[kept].mean()))
        assert found[2]["beta"] == pytest.approx(beta, rel=1e-6)
        assert carried["gap_mean"].item() == pytest.approx(usual, rel=1e-12)
        assert carried["gap_std"].item() == pytest.approx(width, rel=1e-12)
        betas.append(beta)
    assert len(set(betas)) == 3


def test_beta_dpo_leaves_out_the_odd_pair():
    table = Table(1)
    odd = 3
    table.reference_N[table.rows[2 * odd]] += 50.0
    kept = [table.prepare(BetaDPO(), WHOLE, {}, step)[0]["kept_G"] for step in range(50)]
    assert sum(bool(kept_G[odd]) for kept_G in kept) <= 10
    assert all(kept_G.sum() == 6 for kept_G in kept)
    # it is left out for being odd, not for being the fourth
    usual = [Table(1).prepare(BetaDPO(), WHOLE, {}, step)[0]["kept_G"] for step in range(50)]
    assert sum(bool(kept_G[odd]) for kept_G in usual) >= 30


def test_beta_dpo_has_a_floor():
    usual = {"gap_mean": torch.tensor(1e6), "gap_std": torch.tensor(1.0)}
    (batch,) = Table(1).prepare(BetaDPO(), WHOLE, usual)
    assert batch["step_beta"].item() == 1e-3


def test_beta_dpo_of_one_pair_is_dpo():
    table = Table(1)
    found = table.step(BetaDPO(beta=0.3), [[4]])
    assert_same(found, table.step(DPO(beta=0.3), [[4]]))


def test_the_draw_is_seeded_by_the_step_and_has_the_odds_of_its_weights():
    log_weights = torch.tensor([math.log(3.0), 0.0])
    first = [bool(draw(log_weights, 1, seed)[0]) for seed in range(2000)]
    assert sum(first) / 2000 == pytest.approx(0.75, abs=0.04)  # four standard errors
    even = torch.zeros(100)
    assert torch.equal(draw(even, 40, 7), draw(even, 40, 7))
    assert not torch.equal(draw(even, 40, 7), draw(even, 40, 8))
    assert draw(even, 40, 7).sum() == 40


@pytest.mark.parametrize("cut", [WHOLE, *CUTS])
def test_a_mixture_adds_means_each_over_its_own_units(cut):
    table = Table(1)
    won, lost = table.sides(table.ratios)
    chosen = 2 * torch.arange(GROUPS) + (~table.first_is_chosen).long()
    nll = -torch.cat([table.logps_N[table.rows[c]] for c in chosen]).mean()
    dpo = -logsigmoid(0.3 * (won - lost)).mean()
    expected = plain(table, 1.5 * dpo + 0.25 * nll)
    parts = (
        {"method": "dpo", "weight": 1.5, "beta": 0.3},
        {"method": "sft", "weight": 0.25},
    )
    for order in (parts, parts[::-1]):
        found = table.step(mixture(*order), cut)
        assert_same(found, expected)
        assert found[2]["loss"] == pytest.approx(expected[0], rel=1e-6)
        assert found[2]["sft/loss"] == pytest.approx(nll.item(), rel=1e-6)
        assert found[2]["dpo/rewards/margins"] == pytest.approx(
            0.3 * (won - lost).mean().item(), rel=1e-5
        )


def test_beside_verdicts_supervised_parts_learn_what_is_desirable():
    table = Table(1)
    kto = table.step(KTO(beta=0.3), CUTS[0])
    good = [c for c in range(2 * GROUPS) if table.label[c] and not table.mismatched[c]]
    assert 0 < len(good) < GROUPS
    nll = -torch.cat([table.logps_N[table.rows[c]] for c in good]).mean()
    both = mixture({"method": "kto", "beta": 0.3}, {"method": "sft", "weight": 2})
    found = table.step(both, CUTS[0])
    assert_same(found, (kto[0] + 2 * nll.item(), kto[1] + 2 * plain(table, nll)[1]))


def test_a_step_without_anything_to_imitate_still_learns_the_other_part():
    table = Table(1)
    table.label = torch.zeros_like(table.label)
    kto = table.step(KTO(beta=0.3), CUTS[0])
    for order in (({"method": "sft"}, {"method": "kto", "beta": 0.3}),):
        assert_same(table.step(mixture(*order), CUTS[0]), kto)


def test_parts_carry_side_by_side_as_they_would_alone():
    parts = {"method": "bco_pair", "beta": 0.3}, {"method": "beta_dpo", "weight": 2}
    together, shifts, gaps = {}, {}, {}
    for number in range(2):
        table = Table(number)
        found = table.step(mixture(*parts), CUTS[0], together, number)
        one = table.step(BCOPair(beta=0.3), WHOLE, shifts, number)
        two = table.step(BetaDPO(), WHOLE, gaps, number)
        assert_same(found, (one[0] + 2 * two[0], one[1] + 2 * two[1]))
    alone = {f"0.{k}": v for k, v in shifts.items()} | {f"1.{k}": v for k, v in gaps.items()}
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value)


def test_a_mixture_declares_what_its_parts_do():
    assert Mixture.trains == "policy"
    assert Mixture.unit == "groups"
    assert Mixture.needs == DPO.needs | {"part_weights"}
    assert Mixture.step_zero["dpo/loss"] == DPO.step_zero["loss"]
    other = mixture({"method": "bradley_terry", "margin_coef": 1}, {"method": "pick_best"})
    assert other.trains == "reward"
    assert other.needs == {"chosen_G", "rejected_G", "scores_C", "part_weights"}
    assert other.required == other.needs | {"margin_G"}
    assert other.built[1].objective.form == "best"
    assert mixture({"method": "wpo"}, {"method": "sft"}).extra_outputs == {"collision_N"}
    assert mixture({"method": "sft"}, {"method": "dft"}).needs == {"part_weights"}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"method": "dpo"}], "at least 2"),
        ([{"method": "dpo"}, {"method": "sfd"}], "unknown name 'sfd'"),
        ([{"method": "dpo"}, {"weight": 1}], "method"),
        ([{"method": "dpo", "betta": 0.1}, {"method": "sft"}], "'betta'"),
        ([{"method": "dpo", "beta": -1}, {"method": "sft"}], "'beta'"),
        ([{"method": "dpo", "weight": 0}, {"method": "sft"}], "'weight'"),
        ([{"method": "dpo", "weight": -1}, {"method": "sft"}], "'weight'"),
        ([{"method": "dpo", "weight": math.inf}, {"method": "sft"}], "'weight'"),
        ([{"method": "dpo", "weight": math.nan}, {"method": "sft"}], "'weight'"),
        ([{"method": "dpo"}, {"method": "bradley_terry"}], "train the same"),
        ([{"method": "dpo"}, {"method": "ppo"}], "own samples"),
        ([{"method": "dpo"}, {"method": "tr_dpo"}], "moves the reference"),
        ([{"method": "dpo"}, {"method": "dpo", "beta": 1}], "twice"),
        ([{"method": "aot"}, {"method": "aot_unpaired"}], "prepare"),
        ([{"method": "dpo"}, {"method": "mixture"}], "mixture itself"),
        ([{"method": "infonca"}, {"method": "sft"}], "which completions"),
        ([{"method": "kto"}, {"method": "bco"}], "bco would learn the answers lent to kto"),
    ],
    ids=str,
)
def test_parts_that_cannot_be_mixed_are_refused(parts, said):
    with pytest.raises(ValidationError, match=said):
        Mixture(parts=parts)


def test_step_zero_of_what_is_prepared_holds_at_the_reference():
    for objective in COUPLED.values():
        table = Table(1)
        table.reference_N = table.logps_N.detach().clone()
        _, gradient, metrics = table.step(objective, CUTS[0])
        assert gradient.isfinite().all()
        assert gradient.any()
        for name, (value, tolerance) in objective.step_zero.items():
            assert metrics[name] == pytest.approx(value, abs=max(tolerance, 1e-12)), name
