"""What every run imports and reads, done once by the server that runs are forked from."""

import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama
import transformers.trainer_pt_utils  # noqa: F401

import truing.cli
import truing.pipeline.run
import truing.verbs  # noqa: F401
from truing import objectives
from truing.pipeline.code_version import code_version

code_version([f"truing.pipeline.stages.{name}" for name in ("train", "best_of_n")])
for method in ("sft", "bradley_terry", "dpo", "ppo", "grpo"):
    objectives.find(method)
