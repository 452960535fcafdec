"""Receipts: what has to be known about a number before it can be trusted.

A receipt is a JSON file beside every measurement: the metrics, and the settings, seed, data, code, device and
versions they came from. The book prints no result that it does not read from one. Explained in chapter 12.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ssae
from ssae.datasets import Category
from ssae.files import write_atomically
from ssae.schema import SchemaError, checked
from ssae.textures import DEFECTS
from ssae.training import cpu_capabilities

# Numbers of images in the official split: normal training, normal test, defective test (Bergmann et al.,
# 2019).
MVTEC_SPLIT = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}


class RunError(ValueError):
    """A run folder is missing, unfinished or was made with other settings; the message names the mend."""


def dataset_name(category: Category) -> str:
    """``"textures"`` for the embedded ones, ``"mvtec_ad"`` for its fifteen categories, else the root folder's
    name.

    A name alone proves nothing: many sets have bottles. It is MVTec AD if there are as many training images,
    or if the root folder is called so.
    """
    root = Path(os.path.abspath(category.root)).parent  # not that of what a link points to
    if category.name in DEFECTS and (root / "manifest.json").exists():
        return "textures"
    if category.name in MVTEC_SPLIT and (
        len(category.train_paths) == MVTEC_SPLIT[category.name][0] or "mvtec" in root.name.casefold()
    ):
        return "mvtec_ad"
    return root.name or category.name  # a folder directly below the root of a disk


def split_note(category: Category) -> str:
    """Whether the split is the official one, to be printed beside every number of it."""
    labels = category.labels
    counts = (len(category.train_paths), int((~labels).sum()), int(labels.sum()))
    text = "{} normal training, {} normal test, {} defective test images"
    official = MVTEC_SPLIT.get(category.name)
    if official is None or dataset_name(category) != "mvtec_ad":
        return text.format(*counts)
    if counts == official:
        return "official split: " + text.format(*counts)
    return f"not the official split: {text.format(*counts)}; official {' / '.join(map(str, official))}"


def device_name(device: torch.device) -> str:
    """What the numbers were computed on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return {
        "ssae": ssae.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def code_commit() -> str:
    """Git commit of the package, ``-dirty`` if it was changed since; ``"unknown"`` outside a checkout."""
    here = Path(ssae.__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        # Installed below somebody's repository, the package is no part of it.
        git("ls-files", "--error-unmatch", Path(ssae.__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    RunError
        If it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


# What every receipt holds, and of what kind; there may be more.
REQUIRED: dict[str, Any] = {
    "dataset": str,
    "category": str,
    "split_note": str,
    "resolution": int,
    "preset": str,
    "settings": dict[str, Any],
    "seed": int,
    "metrics": dict[str, Any],
    "data_sha256": str,
    "code_commit": str,
    "device": str,
    "versions": dict[str, str],
    "train_seconds": float,
    "images_per_second": float,
    "created": str,
}


def receipt_path(receipt: dict[str, Any]) -> Path:
    """Where a receipt is kept below ``results/``:
    ``<dataset>/<category>/<preset>-<resolution>-seed<k>.json``.
    """
    name = f"{receipt['preset']}-{receipt['resolution']}-seed{receipt['seed']}.json"
    return Path(receipt["dataset"]) / receipt["category"] / name


def read_receipts(folder: Path) -> list[dict[str, Any]]:
    """All evaluated receipts below ``folder``, in the order of their paths.

    Raises
    ------
    RunError
        If a file is no receipt, lacks a key, holds a value of another kind or a metric outside [0, 1]; the
        message names the file.
    """
    receipts = []
    for path in sorted(Path(folder).rglob("*-seed*.json")):
        receipt = read_json(path)
        if not isinstance(receipt, dict):
            raise RunError(f"{path} is no receipt: it holds no object")
        missing = [key for key in REQUIRED if key not in receipt]
        if missing:
            raise RunError(f"{path} is no receipt: {', '.join(missing)} missing")
        try:
            for key, kind in REQUIRED.items():
                checked(kind, receipt[key], f"{path}: {key}")
        except SchemaError as error:
            raise RunError(str(error)) from error
        for key in ("dataset", "category", "preset"):
            # They become names of folders and files.
            if (
                not receipt[key].isprintable()
                or not receipt[key].strip(".")
                or set(receipt[key]) & set("/\\")
            ):
                raise RunError(f"{path}: {key} {receipt[key]!a} cannot be the name of a folder")
        for key in ("data_sha256", "code_commit", "rescored_commit"):
            if key in receipt and not re.fullmatch(r"[\w-]+", str(receipt[key])):
                raise RunError(f"{path}: {key} {receipt[key]!a} is no check sum")
        measured = receipt["metrics"]
        # A data set without masks leaves the metrics of pixels out.
        if "image_auroc" not in measured or not all(map(_is_share, measured.values())):
            raise RunError(f"{path} has no valid metrics; run `ssae evaluate` on its run again")
        receipts.append(receipt)
    return receipts


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def plain(text: str) -> str:
    """A text from data, such as the name of a folder, so that Markdown and HTML show it and obey nothing in
    it.
    """
    return re.sub(r"([\\`*<>&|\[\]{}$])", r"\\\1", " ".join(text.split()))


METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "au_pro": "AU-PRO",
}


def results_table(receipts: list[dict[str, Any]]) -> str:
    """Markdown table of the metrics in per cent, one row for each category, preset and resolution.

    Several seeds of one row give the mean and, behind a ±, the standard deviation between them.
    """
    rows = []
    for (category, preset, resolution), group in _grouped(receipts).items():
        cells = metric_cells([r["metrics"] for r in group])
        official = not group[0]["split_note"].startswith("not the official")
        name = plain(category if official else f"{category} (other split)")
        rows.append([name, f"{preset} {resolution}", str(len(group)), *cells])
    notes = [
        plain(f"{category}: {group[0]['split_note']}.")
        for (category, _, _), group in _grouped(receipts).items()
        if group[0]["split_note"].startswith("not the official")
    ]
    table = markdown_table(["category", "model", "seeds", *METRICS.values()], rows)
    return "\n".join([table, "", *notes])


def provenance_table(receipts: list[dict[str, Any]]) -> str:
    """Markdown table of what stands behind each receipt: one row a receipt."""
    lines = [
        "| category | seed | training | images/s | device | torch | code | data (sha256) | made |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in receipts:
        code = f"`{r['code_commit'][:7]}`"
        if "rescored_commit" in r:  # other heat maps since, see `ssae.experiment.rescore`
            code += f", heat maps `{r['rescored_commit'][:7]}`"
        lines.append(
            f"| {plain(r['category'])} | {r['seed']} | {r['train_seconds'] / 60:.1f} min "
            f"| {r['images_per_second']:.0f} | {plain(r['device'])} "
            f"| {plain(r['versions'].get('torch', ''))} | {code} "
            f"| `{r['data_sha256'][:12]}` | {plain(r['created'][:10])} |"
        )
    return "\n".join(lines)


def _grouped(receipts: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for receipt in receipts:
        key = (receipt["category"], receipt["preset"], receipt["resolution"])
        groups.setdefault(key, []).append(receipt)
    return groups


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown table from the texts of its cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def metric_cells(measured: list[dict[str, float]]) -> list[str]:
    """The cells of :data:`METRICS` in a table: one run or several of one setting; a dash where nothing was
    measured.
    """
    return [
        format_percent([values[name] for values in measured]) if all(name in m for m in measured) else "–"
        for name in METRICS
    ]


def format_percent(values: list[float]) -> str:
    """Mean of shares in [0, 1] in per cent; for several, with the standard deviation between them."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"
