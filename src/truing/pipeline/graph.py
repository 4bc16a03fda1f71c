"""Which stage needs which, and in what order they run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from truing.config import RESERVED_STAGE_NAMES
from truing.errors import UsageError, suggest

MAY_BE_A_PLUGIN = frozenset({"reward"})
"""Roles whose name may also be a reward by name, found in truing.rewards."""


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
            elif name not in RESERVED_STAGE_NAMES and role not in MAY_BE_A_PLUGIN:
                valid = (set(parents) - {stage}) | RESERVED_STAGE_NAMES
                raise UsageError(
                    f"stages.{stage}: {role} names '{name}', which is no stage",
                    where=where,
                    remedy=suggest(name, valid),
                )
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UsageError(
            f"stages wait for each other: {circle}", where=where, remedy="break the circle"
        ) from error
