"""The recipe: what a user may write, checked before anything is loaded. No torch.

A recipe is a graph of named stages. Every stage has a `method`: `preferences`, `best_of_n` and
`evaluate` are described here; any other method is an objective, whose own fields (`beta`, ...)
stand beside the training fields and are checked by training/method.py, which knows the class.
"""

from truing.config.reading import (
    RESERVED_STAGE_NAMES,
    apply_override,
    check,
    check_recipe,
    explain_validation,
    read_recipe,
    read_value,
)
from truing.config.sections import (
    REWARD_ROLES,
    Data,
    Lora,
    Model,
    RewardSpec,
    Sampling,
    Section,
    Stage,
)
from truing.config.stages import PIPELINE_METHODS, BestOfN, Evaluate, Preferences, Recipe
from truing.config.training import (
    LIMITS,
    WITHOUT_EFFECT,
    ActorCritic,
    Offline,
    Online,
    OnPolicy,
    Rollouts,
    Training,
)

__all__ = [
    "LIMITS",
    "PIPELINE_METHODS",
    "RESERVED_STAGE_NAMES",
    "REWARD_ROLES",
    "WITHOUT_EFFECT",
    "ActorCritic",
    "BestOfN",
    "Data",
    "Evaluate",
    "Lora",
    "Model",
    "Offline",
    "OnPolicy",
    "Online",
    "Preferences",
    "Recipe",
    "RewardSpec",
    "Rollouts",
    "Sampling",
    "Section",
    "Stage",
    "Training",
    "apply_override",
    "check",
    "check_recipe",
    "explain_validation",
    "read_recipe",
    "read_value",
]
