"""What a stage's result depends on, part by part, as hashes: same parts, same result, bit for bit.

    config      every knob that changes it        model       section, and the files of the weights
    seed        of the stage                      tokenizer   its files and template
    data        the rows as read and divided      code        of ours that the stage uses
    from, reward, ...                             the parent's own key, or an outside folder's files

Paths are not part of it: a file that was moved is the same file.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truing import rewards
from truing.config import LIMITS, REWARD_ROLES, WITHOUT_EFFECT
from truing.pipeline.code_version import code_version, room
from truing.pipeline.context import Context
from truing.pipeline.stages.base import PipelineStage
from truing.rundir import fingerprint
from truing.storage import digest, files_of

WEIGHTS = (".safetensors", "config.json")


def key_of(inputs: Mapping[str, str]) -> str:
    """One hash of all parts."""
    return fingerprint(dict(inputs))


def inputs_of(
    context: Context, stage: PipelineStage, parents: Mapping[str, str], keys: Mapping[str, str]
) -> dict[str, str]:
    """Part -> hash. `keys` are those of the stages before it."""
    recipe = context.recipe
    knobs = {name: v for name, v in stage.knobs.items() if name not in WITHOUT_EFFECT | LIMITS}
    model, weights, tokenizer = recipe.model.model_dump(), "", ""
    if Path(context.model_path).is_dir():
        del model["path"]
        weights = folder_digest(Path(context.model_path), weights=True)
        tokenizer = folder_digest(Path(context.model_path), weights=False)
    data = recipe.data.model_dump(exclude={"path", "test_path"})
    own = {
        "config": fingerprint(knobs),
        "seed": str(context.seed(stage.name, stage.config.seed)),
        "model": fingerprint(model, weights),
        "tokenizer": tokenizer or fingerprint(recipe.model.path, recipe.model.revision),
        "data": fingerprint(data, context.data_digest),
        "code": _code(stage),
    }
    outside = {role: name for role, name in parents.items() if name not in ("model", "data")}
    return own | {role: keys.get(name) or _outside(name) for role, name in outside.items()}


def _outside(name: str) -> str:
    """A parent that is no stage: a folder by what is in it, anything else by its name."""
    folder = Path(name)
    if not folder.is_dir():
        return fingerprint(name)
    return fingerprint(*(folder_digest(folder, weights=part) for part in (True, False)))


def folder_digest(folder: Path, *, weights: bool) -> str:
    """Hash of the weights and their config in a model's folder, or of the files beside them."""
    paths = [path for path in files_of(folder) if path.parent == folder]
    chosen = [path for path in paths if path.name.endswith(WEIGHTS) is weights]
    own = {".json", ".safetensors", ".jinja", ".txt", ".model"}
    no_model = ("run.json", "manifest.json")
    return fingerprint(
        {p.name: digest(p) for p in chosen if p.suffix in own and p.name not in no_model}
    )


def _code(stage: PipelineStage) -> str:
    """Our code that the stage uses: what its modules import, and the rewards it names."""
    modules, files = list(stage.modules), list(stage.files)
    files += [Path(str(sys.modules[m].__file__)) for m in modules if not m.startswith("truing.")]
    for role in REWARD_ROLES:
        for source in _sources_of(getattr(stage.config, role, None)):
            modules += [source] if isinstance(source, str) else []
            files += [source] if isinstance(source, Path) else []
    return code_version(modules, files)


def _sources_of(spec: Any) -> Iterator[str | Path]:
    """Modules of ours and files of yours that a reward's fields name, however deep."""
    if isinstance(spec, Mapping):
        for value in spec.values():
            yield from _sources_of(value)
    if not isinstance(spec, str):
        return
    if spec in rewards.names():
        yield rewards.find(spec).__module__
        if spec == "code":
            yield from room("rewards/_jail")
    place = spec.rpartition(":")[0]
    if Path(place).is_file():
        yield Path(place)
    elif place and place.replace(".", "").isidentifier():
        found = importlib.util.find_spec(place)
        if found is not None and found.origin and Path(found.origin).is_file():
            yield Path(found.origin)
