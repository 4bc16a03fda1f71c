"""The verbs of the command line: parse, call, print. No logic, and no torch until a verb runs."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from truing import __version__, objectives
from truing.errors import TruingError, redacted

app = App(
    name="truing",
    version=__version__,
    suppress_keyboard_interrupt=False,  # main() tells SIGINT and SIGTERM apart
    help="Post-training for language models that you can check.",
    help_epilogue="Every method is a verb too (`truing explain` lists them): truing kto, ...\n\n"
    "Exit codes: 0 ok, 2 usage, 3 data, 4 model, 5 numerics, 6 resources, "
    "7 rollout or reward, 8 checkpoint, 130 interrupted, 143 terminated.",
)
data_app = App(name="data", help="Look at data before training on it.")
app.command(data_app)
app.command("truing.cli_runs:app", name="runs", help="List, show, compare, verify, remove runs.")

Knobs = Annotated[
    str, Parameter(allow_leading_hyphen=True, show=False, help="any key of the method")
]
Flag = Annotated[bool, Parameter(negative="")]


@app.command
def run(
    recipe: Path,
    *overrides: str,
    resume: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Run a recipe: every stage, one table, one report.

    Parameters
    ----------
    recipe
        A YAML file; see recipes/.
    overrides
        Keys to change, as a.b=c: stages.dpo.beta=0.2 data.path=my.jsonl
    resume
        Continue in the recipe's output folder: finished stages with unchanged inputs are kept.
    overwrite
        Delete what the output folder holds and start over.
    dry_run
        Say which stages would run, be kept or go on, and why; write nothing.
    """
    from truing.config import read_recipe

    _run(read_recipe(recipe, list(overrides)), str(recipe), resume, overwrite, dry_run)


@app.command
def sft(*knobs: Knobs, model: str, data: str, output: Path = Path("runs/sft")) -> None:
    """Supervised fine-tuning on demonstrations, or on the chosen side of pairs.

    Further keys as --learning-rate 1e-5, recipe sections as --model.lora.rank 8;
    `truing explain sft` lists them.

    Parameters
    ----------
    model
        A folder, hub id, .gguf file, package:NAME or random:llama.
    data
        A file, a folder or a hub id.
    output
        Folder of the run.
    """
    _train("sft", model, data, output, knobs)


@app.command
def reward(*knobs: Knobs, model: str, data: str, output: Path = Path("runs/reward")) -> None:
    """A Bradley-Terry reward model from preference pairs.

    Further keys as --learning-rate 1e-5; `truing explain bradley_terry` lists them.

    Parameters
    ----------
    model
        What it starts from: best the model the pairs were drawn from, after SFT.
    data
        Preference rows: a file, a folder or a hub id.
    output
        Folder of the run.
    """
    _train("bradley_terry", model, data, output, knobs)


@app.command
def dpo(*knobs: Knobs, model: str, data: str, output: Path = Path("runs/dpo")) -> None:
    """Direct preference optimisation from preference pairs.

    Further keys as --beta 0.1; `truing explain dpo` lists them.

    Parameters
    ----------
    model
        What it starts from, and the reference it is measured against.
    data
        Preference rows: a file, a folder or a hub id.
    output
        Folder of the run.
    """
    _train("dpo", model, data, output, knobs)


@app.command
def ppo(*knobs: Knobs, model: str, data: str, output: Path = Path("runs/ppo")) -> None:
    """PPO with a KL penalty, against a reward model or any reward.

    Needs --reward: a reward model's folder, or a reward by name. Further keys as --kl-coef 0.05;
    `truing explain ppo` lists them.

    Parameters
    ----------
    model
        What it starts from, and the reference the KL is measured to.
    data
        Prompts: a file, a folder or a hub id (completions are ignored).
    output
        Folder of the run.
    """
    _train("ppo", model, data, output, knobs)


def _verb(method: str) -> None:
    """`truing METHOD` for a method without a page of its own in the help."""

    def train(*knobs: Knobs, model: str, data: str, output: Path | None = None) -> None:
        _train(method, model, data, output or Path("runs", method), knobs)

    train.__doc__ = f"""Train with {method}: `truing explain {method}` says what it is.

    Parameters
    ----------
    model
        A folder, hub id, .gguf file, package:NAME or random:llama.
    data
        A file, a folder or a hub id, with the rows it needs.
    output
        Folder of the run (default: runs/{method}).
    """
    app.command(train, name=method, show=False)


for _method in objectives.methods():
    if _method not in list(app):  # sft, dpo and ppo have a help of their own above
        _verb(_method)


@app.command
def sample(
    prompt: str = "",
    *,
    model: str,
    data: str = "",
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1,
    max_completion_length: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: list[str] | None = None,
    engine: str = "auto",
    seed: int = 0,
    limit: int = 8,
) -> None:
    """Draw completions from a model.

    Parameters
    ----------
    prompt
        A prompt (one user turn, if the model has a chat template); or give --data.
    model
        A folder, hub id, .gguf file, package:NAME or random:llama.
    data
        A file with prompts.
    number
        Completions per prompt.
    max_completion_length
        Tokens at most.
    temperature
        0 is greedy.
    top_k
        From the k likeliest tokens only (0: from all).
    top_p
        From the fewest tokens that have this probability together.
    min_p
        Not from tokens less likely than this share of the likeliest one's probability.
    stop
        A completion also ends where its text first contains this; may be given several times.
    engine
        auto, local or transformers.
    seed
        The same seed draws the same text.
    limit
        Prompts of the file at most.
    """
    from truing.verbs import draw

    sampling = {
        "max_completion_length": max_completion_length,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "stop": stop or [],
        "engine": engine,
    }
    for prompt_text, completion in draw(prompt, data, model, number, sampling, seed, limit):
        print(f"{prompt_text} -> {completion}")


