"""What a run ran on, and how much memory it took."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

PACKAGES = ("truing", "torch", "transformers", "peft", "datasets", "safetensors", "pydantic")


def versions() -> dict[str, str]:
    """Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe() -> dict[str, str]:
    """Processor, cores, memory, accelerator and operating system, as a person would name them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "processor": _processor(),
        "cores": str(cores),
        "threads": str(torch.get_num_threads()),
        "memory": f"{_total_memory() / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "accelerator": "none",
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def arithmetic() -> dict[str, str]:
    """What of the machine decides how numbers round."""
    found = describe()
    return {name: found[name] for name in ("processor", "threads", "accelerator")}


def _processor() -> str:
    """The processor's name and the matrix instructions that decide its speed."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    flags = fields.get("flags", "").split()
    fast = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags][:1]
    return " ".join([fields.get("model name", platform.machine()), *fast])


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reset_peak_memory() -> None:
    """Start a new peak. Where the system cannot, the peak is the whole process's so far."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:  # some containers forbid it; the docstring says what then holds
            return


def peak_memory() -> int:
    """Peak resident memory since the reset, bytes; on CUDA the device's peak is added."""
    import torch

    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 + device
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + device
