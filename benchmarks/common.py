"""What the benchmarks share: their arguments, a look at memory, the record of where they ran."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssae.training import cpu_capabilities

RESULTS = Path(__file__).parent / "results"


def parser(description: str, name: str, rounds: int = 5, **whole_numbers: int) -> argparse.ArgumentParser:
    """Arguments ``--rounds``, ``--out`` and a whole number for each of the others, with its default."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for key, default in {**whole_numbers, "rounds": rounds}.items():
        arguments.add_argument(f"--{key}", type=int, default=default)
    arguments.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return arguments


def peak_mebibytes() -> float:
    """Most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss of a child starts at the peak of its parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def write(path: Path, record: dict[str, Any], packages: Sequence[str] = ()) -> None:
    """Write a record with the machine, its load and the versions of Python, ssae, torch, numpy and
    ``packages``.
    """
    machine = {
        "cpu": cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("ssae", "torch", "numpy", *packages)},
        },
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**record, **machine}, indent=2) + "\n", encoding="utf8")
    print(f"written: {path}")
