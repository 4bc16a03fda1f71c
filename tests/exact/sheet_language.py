"""The algorithm sheet's tiny language, and slow second opinions written without our tensors."""

from __future__ import annotations

import itertools
import math

import torch

from truing.exact import Language

LANGUAGE = Language(vocabulary=3, max_length=3)
BETA = 0.5
_GRID = torch.arange(21, dtype=torch.float64).view(7, 3)
REFERENCE, POLICY, OTHER = _GRID.sin(), _GRID.cos(), (2 * _GRID + 1).sin()
REWARDS = (2.0 * torch.arange(15, dtype=torch.float64)).sin()
TIED_REWARDS = (REWARDS * 2).round() / 2
GOLD = (3.0 * torch.arange(15, dtype=torch.float64)).cos()
MU = 1.0 + torch.arange(15, dtype=torch.float64) % 4
MU /= MU.sum()


def intransitive_preferences():
    """A coin for every pair that no reward explains."""
    i = torch.arange(15, dtype=torch.float64)
    above = (0.5 + 0.4 * (3 * i[:, None] + 5 * i).sin()).triu(1)
    return above + (1 - above).T.tril(-1) + torch.diag(torch.full((15,), 0.5).double())


def sentences_by_cutting(vocabulary, length, stop):
    """Every string over the vocabulary, cut after its first stop, without repeats, sorted."""
    strings = itertools.product(range(vocabulary), repeat=length)
    return sorted({s[: s.index(stop) + 1] if stop in s else s for s in strings})


def probability(sentence, logits, contexts):
    """π(y) by multiplying softmaxes, in plain floats."""
    product = 1.0
    for t, token in enumerate(sentence):
        row = [math.exp(z) for z in logits[contexts.index(sentence[:t])].tolist()]
        product *= row[token] / sum(row)
    return product


def objective_by_hand(logits, reference, rewards, beta):
    """J of two tables, in plain floats."""
    sentences = sentences_by_cutting(3, 3, 0)
    contexts = sorted({s[:t] for s in sentences for t in range(len(s))})
    total = 0.0
    for sentence, reward in zip(sentences, rewards.tolist(), strict=True):
        p = probability(sentence, logits, contexts)
        q = probability(sentence, reference, contexts)
        total += p * (reward - beta * math.log(p / q))
    return total


def best_of_n_by_drawing(probs, rewards, n):
    """Every way to draw n sentences; the best shares its probability among its ties."""
    law = [0.0] * len(probs)
    for draw in itertools.product(range(len(probs)), repeat=n):
        top = max(rewards[i] for i in draw)
        winners = [i for i in draw if rewards[i] == top]
        for i in winners:
            law[i] += math.prod(probs[j] for j in draw) / len(winners)
    return law


def finite_differences(value, table, step=1e-5):
    """Central differences of a function of a table."""
    slopes = torch.zeros_like(table)
    for index in itertools.product(*map(range, table.shape)):
        up, down = table.clone(), table.clone()
        up[index] += step
        down[index] -= step
        slopes[index] = (float(value(up)) - float(value(down))) / (2 * step)
    return slopes


def gradient(value, at):
    """∇ value by autograd."""
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(value(at), at)[0]


def newton(value, start, steps=25):
    """A minimiser of a convex function; directions it cannot see are left alone."""
    at = start.clone()
    for _ in range(steps):
        hessian = torch.autograd.functional.hessian(value, at)
        at = at - torch.linalg.pinv(hessian, hermitian=True, rtol=1e-9) @ gradient(value, at)
    return at


def close(actual, expected, atol=1e-9):
    """Equal to rounding, and shown in full where not."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
