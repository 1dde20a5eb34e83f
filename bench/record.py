"""Where and with what a figure was measured."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"


def hardware() -> str:
    """Short name of the device: the GPU, else the processor."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpu = Path("/proc/cpuinfo")
        text = cpu.read_text() if cpu.exists() else ""
        found = re.search(r"model name\s*: (.*)", text)
        family = re.search(r"cpu family\s*: (\d+)", text)
        name = (found.group(1) if found else platform.machine()).strip()
        name += f" family {family.group(1)}" if family else ""
        name += " avx512" if "avx512f" in text else ""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def save(claim: str, result: dict[str, Any]) -> Path:
    """Write the record of a claim; returns its path."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = {name: version(name) for name in ("torch", "numpy", "torch-sim-atomistic", "ase")}
    record = {
        "claim": claim,
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit,
        **result,
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{claim}.{hardware()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
