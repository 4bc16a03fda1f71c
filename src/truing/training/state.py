"""What a stage goes on from, taken out of its parts and put back: the next step after it is the
next step of the unbroken run, bit for bit.

Each part knows its own: `Source.state` the place in the data and the rollout at hand, a collector
its normalizer and its controller. Here are those of torch: masters, moments, schedule, averages,
a reference that moved, random states.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from truing.errors import CheckpointError
from truing.training.build import Built, reread_reference
from truing.training.checkpoints import State
from truing.training.step import Step


def capture(built: Built, place: State) -> State:
    """The state between two steps, of which the first left the source at `place`.

    Tensors are copies: training may go on while they are written.
    """
    step = built.step
    state = State(
        numbers={
            "taken": step.taken,
            "first_metrics": step.first_metrics,
            "skipped": list(step.skipped),
            "schedule": step.schedule.state_dict(),
            "optimizer": [
                {name: value for name, value in group.items() if name != "params"}
                for group in step.optimizer.param_groups
            ],
            "random": _random_state(),
            "place": place.numbers,
            "best": None if built.best is None else [built.best.value, built.best.step],
        },
        tensors={
            "masters": _copies(dict(step.masters.masters)),
            "moments": _copies(_moments(step)),
            "random": {"torch": torch.get_rng_state()},
            **{part: _copies(tensors) for part, tensors in place.tensors.items()},
        },
    )
    more = {
        "carried": step.carried,
        "average": {} if built.average is None else built.average.averages,
        "reference": built.roles.reference_masters,
        "best": {} if built.best is None else built.best.weights,
    }
    state.tensors |= {part: _copies(tensors) for part, tensors in more.items() if tensors}
    return state


def restore(built: Built, state: State, where: str) -> None:
    """Put a captured state into a stage that was built anew. Raises CheckpointError if it does not
    fit: other weights, other shapes, other parts."""
    step, numbers, tensors = built.step, state.numbers, state.tensors
    try:
        _put("masters", dict(step.masters.masters), tensors["masters"], where)
        step.masters.publish()
        _restore_moments(step, tensors["moments"])
        for group, saved in zip(step.optimizer.param_groups, numbers["optimizer"], strict=True):
            group.update(_as_before(saved))
        step.schedule.load_state_dict(numbers["schedule"])
        step.taken, step.first_metrics = numbers["taken"], numbers["first_metrics"]
        step.skipped[:] = numbers["skipped"]
        step.carried.clear()
        step.carried.update(tensors.get("carried", {}))
        if built.average is not None:
            _put("average", built.average.averages, tensors["average"], where)
        if "reference" in tensors:
            built.roles.set_reference(tensors["reference"])
            reread_reference(built.roles, built.heldout, step.memory)
        if built.best is not None:
            built.best.value, built.best.step = numbers["best"]
            built.best.weights = {n: t.to(built.device) for n, t in tensors["best"].items()}
        built.source.restore(State(numbers["place"], tensors))
        _set_random_state(numbers["random"])
        torch.set_rng_state(tensors["random"]["torch"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the state does not fit this stage ({type(error).__name__}: {error})",
            where=where,
            remedy="continue with the version and recipe that wrote it, or start with --overwrite",
        ) from error


def _copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


def _moments(step: Step) -> dict[str, Tensor]:
    """AdamW's own tensors, by the name of the master they are of; none before the first step."""
    return {
        f"{kind}:{name}": value
        for name, master in step.masters.masters.items()
        for kind, value in step.optimizer.state.get(master, {}).items()
    }


def _restore_moments(step: Step, saved: dict[str, Tensor]) -> None:
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        kind, _, name = key.partition(":")
        kinds.setdefault(name, {})[kind] = value
    step.optimizer.state.clear()
    for name, own in kinds.items():  # a master that never learnt has none
        master = step.masters.masters[name]
        step.optimizer.state[master] = {kind: v.to(master.device) for kind, v in own.items()}


def _put(part: str, into: dict[str, Any], saved: dict[str, Tensor], where: str) -> None:
    """Saved tensors into those that are there, shape by shape."""
    _same_names(part, into, saved, where)
    for name, tensor in into.items():
        if tensor.shape != saved[name].shape:
            raise CheckpointError(
                f"{part} '{name}' has shape {list(saved[name].shape)}, not {list(tensor.shape)}",
                where=where,
                remedy="continue with the model and adapters that it was saved with",
            )
        with torch.no_grad():
            tensor.copy_(saved[name])


def _same_names(part: str, there: Any, saved: Any, where: str) -> None:
    if different := sorted(set(there) ^ set(saved)):
        raise CheckpointError(
            f"{part}: '{different[0]}' is not on both sides ({len(different)} names differ)",
            where=where,
            remedy="continue with the model and adapters that it was saved with",
        )


def _as_before(group: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's group as it was: JSON has no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in group.items()}


def _random_state() -> dict[str, Any]:
    """The global states of Python: nothing of ours reads them, a reward of yours might."""
    version, words, gauss = random.getstate()
    return {"version": version, "words": list(words), "gauss": gauss}


def _set_random_state(saved: dict[str, Any]) -> None:
    random.setstate((saved["version"], tuple(saved["words"]), saved["gauss"]))
