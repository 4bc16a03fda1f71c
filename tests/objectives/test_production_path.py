"""The tiny language through the production code: packing, attention mask, shift, heads, log-probs.

The networks of table_network.py hold the sheet's tables, so every number has an exact twin that
never saw a padded row. What differs between the two is what this file would find: a token too
many or too few, a neighbour's prompt, padding in a mean.
"""

import itertools
import random
from dataclasses import replace

import pytest
import tiny_language as tiny
import torch
from flat_batches import make_batch, prepare, random_columns
from subjects import SUBJECTS, every_subject, raw_columns, undrawn
from table_network import KINDS, Tables, row_of

from small_groups import random_groups
from truing import exact, objectives
from truing.batch import Outputs
from truing.data.packing import pack
from truing.exact.language import Language
from truing.groups import FinishReason, TokenCompletion, TokenGroup
from truing.models import loading
from truing.models.heads import new_score_head, new_value_head
from truing.models.network import Network
from truing.models.roles import Roles
from truing.ops import segment_sum

TABLES = Tables()
PROMPTS = ((3,), (4, 9), (3, 5, 7), (4,))
SENTENCES = [tuple(token for _, token in sentence) for sentence in tiny.SENTENCES]


def completion(words, **known):
    ended = words[-1:] == (0,)
    return TokenCompletion(words, FinishReason.STOP if ended else FinishReason.LENGTH, **known)


def group(prompt, sentences, **choice):
    return TokenGroup(prompt, tuple(completion(words) for words in sentences), **choice)


def groups_for(subject, seed=0, count=6):
    """Random groups of whole sentences, as many completions as the objective compares."""
    draw = random.Random(seed)
    columns = raw_columns(subject)
    pairs = "chosen_G" in columns
    made = []
    for i in range(count):
        size = 2 if pairs else draw.randint(2, 4)
        sentences = draw.sample(SENTENCES, size)
        choice = {"chosen": i % 2, "rejected": 1 - i % 2} if pairs else {}
        made.append(group(PROMPTS[i % len(PROMPTS)], sentences, **choice))
    return made


def words_N(groups):
    """(kind of prompt, words before, word) of every predicted token."""
    for g in groups:
        for c in g.completions:
            for t, word in enumerate(c.ids):
                yield min(g.prompt_ids[0] - 3, KINDS - 1), c.ids[:t], word


class Twin:
    """The same groups without rows, padding or networks: float64 gathers from the tables."""

    def __init__(self, groups, subject, seed=0):
        tokens = list(words_N(groups))
        before_N = [row_of(kind, before) for kind, before, _ in tokens]
        after_N = torch.tensor([row_of(kind, (*before, word)) for kind, before, word in tokens])
        word_N = [word for *_, word in tokens]
        lengths = [len(c.ids) for g in groups for c in g.completions]
        bare = make_batch(lengths, [i for i, g in enumerate(groups) for _ in g.completions])
        self.logits = TABLES.policy_KSV.reshape(-1, 3).clone().requires_grad_()
        self.values = TABLES.values_KS.flatten().clone().requires_grad_()
        self.rewards = TABLES.rewards_KS.flatten().clone().requires_grad_()
        logps = self.logits.log_softmax(-1)
        reference = TABLES.reference_KSV.reshape(-1, 3).log_softmax(-1)
        said = Outputs(logps_N=logps[before_N, word_N], values_N=self.values[before_N])
        columns = random_columns(bare, said, torch.Generator().manual_seed(seed))
        columns["reference_logps_N"] = reference[before_N, word_N]
        first_G = torch.tensor([0, *(len(g.completions) for g in groups)]).cumsum(0)
        if groups[0].chosen is not None:
            columns["chosen_G"] = first_G[:-1] + torch.tensor([g.chosen for g in groups])
            columns["rejected_G"] = first_G[:-1] + torch.tensor([g.rejected for g in groups])
        last_C = torch.isin(torch.arange(bare.size_C), first_G - 1)
        columns["mismatched_C"] = last_C  # a loader gives every group one
        self.step_N = columns["step_end_S"] - 1  # in make_batch's layout, token n lies at n + 1
        self.columns = {name: columns[name].detach() for name in raw_columns(subject)}
        self.batch = bare.with_columns(**self.columns)
        self.groups = informed(groups, self.batch, self.step_N)
        self.outputs = replace(
            said,
            scores_C=self.rewards[after_N[bare.last_C]],
            scores_S=self.rewards[after_N[self.step_N]],
            collision_N=(2 * logps.detach()[before_N]).logsumexp(-1),
        )

    def judge(self, subject):
        """(mean loss, its gradients), named and laid out as the network's parameters are."""
        ((batch, outputs),) = prepare(subject, [(self.batch, self.outputs)])
        loss = subject(batch, outputs)
        (loss.total / loss.weight).backward()
        gradients = {
            "base.lm_head.weight": None if self.logits.grad is None else self.logits.grad.T,
            "value_head.weight": None if self.values.grad is None else self.values.grad[None],
            "score_head.weight": None if self.rewards.grad is None else self.rewards.grad[None],
        }
        return loss.total.detach() / loss.weight, {
            name: gradient for name, gradient in gradients.items() if gradient is not None
        }


