"""What toolkits forgot to save, saved badly, or took for good although it was not."""

from __future__ import annotations

from .mutant import Mutant

STATE, SOURCES, COLLECT = "training/state.py", "training/sources.py", "rollouts/collect.py"
STORAGE, CHECKPOINTS, KEEPER = "storage.py", "training/checkpoints.py", "training/keeper.py"
KEEPING, RUNDIR, CLAIM = "pipeline/keeping.py", "rundir.py", "runs/claim.py"
STORAGE_TESTS = ("faults/test_storage_faults.py",)
DECISION_TESTS = ("pipeline/test_decisions.py",)
STOPPED = "training/test_resume.py::test_stopped_at_every_step_it_ends_the_same"


def resumed(*cases: str) -> tuple[str, ...]:
    """Resumed from every step, bit for bit."""
    return tuple(f"{STOPPED}[{case}-full]" for case in cases)


def within(kind: str, name: str) -> tuple[str, ...]:
    """A test of a planted fault in a real run."""
    return (f"faults/test_{kind}_faults.py::{name}",)


MUTANTS = (
    Mutant(
        "moments_start_anew",
        STATE,
        '        _restore_moments(step, tensors["moments"])\n',
        "",
        resumed("sft"),
        "NeMo-RL#3171: a resumed PPO made a new optimizer and said nothing",
    ),
    Mutant(
        "schedule_starts_anew",
        STATE,
        '        step.schedule.load_state_dict(numbers["schedule"])\n',
        "",
        resumed("sft"),
        "the other half of NeMo-RL#3171",
    ),
    Mutant(
        "steps_count_from_zero",
        STATE,
        'step.taken, step.first_metrics = numbers["taken"], numbers["first_metrics"]',
        'step.first_metrics = numbers["first_metrics"]',
        resumed("sft"),
        "trl#3635, trl#3179: resumed runs that begin at step 0",
    ),
    Mutant(
        "running_statistics_of_the_loss_are_lost",
        STATE,
        '        step.carried.update(tensors.get("carried", {}))\n',
        "",
        resumed("bco_pair"),
        "no toolkit keeps BCO's shift or the KL of β-DPO",
    ),
    Mutant(
        "average_starts_anew",
        STATE,
        '            _put("average", built.average.averages, tensors["average"], where)\n',
        "            pass\n",
        resumed("sft, averaged"),
        "a moving average that forgets what it averaged",
    ),
    Mutant(
        "reference_moves_back",
        STATE,
        '            built.roles.set_reference(tensors["reference"])\n',
        "",
        resumed("tr_dpo"),
        "a reference that moved and is where it began again",
    ),
    Mutant(
        "data_start_anew",
        SOURCES,
        '        self.given = saved.numbers["given"]',
        "        self.given = 0",
        resumed("sft"),
        "trl#5911: the step count goes on and the rows begin again",
    ),
    Mutant(
        "a_batch_is_skipped",
        SOURCES,
        '        self.given = saved.numbers["given"]',
        '        self.given = saved.numbers["given"] + 1',
        resumed("sft"),
        "verl#7401, torchdata#1437: off by one where an epoch ends",
    ),
    Mutant(
        "prompts_start_anew",
        SOURCES,
        '        self.supply.skip_to(numbers["drawn"])\n',
        "",
        resumed("grpo"),
        "trl#5911: prompts restart at 0, silently",
    ),
    Mutant(
        "rollout_is_drawn_again_in_its_middle",
        SOURCES,
        '        if numbers["sizes"] is not None:',
        "        if False:",
        resumed("ppo"),
        "a rollout buffer that is in no checkpoint",
    ),
    Mutant(
        "passes_over_a_rollout_start_anew",
        SOURCES,
        'for name in ("rollout", "given", "given_of_rollout", "too_far"):',
        'for name in ("rollout", "given", "too_far"):',
        resumed("ppo"),
        "resumed in the middle of PPO's epochs, the first ones are taken twice",
    ),
    Mutant(
        "kl_controller_starts_anew",
        COLLECT,
        "            setattr(self.kl_controller, name, value)",
        "            pass",
        resumed("ppo, running, budget"),
        "OpenRLHF, verl and SkyRL lose the adaptive coefficient",
    ),
    Mutant(
        "reward_statistics_start_anew",
        COLLECT,
        '        self.normalize = ScoreNormalizer(**saved["normalize"])\n',
        "",
        resumed("ppo, running, budget"),
        "open-r1#450: rewards jump after a resume",
    ),
    Mutant(
        "lines_of_metrics_twice",
        KEEPING,
        '    run.cut_metrics(place["metrics_bytes"])\n',
        "",
        resumed("sft"),
        "steps that are taken again are logged again",
    ),
    Mutant(
        "no_digest_is_compared",
        STORAGE,
        '        if digest(path) != expected["sha256"]:',
        "        if False:",
        STORAGE_TESTS,
        "safetensors#220: no checksum, corrupt weights load",
    ),
    Mutant(
        "written_in_place",
        STORAGE,
        '    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")',
        "    beside = folder",
        STORAGE_TESTS,
        "transformers#27820: checkpoint-N is written in place",
    ),
    Mutant(
        "content_is_not_synced",
        STORAGE,
        "        disk.sync_file(path)\n",
        "",
        STORAGE_TESTS,
        "no toolkit read syncs a training checkpoint",
    ),
    Mutant(
        "nothing_is_read_back",
        CHECKPOINTS,
        "            _read_back(path, own)\n",
        "",
        STORAGE_TESTS,
        "the oldest checkpoint goes for one that nobody could read",
    ),
    Mutant(
        "files_of_a_part_replace_each_other",
        CHECKPOINTS,
        'parts.setdefault(NUMBERED.sub("", path.stem), {}).update(load_file(path))',
        'parts[NUMBERED.sub("", path.stem)] = load_file(path)',
        STORAGE_TESTS,
        "a large part is read back from its last file only",
    ),
    Mutant(
        "what_is_yielded_is_all_there_is",
        STORAGE,
        "    yield from (path for path in files_of(folder) if path not in yielded)\n",
        "",
        STORAGE_TESTS,
        "files that are in no manifest: damage to them is not seen",
    ),
    Mutant(
        "newest_by_text",
        RUNDIR,
        "(int(match[1]), path) for match",
        "(match[1], path) for match",
        STORAGE_TESTS,
        "transformers#27138: 10000 < 9900, and the newest is deleted",
    ),
    Mutant(
        "one_too_few_is_kept",
        CHECKPOINTS,
        "checkpoints(run)[keep:]",
        "checkpoints(run)[keep - 1 :]",
        STORAGE_TESTS,
        "transformers#25136, verl: the last good one goes",
    ),
    Mutant(
        "nothing_whole_is_a_start_from_nothing",
        CHECKPOINTS,
        "    if folders:\n        raise CheckpointError(",
        "    if False:\n        raise CheckpointError(",
        STORAGE_TESTS,
        "verl, transformers: what is missing is a line in the log, and the run starts over",
    ),
    Mutant(
        "any_checkpoint_will_do",
        CHECKPOINTS,
        "            if facts.get(name) != value:",
        "            if False:",
        STORAGE_TESTS,
        "a checkpoint of another stage, seed or data is gone on with",
    ),
    Mutant(
        "failed_saves_are_not_seen",
        KEEPER,
        "        if self.failure is not None:\n            raise self.failure",
        "        return",
        within("disk", "test_an_input_output_error[sft-75]"),
        "an asynchronous save that fails in its own thread",
    ),
    Mutant(
        "half_a_step_is_saved",
        KEEPER,
        "            if not self.busy:",
        "            if True:",
        within("process", "test_two_signals_in_a_step_keep_nothing_of_it[sft]"),
        "the second Ctrl-C comes between the update and its bookkeeping",
    ),
    Mutant(
        "edited_data_are_gone_on_with",
        "pipeline/keys.py",
        '"data": fingerprint(data, context.data_digest)',
        '"data": fingerprint(data)',
        DECISION_TESTS,
        "datasets that changed between save and resume",
    ),
    Mutant(
        "a_bug_in_stage_one_stays_in_stage_two",
        "pipeline/keys.py",
        "role: keys.get(name) or _outside(name)",
        "role: _outside(name)",
        DECISION_TESTS,
        "a stage is kept although its parent changed",
    ),
    Mutant(
        "results_are_not_checked",
        "pipeline/decisions.py",
        "            run.verify()\n",
        "            pass\n",
        DECISION_TESTS,
        "a damaged parent feeds every stage after it",
    ),
    Mutant(
        "a_stopped_stage_is_thrown_away",
        "pipeline/decisions.py",
        '        return Decision("refuse", why, inputs)',
        '        return Decision("run", why, inputs)',
        DECISION_TESTS,
        "a changed knob and --resume: hours of training are gone without a word",
    ),
    Mutant(
        "the_last_weights_in_place_of_the_best",
        "training/build.py",
        "            self.best.adopt()\n",
        "            pass\n",
        ("training/test_best.py",),
        "the best checkpoint is found, and the last one is left behind",
    ),
    Mutant(
        "half_written_files_pile_up",
        "runs/claim.py",
        "        sweep(path)\n",
        "",
        ("runs/test_runs.py",),
        "what a killed process left stays for ever: found here by killing at every operation",
    ),
    Mutant(
        "two_processes_write_one_run",
        CLAIM,
        "        lock.acquire()\n    except Timeout as error:\n        raise",
        "        pass\n    except Timeout as error:\n        raise",
        ("runs/test_runs.py",),
        "nobody reads a lock",
    ),
)
