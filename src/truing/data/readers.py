"""Rows from files, folders and the hub. Nothing is interpreted here, nothing is skipped.

Every row says where it came from: `file.jsonl:17` is the line for .jsonl and .csv, and the number
of the row, from 1, for .json, .parquet and the hub.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from truing.errors import DataError, UnsafeFileError

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin")
SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")
LONGEST_LINE = 64 << 20
"""Bytes of a line of .jsonl."""
MOST_UNPACKED, MOST_RATIO = 16 << 20, 100
"""An archive may unpack to this many bytes, or to this many times its own size if that is more.
Text packs to a tenth of its size; only what is made for it packs to a thousandth."""
CHUNK = 1 << 20
"""Bytes that are unpacked at a time."""


class Row(NamedTuple):
    """One row as it was read, and its place for messages."""

    values: dict[str, Any]
    where: str


def read_rows(path: str, *, split: str = "train", max_rows: int | None = None) -> Iterator[Row]:
    """The rows of a file, of a folder of files (in order of name), or of `org/name[@revision]`.

    `split` chooses a split of a hub data set; files have none. What the path names is checked at
    once, the rows are read as they are asked for. Raises DataError at file:line, and
    UnsafeFileError for files that would have to be executed.
    """
    place = Path(path)
    if place.is_dir():
        rows = _chain([(file, _reader(file)) for file in _files_of(place)])
    elif place.exists():
        rows = _chain([(place, _reader(place))])
    elif (match := HUB_ID.fullmatch(path)) and not path.endswith((*READERS, *PICKLES)):
        rows = _read_hub(match["name"], match["revision"], split)
    else:
        raise DataError(
            "no such file",
            where=path,
            remedy="give a file, a folder, or a hub id of the form org/name[@revision]",
        )
    return islice(rows, max_rows)


Reader = Callable[[Path], Iterator[Row]]


def _chain(files: Iterable[tuple[Path, Reader]]) -> Iterator[Row]:
    for file, reader in files:
        yield from reader(file)


def _files_of(folder: Path) -> list[Path]:
    """The visible files of a folder, sorted by name. Raises DataError for a link out of it."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    inside = os.path.realpath(folder)
    for file in files:
        if not Path(os.path.realpath(file)).is_relative_to(inside):  # loops do not raise here
            raise DataError(
                "a link that leads out of the folder",
                where=str(file),
                remedy="copy the file it names into the folder, or give that file as the path",
            )
    if any(file.name in SAVED_DATASET for file in files):
        raise DataError(
            "this folder was written by datasets.save_to_disk",
            where=str(folder),
            remedy="write it once with dataset.to_json('rows.jsonl') or dataset.to_parquet(...)",
        )
    if not files:
        raise DataError("the folder is empty", where=str(folder), remedy=_VALID)
    return files


def _reader(file: Path) -> Reader:
    """The function that reads this kind of file."""
    if file.suffix.lower() in PICKLES:
        raise UnsafeFileError(
            f"a {file.suffix} file is executed when it is read",
            where=str(file),
            remedy=f"convert it where you trust it, and {_VALID}",
        )
    for ending, reader in READERS.items():
        if file.name.lower().endswith(ending) and file.is_file():
            return reader
    what = f"unknown kind of file '{file.suffix}'"
    if not file.is_file():
        what = (
            "a folder inside a folder" if file.is_dir() else "a link to nothing, or no plain file"
        )
    raise DataError(what, where=str(file), remedy=_VALID)


def _read_jsonl(file: Path) -> Iterator[Row]:
    with _opened(file) as handle:
        for number, line in _lines(handle, file.name, LONGEST_LINE):
            if line.strip():  # a blank line holds no row
                where = f"{file.name}:{number}"
                # a line cut short ends here, not at the start of the next one
                yield Row(_object(_json(line.rstrip(), file.name, number), where), where)


def _read_json(file: Path) -> Iterator[Row]:
    with _opened(file) as handle:
        text = "".join(line for _, line in _lines(handle, file.name))
    content = _json(text, file.name, 1)
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise DataError(
            "neither a list of objects nor an object with one list",
            where=file.name,
            remedy="write one object a line and call it .jsonl",
        )
    for number, value in enumerate(content, 1):
        where = f"{file.name}:{number}"
        yield Row(_object(value, where), where)