def informed(groups, batch, step_N):
    """The groups, told what the columns say of them, as data readers tell them."""
    names = {"label_C": "label", "scores_C": "score", "mismatched_C": "mismatched"}
    names |= {"margin_G": "margin", "probability_G": "probability"}
    said = {names[name]: v.tolist() for name, v in batch.columns.items() if name in names}
    judged = {}
    if "step_end_S" in batch:
        first_C = (batch.last_C + 1 - batch.lengths_C).tolist()
        for n, label in zip(step_N.tolist(), batch["step_label_S"].tolist(), strict=True):
            c = int(batch.completion_N[n])
            judged[c] = (*judged.get(c, ()), (n - first_C[c], label))
    count, told = itertools.count(), []
    for i, g in enumerate(groups):
        completions = []
        for c in g.completions:
            at = next(count)
            own = {n: said[n][at] for n in ("label", "score", "mismatched") if n in said}
            completions.append(replace(c, steps=judged.get(at, ()), **own))
        own = {name: said[name][i] for name in ("margin", "probability") if name in said}
        told.append(replace(g, completions=tuple(completions), **own))
    return told


HANDED = (
    "sampled_logps_N", "advantages_N", "returns_N", "values_N", "baseline_C", "demonstration_C",
    "of_reference_C",
)  # fmt: skip
"""Columns that rollouts add to a packed batch; all others must come out of packing."""


def packed(groups, handed, order=None):
    """The groups in this order (or all as they lie), packed, with their parts of each column."""
    order = range(len(groups)) if order is None else order
    batch = pack([groups[i] for i in order])
    tokens = [[len(c.ids) for c in g.completions] for g in groups]
    sizes = {"N": [sum(lengths) for lengths in tokens], "C": [len(lengths) for lengths in tokens]}
    parts = {name: v.split(sizes[name[-1]]) for name, v in handed.items()}
    columns = {name: torch.cat([part[i] for i in order]) for name, part in parts.items()}
    return batch.with_columns(
        **{name: v.float() if v.is_floating_point() else v for name, v in columns.items()}
    )


def produced(twin, roles, order=None):
    """The twin's groups as production has them: packed, in float32, the reference computed."""
    batch = packed(twin.groups, {n: v for n, v in twin.columns.items() if n in HANDED}, order)
    if "reference_logps_N" in twin.columns:
        batch = batch.with_columns(reference_logps_N=roles.reference_logps(batch))
    return batch


def judge(subject, batches, roles):
    """(mean loss, its gradients by parameter) of one step through the networks."""
    roles.policy.requires_grad_(True).zero_grad(set_to_none=True)
    parts = [
        (batch, roles.outputs(batch, subject.trains, subject.extra_outputs)) for batch in batches
    ]
    losses = [subject(batch, outputs) for batch, outputs in prepare(subject, parts)]
    mean = sum(loss.total for loss in losses) / sum(loss.weight for loss in losses)
    mean.backward()
    parameters = roles.policy.named_parameters()
    return mean.detach(), {n: p.grad.clone() for n, p in parameters if p.grad is not None}


