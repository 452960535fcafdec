"""What made these pages: the ``build-record`` directive prints it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from . import repository
from .freshness import files_under
from .repository import ROOT

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "matplotlib",
    "pillow",
    "safetensors",
    "onnx",
    "jupyter-book",
    "sphinx",
    "myst-nb",
)


def machine() -> list[tuple[str, str]]:
    """Facts about this build and the machine it ran on."""
    cores = os.cpu_count() or 1
    data = "shown, from `SSAE_MVTEC_ROOT`" if os.environ.get("SSAE_MVTEC_ROOT") else "not at hand"
    facts = [
        ("Built", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("Commit", _commit()),
        ("Package", f"ssae {repository.version()}"),
        ("Python", platform.python_version()),
        ("System", f"{platform.system()} {platform.machine()}"),
        ("Processor", f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}"),
        ("Memory", _memory()),
        ("Images of MVTec AD", data),
        ("Mode", "quick (`SSAE_SMOKE`)" if os.environ.get("SSAE_SMOKE") else "full"),
    ]
    return [(name, value) for name, value in facts if value]


def packages() -> list[tuple[str, str]]:
    """Versions of the packages that matter for the numbers."""
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def receipts() -> list[tuple[str, ...]]:
    """A row for each training receipt under ``results``."""
    rows = []
    for path in sorted((ROOT / "results").rglob("*.json")):
        record = _json(path)
        if not isinstance(record, dict) or not {"metrics", "seed", "category"} <= record.keys():
            continue
        metrics = record["metrics"] if isinstance(record["metrics"], dict) else {}
        seconds = record.get("train_seconds")
        rows.append(
            (
                path.parent.relative_to(ROOT / "results").as_posix(),
                str(record.get("dataset", "")).replace("_", " "),
                str(record["category"]).replace("_", " "),
                f"{record.get('preset', '')}, {record.get('resolution', '')} px",
                str(record["seed"]),
                *(_number(metrics.get(key)) for key in ("image_auroc", "pixel_auroc", "au_pro")),
                f"{seconds / 60:.0f} min" if isinstance(seconds, (int, float)) else "",
                str(record.get("device", "")),
                str(record.get("code_commit", ""))[:7],
                str(record.get("created", ""))[:10],
            )
        )
    return [tuple(map(_plain, row)) for row in rows]


def _plain(text: str) -> str:
    """A text from a file, so that Markdown shows it and obeys nothing in it."""
    return re.sub(r"([\\`*<>&\[\]{}$])", r"\\\1", " ".join(text.split()))


def benchmarks() -> list[tuple[str, ...]]:
    """A row for each ratio that a benchmark has recorded under ``benchmarks``."""
    rows: list[tuple[str, ...]] = []
    for path in sorted((ROOT / "benchmarks").rglob("*.json")):
        for key, value in _flat(_json(path)):
            measured = isinstance(value, (int, float)) and not isinstance(value, bool)
            # `results ssae` are shares that one of this package's own ways has of another.
            if "ratio" in key.lower() and measured and not key.startswith(("bars", "results ssae")):
                rows.append((path.stem.replace("_", " "), key.replace("_", " "), f"{value:.2f}"))
    return rows


def speeds() -> list[tuple[str, ...]]:
    """A row for each way to apply a model that ``bench_inference.py`` has timed."""
    measured = _json(ROOT / "benchmarks" / "results" / "inference.json") or {}
    return [
        (
            f"{side} × {side}",
            name,
            f"{way['images_per_second']:.0f}",
            *(f"{way[key]:.1f}" if key in way else "–" for key in ("latency_p50_ms", "latency_p99_ms")),
            f"{way['memory_mib']:.0f}",
            f"{way['share_of_bare_model']:.2f}",
        )
        for side, ways in measured.get("sizes", {}).items()
        for name, way in ways.items()
    ]


def stream() -> list[tuple[str, ...]]:
    """One row: many photographs in one request, from ``bench_stream.py``."""
    record = _json(ROOT / "benchmarks" / "results" / "stream.json")
    if record is None:
        return []
    keys = ("images", "images_per_second", "memory_mib_after_a_tenth", "memory_mib")
    return [tuple(f"{record[key]:,.0f}" for key in keys)]


def training() -> list[tuple[str, ...]]:
    """A row for each way to train that ``bench_training.py`` has timed."""
    rows = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("training*.json")):
        record = _json(path) or {}
        for name, way in record.get("ways", {}).items():
            rows.append(
                (
                    str(record.get("preset", "lite")),
                    f"{record['batch']} of {record['size']} × {record['size']}",
                    {"plain": "eager, float32", "ssae": "as `ssae train`"}.get(name, name),
                    f"{way['images_per_second']:.1f}",
                    f"{way['share_of_matmul_peak']:.2f}",
                    f"{way['memory_mib']:.0f}",
                )
            )
    return rows


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in _flat(inner, f"{prefix} {key}".strip())]
    return [(prefix, value)]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git on this machine
        return ""
    return f"`{done.stdout.strip()}`" if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return ""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


TABLES: dict[str, tuple[tuple[str, ...], Callable[[], list[tuple[str, ...]]]]] = {
    "machine": (("fact", "value"), machine),  # type: ignore[dict-item]
    "packages": (("package", "version"), packages),  # type: ignore[dict-item]
    "receipts": (
        (
            "folder",
            "data",
            "category",
            "model",
            "seed",
            "image AUROC",
            "pixel AUROC",
            "AU-PRO",
            "training",
            "device",
            "commit",
            "date",
        ),
        receipts,
    ),
    "benchmarks": (("benchmark", "ratio", "value"), benchmarks),
    "speeds": (
        ("size", "way", "photographs/s", "p50 [ms]", "p99 [ms]", "memory [MiB]", "of the bare model"),
        speeds,
    ),
    "stream": (
        ("photographs", "photographs/s", "memory after a tenth [MiB]", "at the end [MiB]"),
        stream,
    ),
    "training": (
        ("preset", "batch", "way", "images/s", "of the matmul peak", "memory [MiB]"),
        training,
    ),
}


class BuildRecord(SphinxDirective):
    """``{build-record} machine|packages|receipts|benchmarks|speeds|stream|training``: a table."""

    required_arguments = 1
    option_spec: ClassVar[dict] = {}

    def run(self) -> list[nodes.Node]:
        """Make the table; a sentence where there is nothing to tell."""
        kind = self.arguments[0]
        if kind not in TABLES:
            raise self.error(f"build-record: {kind!r} is none of {', '.join(TABLES)}")
        header, rows_of = TABLES[kind]
        rows = rows_of()
        lines = _table(header, rows) if rows else ["*Nothing has been recorded yet.*"]
        node = nodes.container(classes=["build-record", f"build-record-{kind}"])
        self.state.nested_parse(StringList(lines, source=self.env.docname), 0, node)
        self.env.metadata[self.env.docname]["ssae_build_record"] = "yes"
        return [node]


def _refresh(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> list[str]:
    """Make the tables again whenever any page is, or when what they tell has changed."""
    # Sphinx copies styles and templates only when it writes a page, so their change counts too.
    looks = [
        path.read_bytes() for name in ("_static", "_templates") for path in files_under(ROOT / "book" / name)
    ]
    tables = (packages(), receipts(), benchmarks(), speeds(), stream(), training())
    facts = repr((*tables, [hashlib.sha256(look).hexdigest() for look in looks]))
    if not (added or changed or removed) and getattr(env, "ssae_build_facts", None) == facts:
        return []
    env.ssae_build_facts = facts  # type: ignore[attr-defined]
    return [
        name for name, data in env.metadata.items() if "ssae_build_record" in data and name in env.found_docs
    ]


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.add_directive("build-record", BuildRecord)
    app.connect("env-get-outdated", _refresh)
