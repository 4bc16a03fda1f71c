"""Imported once by the server that runs are forked from: what every run imports."""

import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: F401

import truing.cli
import truing.pipeline.run
import truing.pipeline.stages.best_of_n
import truing.pipeline.stages.evaluate
import truing.pipeline.stages.train  # noqa: F401