def same_judgement(left, right, tolerance):
    """Equal loss and gradients, relative to their size where that is above 1."""
    (loss, gradients), (other_loss, other_gradients) = left, right
    torch.testing.assert_close(loss.double(), other_loss.double(), rtol=tolerance, atol=tolerance)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        limit = tolerance * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            gradient.double(), other_gradients[name].double(), rtol=0, atol=limit
        )


@every_subject
def test_the_production_path_gives_the_tables_loss_and_gradient(subject):
    twin, roles = Twin(groups_for(subject), subject), TABLES.roles()
    batch = produced(twin, roles)
    assert set(batch.columns) >= raw_columns(subject)
    same_judgement(twin.judge(subject), judge(subject, [batch], roles), 1e-5)


def everything():
    """Every sentence, as the answers to one prompt of each kind."""
    return [group(PROMPTS[0], SENTENCES), group(PROMPTS[1], SENTENCES)]


def sentence_logps(logps_N, batch):
    return segment_sum(logps_N.detach().double(), batch.completion_N, batch.size_C)[:15]


def golden(policy_KSV=None):
    """The sheet's laws over sentences as production computes them: (policy, reference)."""
    roles = TABLES.roles(policy_KSV)
    batch = pack(everything())
    ours = sentence_logps(roles.outputs(batch, "policy").logps_N, batch)
    return ours, sentence_logps(roles.reference_logps(batch), batch)


def test_sentence_log_probs_are_the_tables():
    ours, reference = golden()
    for seen, table in ((ours, tiny.POLICY), (reference, tiny.REFERENCE)):
        torch.testing.assert_close(seen, tiny.sentence_logps(table), rtol=0, atol=1e-5)
        assert seen.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_sheets_golden_values():
    ours, reference = golden()
    rewards = tiny.REWARDS
    best = exact.optimal_policy(reference, rewards, tiny.BETA)
    best_of_2 = exact.best_of_n_logps(reference, rewards, 2)
    seen = {
        "J": exact.rlhf_objective(ours, reference, rewards, tiny.BETA),
        "KL": exact.kl(ours, reference),
        "forward KL": exact.kl(reference, ours),
        "beta log Z": tiny.BETA * exact.log_partition(reference, rewards, tiny.BETA),
        "KL of the optimum": exact.kl(best, reference),
        "E r of the optimum": exact.expectation(best, rewards),
        "E r of the reference": exact.expectation(reference, rewards),
        "KL of best of 2": exact.best_of_n_kl(reference, rewards, 2),
        "E r of best of 2": exact.expectation(best_of_2, rewards),
    }
    assert {name: value.item() for name, value in seen.items()} == pytest.approx(
        {
            "J": -0.3025601412,
            "KL": 0.7548075912,
            "forward KL": 0.9282072273,
            "beta log Z": 0.5307573708,
            "KL of the optimum": 0.4274104037,
            "E r of the optimum": 0.7444625726,
            "E r of the reference": 0.2291960672,
            "KL of best of 2": 0.1892989329,
            "E r of best of 2": 0.5739826390,
        },
        abs=1e-5,
    )


def with_first_kind(logits_SV):
    """The policy's tables, but these logits after a prompt of the first kind."""
    table = TABLES.policy_KSV.clone()
    table[0, :7] = logits_SV
    return table


POLICIES = {
    "theta": (tiny.POLICY, 0.8323318555),
    "reference": (tiny.REFERENCE, 0.6931471806),
    "optimum": (Language(3, 3).logits_of(tiny.optimum()), 0.6053397342),
}


@pytest.mark.parametrize(("logits", "truth"), POLICIES.values(), ids=POLICIES.keys())
def test_dpos_population_loss_is_the_sheets(logits, truth):
    roles = TABLES.roles(with_first_kind(logits))
    pairs = [(i, j) for i in range(15) for j in range(15)]
    groups = [
        group(PROMPTS[0], [SENTENCES[i], SENTENCES[j]], chosen=0, rejected=1) for i, j in pairs
    ]
    batch = pack(groups)
    batch = batch.with_columns(reference_logps_N=roles.reference_logps(batch))
    dpo = objectives.find("dpo")(beta=tiny.BETA)
    loss_P = dpo.pair_losses(dpo.read(batch, roles.outputs(batch, "policy")))
    weights_P = torch.stack(
        [
            2 * tiny.MU[i] * tiny.MU[j] * torch.sigmoid(tiny.REWARDS[i] - tiny.REWARDS[j])
            for i, j in pairs
        ]
    )
    assert (weights_P * loss_P).sum().item() == pytest.approx(truth, abs=1e-5)


