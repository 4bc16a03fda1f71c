"""The same as the command line, for Python: run a recipe, get its summary."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from truing.config import Recipe, read_recipe
from truing.errors import UsageError
from truing.evaluation.summary import Summary
from truing.rundir import SUMMARY_FILE


def run(
    recipe: str | Path | Recipe,
    *overrides: str,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Summary:
    """Run a recipe (a path or an object) with `a.b=c` overrides and return what it found.

    `resume` keeps finished stages, `overwrite` starts over. Raises TruingError.
    """
    from truing.pipeline.run import run_recipe

    if isinstance(recipe, Recipe) and overrides:
        raise UsageError(
            "overrides change a recipe's file, this is a Recipe", remedy="change the object itself"
        )
    where = "recipe" if isinstance(recipe, Recipe) else str(recipe)
    read = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe), list(overrides))
    output = run_recipe(
        read, where=where, resume=resume, overwrite=overwrite, console=Console(quiet=quiet)
    )
    return Summary.model_validate_json((output / SUMMARY_FILE).read_text(encoding="utf-8"))
