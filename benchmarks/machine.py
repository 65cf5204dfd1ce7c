"""Date, device and versions that a result file says of its measurement."""

import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> dict:
    packages = ("torch", "deepspeed", "transformers", "peft")
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
