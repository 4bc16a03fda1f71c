"""Which stage needs which, and in what order they run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from truing.config import RESERVED_STAGE_NAMES, REWARD_ROLES
from truing.errors import UsageError, suggest


def order(parents: Mapping[str, Mapping[str, str]], where: str) -> list[str]:
    """Stage names so that every stage comes after the ones it names; else in recipe order.

    `parents`: stage -> role -> name. Raises UsageError for a name that no stage has (with the
    nearest one) and for a circle.
    """
    edges: dict[str, list[str]] = {}
    for stage, roles in parents.items():
        edges[stage] = []
        for role, name in roles.items():
            if name in parents:
                edges[stage].append(name)
            elif name not in RESERVED_STAGE_NAMES and not _outside(role, name):
                valid = (set(parents) - {stage}) | RESERVED_STAGE_NAMES
                raise UsageError(
                    f"stages.{stage}: {role} names '{name}', which is no stage",
                    where=where,
                    remedy=suggest(name, valid) + ", or give a model's folder",
                )
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UsageError(
            f"stages wait for each other: {circle}", where=where, remedy="break the circle"
        ) from error


def _outside(role: str, name: str) -> bool:
    """Whether a name that is no stage may still be right: a model's path, or a reward by name.

    Stage names are identifiers, so a path, a hub id or `random:llama` cannot be mistaken for one.
    """
    named = role.partition(".")[0]
    return named in REWARD_ROLES or not name.isidentifier() or Path(name, "config.json").is_file()