@every_subject
def test_one_group_a_micro_batch_changes_nothing(subject):
    twin, roles = Twin(groups_for(subject), subject), TABLES.roles()
    alone = [produced(twin, roles, [i]) for i in range(len(twin.groups))]
    same_judgement(
        judge(subject, [produced(twin, roles)], roles), judge(subject, alone, roles), 1e-6
    )


@every_subject
def test_the_order_in_which_groups_are_packed_changes_nothing(subject):
    subject = undrawn(subject)
    twin, roles = Twin(groups_for(subject), subject), TABLES.roles()
    there, elsewhere = (produced(twin, roles, order) for order in (None, [4, 0, 5, 2, 1, 3]))
    same_judgement(judge(subject, [there], roles), judge(subject, [elsewhere], roles), 1e-6)


def test_reference_log_probs_may_be_computed_before():
    roles = TABLES.roles()
    groups = [group(PROMPTS[i % 4], [SENTENCES[i], SENTENCES[-i - 1]]) for i in range(7)]
    apart = torch.cat([roles.reference_logps(pack([g])) for g in groups])
    torch.testing.assert_close(roles.reference_logps(pack(groups)), apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sft", "dpo", "simpo", "apo_zero_unpaired"])
def test_the_stop_token_is_part_of_the_loss(name):
    """With the stop token, without it, and where the table makes stopping likelier."""
    subject = objectives.find(name)()
    ended, other = (1, 2, 0), (2, 0)
    choice = {"chosen": 0, "rejected": 1} if "chosen_G" in raw_columns(subject) else {}

    def loss(sentence, roles):
        twin = Twin([group(PROMPTS[0], [sentence, other], **choice)], subject)
        return judge(subject, [produced(twin, roles)], roles)[0]

    plain = TABLES.roles()
    likelier = TABLES.policy_KSV.clone()
    likelier[0, row_of(0, (1, 2)), 0] += 0.5
    assert abs(loss(ended, TABLES.roles(likelier)) - loss(ended, plain)) > 1e-4
    assert loss(ended[:2], TABLES.roles(likelier)) == loss(ended[:2], plain)
    assert abs(loss(ended[:2], plain) - loss(ended, plain)) > 1e-4


def test_the_stop_token_costs_its_own_log_prob():
    sft, roles = objectives.find("sft")(aggregation="sequence_sum"), TABLES.roles()
    ended, cut_short = (
        judge(sft, [pack([group(PROMPTS[0], [words])])], roles)[0] for words in ((1, 2, 0), (1, 2))
    )
    stop = TABLES.policy_KSV[0, row_of(0, (1, 2))].log_softmax(-1)[0]
    assert (ended - cut_short).item() == pytest.approx(-stop.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["sft", "dpo", "bradley_terry", "ppo"])
def test_a_transformer_sees_no_neighbour(name):
    """The same change for a model whose attention is real (two random layers)."""
    subject = SUBJECTS[name]
    model = loading.load_causal("random:llama", torch.float32)
    width = model.config.hidden_size
    policy = Network(
        model,
        score_head=new_score_head(width, seed=0) if subject.trains == "reward" else None,
        value_head=new_value_head(width) if subject.trains == "policy+value" else None,
    )
    roles = Roles(policy)
    groups = random_groups(seed=5, groups=5, completions=2, pairs=True)
    g = torch.Generator().manual_seed(0)
    size = pack(groups).size_N
    handed = {
        column: torch.randn(size, generator=g)
        for column in raw_columns(subject)
        if column[-1] == "N"
    }
    if "sampled_logps_N" in handed:
        handed["sampled_logps_N"] = roles.outputs(pack(groups), "policy").logps_N.detach()
    batch = packed(groups, handed)
    plain = judge(subject, [batch], roles)
    alone = [packed(groups, handed, [i]) for i in range(len(groups))]
    same_judgement(plain, judge(subject, alone, roles), 1e-6)