def _read_csv(file: Path) -> Iterator[Row]:
    with _opened(file) as handle:
        table = csv.reader((line for _, line in _lines(handle, file.name)), strict=True)
        names: list[str] = []
        try:
            for fields in table:
                where = f"{file.name}:{table.line_num}"
                if not names:
                    names = fields
                elif fields and len(fields) != len(names):
                    what = f"{len(fields)} fields, but the header has {len(names)}"
                    raise DataError(what, where=where, remedy="correct or quote the line")
                elif fields:
                    yield Row(dict(zip(names, fields, strict=True)), where)
        except csv.Error as error:
            raise DataError(
                f"not valid CSV: {error}",
                where=f"{file.name}:{table.line_num}",
                remedy="correct the line, or use .jsonl",
            ) from error


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file.name}:{number}")
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a readable parquet file: {error}", where=file.name, remedy="write it again"
        ) from error


def _read_hub(name: str, revision: str | None, split: str) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(name, revision=revision, split=split)
    # The hub client and the builders behind it raise whatever their network stack raises.
    except Exception as error:
        raise DataError(
            f"the hub has no usable '{name}' (split '{split}'): {type(error).__name__}: {error}",
            where=name,
            remedy="check the id, the split, the network and HF_TOKEN; if it was meant as a file "
            "here, it does not exist",
        ) from error
    for number, values in enumerate(rows, 1):
        yield Row(dict(values), f"{name}:{number}")


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
_VALID = f"use one of: {', '.join(READERS)}"


class _Unpacked(io.RawIOBase):
    """What a .gz holds, until that is more than its size excuses.

    Raises DataError while it is read, so that no line is ever held that is longer than allowed.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._where = file.name
        self._archive = gzip.open(file)  # noqa: SIM115  closed with this
        self._room = self._most = max(MOST_UNPACKED, MOST_RATIO * file.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._archive.readinto(buffer)
        self._room -= count
        if self._room < 0:
            raise DataError(
                f"unpacks to more than {self._most:,} bytes (the bound: {MOST_UNPACKED >> 20} MiB, "
                f"or {MOST_RATIO} times its size)",
                where=self._where,
                remedy="unpack it yourself if you trust it, and give the .jsonl",
            )
        return count

    def close(self) -> None:
        self._archive.close()
        super().close()


def _opened(file: Path) -> BinaryIO:
    """The bytes of a file, unpacked if it is a .gz."""
    if file.suffix.lower() == ".gz":
        return io.BufferedReader(_Unpacked(file), CHUNK)
    return file.open("rb")


def _lines(handle: BinaryIO, name: str, longest: int | None = None) -> Iterator[tuple[int, str]]:
    """(Number, text) of every line: endings kept, the mark some editors put first left out.

    Raises DataError for a line of more than `longest` bytes before it is held whole.
    """
    number = 0
    most = -1 if longest is None else longest + 1
    try:
        for number, raw in enumerate(iter(lambda: handle.readline(most), b""), 1):
            if longest is not None and len(raw) > longest:
                raise DataError(
                    f"the line is longer than {longest >> 20} MiB",
                    where=f"{name}:{number}",
                    remedy="take it out: no row that long can be trained on",
                )
            line = raw.decode("utf-8")
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte {error.start + 1} of the line is 0x{error.object[error.start]:02x}",
            where=f"{name}:{number}",
            remedy="save the file as UTF-8",
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the archive is damaged: {error}",
            where=f"{name}:{number + 1}",
            remedy="copy or download it again",
        ) from error


def _json(text: str, name: str, line: int) -> Any:
    """The JSON value of a text that begins at this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        many = error.msg == "Extra data" and error.lineno > 1
        raise DataError(
            f"not valid JSON: {error.msg} (column {error.colno})",
            where=f"{name}:{line + error.lineno - 1}",
            remedy="if it holds one object a line, call it .jsonl" if many else "correct the line",
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise DataError(
            f"not readable JSON: {error}", where=f"{name}:{line}", remedy="correct the line"
        ) from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"a row is an object, this is {type(value).__name__}",
        where=where,
        remedy='write {"prompt": ..., ...}',
    )
