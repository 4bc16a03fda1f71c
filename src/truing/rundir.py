"""What a run leaves on disk: names, an append-only writer, a typed reader. No torch.

    OUTPUT/                    one recipe
      summary.json  report.html
      STAGE/                   one run directory per stage
        run.json               who, from what, in which state (RunInfo)
        config.yaml            every key, resolved
        metrics.jsonl          one line a step, appended
        samples/*.jsonl        prompts and completions
        eval/*.json            measurements
        checkpoint-N/          where a stopped run goes on (training/checkpoints.py)
        model.safetensors ...  weights that from_pretrained opens

Files are replaced whole (written beside, then renamed), so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truing.errors import CheckpointError, ResourceError
from truing.storage import DISK, MANIFEST_FILE, read_manifest, seal, write_file, writing

SCHEMA_VERSION = 1
RUN_FILE, CONFIG_FILE, METRICS_FILE = "run.json", "config.yaml", "metrics.jsonl"
SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"
BEST_OF_N_FILE = "eval/best_of_n.json"
RESUMED_THOUGH = "resumed_though"
"""Among the facts: what had changed each time a stopped stage was gone on with."""
ROLLOUT_FILE = "samples/rollout-{index:04d}.jsonl"


class RunInfo(BaseModel):
    """`run.json`: the state and the lineage of one stage."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    stage: str
    method: str
    status: Literal["running", "completed", "stopped", "failed"] = "running"
    """stopped: by a signal. running without anybody who holds the lock: killed."""
    reason: str = ""
    """Why it failed or stopped, in the words of the error."""
    started: str = ""
    """UTC, ISO 8601."""
    wall_seconds: float | None = None
    seed: int = 0
    parents: dict[str, str] = Field(default_factory=dict)
    """Role (from, data, reward, ...) -> the parent stage or path."""
    fingerprint: str = ""
    """Hash of `inputs`."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """What the result depends on, part by part -> its hash: config, seed, model, tokenizer, data,
    code, and the parents."""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str] = Field(default_factory=dict)
    """Processor, threads and accelerator: with versions and device they decide the last bits."""
    device: str = ""
    steps: int = 0
    tokens: int = 0
    """Tokens the stage computed or drew, prompts counted once per group."""
    model_copies: float | None = None
    """Whole-model copies held in memory; adapters and heads are not copies."""
    peak_memory_bytes: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    """What else is worth keeping: counts of dropped rows, first-step numbers, ..."""


CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint-N folders of a run, newest first, whole or not."""
    named = [(CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    found = [(int(match[1]), path) for match, path in named if match]
    return [path for _, path in sorted(found, reverse=True)]


class RunDirectory:
    """One stage's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: int | None = None
        """Bytes of metrics.jsonl after our last line; None before the first."""

    def start(self, info: RunInfo, config: Mapping[str, Any], *, keep: bool = False) -> None:
        """Empty the folder, unless it is to be gone on from, and write who runs with what."""
        with writing(self.path):
            if self.path.exists() and not keep:
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False))
        info.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.write_info(info)

    def write_info(self, info: RunInfo) -> None:
        write_text(self.path / RUN_FILE, info.model_dump_json(indent=2) + "\n")

    def info(self) -> RunInfo | None:
        """The state of this run, or None if there is none. Raises CheckpointError if unreadable."""
        file = self.path / RUN_FILE
        if not file.is_file():
            return None
        try:
            return RunInfo.model_validate_json(file.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise CheckpointError(
                "run.json cannot be read",
                where=str(file),
                remedy="remove the stage's folder and run again with --resume",
            ) from error

    def config(self) -> dict[str, Any]:
        """Every key it was given; nothing if it has no config.yaml. Raises CheckpointError."""
        file = self.path / CONFIG_FILE
        try:
            return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        except (UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.yaml cannot be read: {error}",
                where=str(file),
                remedy="remove the stage's folder and run again with --resume",
            ) from error

    def finish(self, info: RunInfo) -> None:
        """Everything is on the disk, with its digests; then run.json says `completed`."""
        seal(self.path, {"stage": info.stage}, without=self._is_no_result)
        info.status = "completed"
        self.write_info(info)

    def _is_no_result(self, path: Path) -> bool:
        inside = path.relative_to(self.path)
        own = inside.as_posix() in (RUN_FILE, MANIFEST_FILE)
        return own or inside.parts[0].startswith((".", "checkpoint-"))

    def verify(self) -> None:
        """Every file of a finished run is what it was. Raises CheckpointError that names one that
        is not."""
        read_manifest(self.path)

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line to metrics.jsonl."""
        line = json.dumps({"step": step, **metrics}, allow_nan=False)
        file = self.path / METRICS_FILE
        if self._written not in (None, self.metrics_bytes):
            raise ResourceError(
                f"it cannot be written: it has {self.metrics_bytes:,} bytes, and had "
                f"{self._written:,} after our last line",
                where=str(file),
                remedy="somebody else removes or writes what lies here; --resume goes on from the "
                "newest checkpoint",
            )
        with writing(file):
            DISK.append(file, f"{line}\n".encode())
        self._written = self.metrics_bytes

    def sync_metrics(self) -> None:
        """The lines so far are on the disk."""
        file = self.path / METRICS_FILE
        if file.exists():
            with writing(file):
                DISK.sync_file(file)

    @property
    def metrics_bytes(self) -> int:
        """How long metrics.jsonl is."""
        file = self.path / METRICS_FILE
        return file.stat().st_size if file.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Forget the lines behind the first `size` bytes: their steps are taken again."""
        if self.metrics_bytes > size:
            os.truncate(self.path / METRICS_FILE, size)
            self._written = size

    def metrics(self) -> list[dict[str, float]]:
        """Every line of metrics.jsonl; a last line that was cut off is left out."""
        return list(read_jsonl(self.path / METRICS_FILE, allow_cut=True))

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file of this run, replaced whole; NaN is refused."""
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        write_text(self.path / name, text + "\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of this run, or None if it is absent."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A JSON-lines file of this run, replaced whole."""
        lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows]
        write_text(self.path / name, "".join(line + "\n" for line in lines))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A JSON-lines file of this run."""
        return list(read_jsonl(self.path / name))


def write_text(path: Path, text: str) -> None:
    """Replace `path` whole, so that no reader sees half of it."""
    write_file(path, text.encode())


def read_jsonl(path: Path, allow_cut: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; none if the file is absent."""
    if not path.is_file():
        return
    # at newlines alone: texts hold other characters that str.splitlines takes for ends of lines
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and (allow_cut or not line):
            return
        yield json.loads(line)


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON-able parts, the same on every machine."""
    canonical = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
