"""What is done about a sampler whose probabilities are not the trainer's.

    w_n = π_trainer(y_n) / π_sampler(y_n)    per token, or Π_n w_n over a completion

The advantage of what was drawn is multiplied by w, bounded: then the gradient is, up to the bound,
that of the trainer's own policy. Our own sampler agrees to rounding and needs none of this; engines
with other kernels or quantised weights do not.

Sources: truncation, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training" (TIS); masking outside [1/C, C], IcePop (Ling team 2025). Implementations: TRL's
`vllm_importance_sampling_mode` has the same four names, and masks above the cap only.

N tokens, flat · C completions
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from truing.batch import Batch
from truing.ops import EXP_LIMIT, segment_sum

ImportanceCorrection = Literal[
    "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
]


def importance_weights(batch: Batch, kind: ImportanceCorrection, cap: float) -> Tensor:
    """The factor of each token's advantage. Shape [N], in [0, cap], cap > 1."""
    log_N = batch["sampled_logps_N"] - batch["sampler_logps_N"]
    if kind.startswith("sequence"):
        log_N = segment_sum(log_N, batch.completion_N, batch.size_C)[batch.completion_N]
    weight_N = log_N.clamp(-EXP_LIMIT, EXP_LIMIT).exp()
    if kind.endswith("truncate"):
        return weight_N.clamp(max=cap)
    return torch.where((weight_N <= cap) & (weight_N >= 1 / cap), weight_N, 0)
