"""The peak of this process's memory, between two moments."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: str) -> None:
    """Forget the peak so far. On Linux the kernel's own mark is set back (needs no rights)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR.write_text("5", encoding="ascii")


def peak(device: str) -> int:
    """Bytes at the highest moment since the last reset: resident memory, or the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say VmHWM")


def settle(device: str) -> None:
    """Wait until what was started on the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