@app.command(name="best-of-n")
def best_of_n(
    *knobs: Knobs, model: str, data: str, reward: str, output: Path = Path("runs/best-of-n")
) -> None:
    """Draw n completions a prompt and keep the one the reward likes best.

    Further keys as --num-generations 16; `truing explain best_of_n` lists them.

    Parameters
    ----------
    model
        Who writes the completions.
    data
        Prompts: a file, a folder or a hub id.
    reward
        A reward model's folder, or a reward by name.
    output
        Folder of the run; the picked completions are in best_of_n/samples/best.jsonl.
    """
    flags = [f"--reward={reward}", *knobs]
    _train("best_of_n", model, data, output, flags, every_row_is_a_test=True)


@app.command
def evaluate(
    *policies: str,
    data: str,
    reference: str = "",
    gold: str = "",
    proxy: str = "",
    output: Path = Path("runs/evaluate"),
    max_completion_length: int = 64,
    test_prompts: int = 64,
) -> None:
    """Compare policies on the same prompts with the same seeds: reward, KL, length, diversity.

    Parameters
    ----------
    policies
        LABEL=FOLDER for each policy.
    data
        Prompts: a file, a folder or a hub id.
    reference
        The label KL and gains are measured to (default: the first).
    gold
        A reward by name.
    proxy
        A reward model's folder, or a reward by name.
    output
        Folder of the run.
    max_completion_length
        Tokens at most.
    test_prompts
        Prompts at most.
    """
    from truing.verbs import evaluation_recipe

    recipe = evaluation_recipe(
        list(policies), data, reference, gold, proxy, output, max_completion_length, test_prompts
    )
    _run(recipe, "truing evaluate", resume=False, overwrite=False)


@data_app.command
def inspect(path: str, *, model: str = "", split: str = "train", max_length: int = 1024) -> None:
    """Type, format, counts, what would be dropped and why, and one example with its loss mask.

    Parameters
    ----------
    path
        A file, a folder or a hub id.
    model
        Whose tokenizer and template to use: shows lengths in tokens and the trained tokens.
    split
        For a hub id.
    max_length
        Longest prompt + completion, in tokens.
    """
    from truing.verbs import inspect_data

    print(inspect_data(path, model, split, max_length))


@app.command
def explain(name: str = "") -> None:
    """What a method, a reward or a part of a recipe is: formula, every key, source.

    Parameters
    ----------
    name
        sft, dpo, ppo, vader, recipe, model, data, ... Without a name: the list.
    """
    from truing.explain import explain as text_of

    print(text_of(name))


@app.command
def env() -> None:
    """Versions and machine, for a bug report."""
    from truing.pipeline import machine

    for part in (machine.versions(), machine.describe()):
        for key, value in part.items():
            print(f"{key:14} {value}")


def _train(
    method: str,
    model: str,
    data: str,
    output: Path,
    knobs: tuple[str, ...] | list[str],
    every_row_is_a_test: bool = False,
) -> None:
    from truing.verbs import single_stage

    recipe, switches = single_stage(method, model, data, output, list(knobs), every_row_is_a_test)
    _run(recipe, f"truing {method}", **switches)


def _run(recipe: Any, where: str, resume: bool, overwrite: bool, dry_run: bool = False) -> None:
    from rich.console import Console

    from truing.evaluation.summary import Summary
    from truing.evaluation.table import policy_table, stage_table
    from truing.pipeline.run import preview, run_recipe
    from truing.rundir import REPORT_FILE, SUMMARY_FILE

    console = Console()
    if dry_run:
        preview(recipe, where=where, console=console)
        return
    output = run_recipe(recipe, where=where, resume=resume, overwrite=overwrite, console=console)
    summary = Summary.model_validate_json((output / SUMMARY_FILE).read_text(encoding="utf-8"))
    console.print(stage_table(summary, console.width))
    if summary.policies:
        console.print(policy_table(summary, console.width))
    for verdict in summary.verdicts:
        console.print(f"· {verdict}", highlight=False, markup=False)
    console.print(f"report: {output / REPORT_FILE}", soft_wrap=True, highlight=False)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception, so that a stage can write down that it was stopped."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _without_secrets(kind: type[BaseException], error: BaseException, place: Any) -> None:
    print(
        redacted("".join(traceback.format_exception(kind, error, place))), file=sys.stderr, end=""
    )


def main() -> None:
    """The entry point: errors become one message and their exit code. What is printed of one shows
    no value of an environment variable that is named like a secret."""
    signal.signal(signal.SIGTERM, _terminate)
    # a shell starts what runs in its background with SIGINT ignored: there, too, it stops a run
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = _without_secrets
    try:
        app(exit_on_error=True)
    except TruingError as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except Terminated:
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)
