"""What can happen to a file that was written well, given the same file of the checkpoint before."""

from __future__ import annotations

import shutil


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


DAMAGE = {
    "deleted": lambda file, before: file.unlink(),
    "empty": lambda file, before: cut(file, 0),
    "half": lambda file, before: cut(file, file.stat().st_size // 2),
    "a byte short": lambda file, before: cut(file, -1),
    "first bit": lambda file, before: flip(file, 0),
    "middle bit": lambda file, before: flip(file, file.stat().st_size // 2),
    "last bit": lambda file, before: flip(file, file.stat().st_size - 1),
    "of another step": lambda file, before: shutil.copy(before, file),
}
