"""Preference learning on own samples, from the papers: XPO, and online DPO's first gradient."""

from __future__ import annotations

import pytest
import tiny_language as tiny
import torch
from points import PAIRS_A, PAIRS_B, agree, over_pairs
from scalar import log_sigmoid
from table_network import FIRST_PROMPT_ID, TableModel, Tables

from truing.data.packing import pack
from truing.groups import TokenCompletion, TokenGroup
from truing.models.network import Network
from truing.models.roles import Roles
from truing.objectives.pairwise.dpo import DPO
from truing.objectives.pairwise.xpo import XPO
from truing.rollouts.curation.pairs import Pairs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("theirs", [0, 1], ids=["it won", "it lost"])
@pytest.mark.parametrize("point", [PAIRS_A, PAIRS_B], ids=["A", "B"])
@pytest.mark.parametrize(("beta", "alpha"), [(0.1, 1e-5), (0.5, 0.2), (2.0, 0.0)])
def test_xpo_is_dpo_and_a_push_off_the_references_sample(beta, alpha, point, theirs, dtype):
    """Algorithm 1 minimises −log σ(β Δρ) + α log π(ỹ) with ỹ from the reference."""
    columns = point.columns["chosen_G"], point.columns["rejected_G"]
    flagged = point.with_columns(
        of_reference_C=[i in columns[theirs] for i in range(len(point.policy))]
    )

    def pair(chosen, rejected):
        sample = (chosen, rejected)[theirs]
        return -log_sigmoid(beta * (chosen.rho - rejected.rho)) + alpha * sample.logp

    agree(XPO(beta=beta, alpha=alpha), flagged, over_pairs(flagged, pair), len(columns[0]), dtype)


def test_the_expected_first_step_of_online_dpo_climbs_the_win_rate():
    """O20: with both completions from π = π_ref the gradient is −2β E_π[(P(y ≻ π) − ½) ∇log π(y)].

    All 225 pairs of the language's sentences go through curation, packing and networks; what is
    summed here is only their probability.
    """
    beta, kind = 0.3, 1
    tables = Tables()
    policy = Network(TableModel(tables.policy_KSV))
    reference = Network(TableModel(tables.policy_KSV))
    roles = Roles(policy, reference_copy=reference)
    words = [tuple(token for _, token in sentence) for sentence in tiny.SENTENCES]
    scores = [round(float(r), 1) for r in tiny.REWARDS]  # some are equal
    assert len(set(scores)) < len(scores)
    groups = [
        TokenGroup(
            (FIRST_PROMPT_ID + kind,),
            (
                TokenCompletion(words[i], score=scores[i]),
                TokenCompletion(words[j], score=scores[j]),
            ),
            where=f"{i} {j}",
        )
        for i in range(15)
        for j in range(15)
    ]
    rows, _ = Pairs()(groups, seed=0)
    logits_SV = tables.policy_KSV[kind, :7].clone().requires_grad_()
    logps = tiny.sentence_logps(logits_SV)
    p = logps.detach().exp()
    batch = pack(rows)
    batch = batch.with_columns(reference_logps_N=roles.reference_logps(batch))
    outputs = roles.outputs(batch, "policy")
    objective = DPO(beta=beta)
    loss_P = objective.pair_losses(objective.read(batch, outputs))
    torch.testing.assert_close(loss_P, torch.full_like(loss_P, 0.6931472), rtol=0, atol=1e-6)
    drawn_P = torch.stack([p[int(i)] * p[int(j)] for i, j in (row.where.split() for row in rows)])
    policy.vocabulary_weight.requires_grad_()
    outputs = roles.outputs(batch, "policy")
    loss_P = objective.pair_losses(objective.read(batch, outputs))
    (found,) = torch.autograd.grad((drawn_P.float() * loss_P).sum(), policy.vocabulary_weight)

    s = torch.tensor(scores, dtype=torch.float64)
    beats = (s[:, None] > s).double() + 0.5 * (s[:, None] == s).double()
    wins = beats @ p
    (truth_SV,) = torch.autograd.grad((-2 * beta * p * (wins - 0.5) * logps).sum(), logits_SV)
    assert truth_SV.abs().max() > 0.01
    found_SV = found.T.view(2, -1, 3)[kind, :7].double()
    torch.testing.assert_close(found_SV, truth_SV, rtol=0, atol=1e-6)
