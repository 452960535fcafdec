"""Receipts: complete, valid, and the only source of the numbers that the book prints."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssae
from ssae import receipts
from ssae.datasets import Category
from ssae.receipts import (
    METRICS,
    REQUIRED,
    RunError,
    provenance_table,
    read_receipts,
    receipt_path,
    results_table,
)


def receipt(category="bottle", seed=0, **metrics):
    values = {"image_auroc": 0.9876, "pixel_auroc": 0.95, "pixel_ap": 0.5, "au_pro": 0.9}
    return {
        "dataset": "mvtec_ad",
        "category": category,
        "split_note": "official split: 209 normal training, 20 normal test, 63 defective test images",
        "resolution": 128,
        "preset": "lite",
        "settings": {},
        "seed": seed,
        "metrics": values | metrics,
        "data_sha256": "ab" * 32,
        "code_commit": "c" * 40,
        "device": "a processor",
        "versions": {"torch": "2.15.0"},
        "train_seconds": 90.0,
        "images_per_second": 40.0,
        "created": "2026-11-22T12:00:00+00:00",
    }


def write(folder, value):
    path = folder / receipt_path(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_receipts_are_found_below_a_folder(tmp_path):
    for seed in (1, 0):
        write(tmp_path, receipt(seed=seed))
    write(tmp_path, receipt("pill"))
    assert [(r["category"], r["seed"]) for r in read_receipts(tmp_path)] == [
        ("bottle", 0),
        ("bottle", 1),
        ("pill", 0),
    ]


@pytest.mark.parametrize("key", REQUIRED)
def test_an_incomplete_receipt_is_named(tmp_path, key):
    value = receipt()
    path = write(tmp_path, value)
    del value[key]
    path.write_text(json.dumps(value))
    with pytest.raises(RunError, match=f"{path.name} is no receipt: {key}"):
        read_receipts(tmp_path)


@pytest.mark.parametrize("metrics", [{"au_pro": 1.2}, {"pixel_ap": float("nan")}])
def test_an_impossible_metric_is_refused(tmp_path, metrics):
    write(tmp_path, receipt(**metrics))
    with pytest.raises(RunError, match="no valid metrics"):
        read_receipts(tmp_path)


def test_a_receipt_without_metrics_is_refused(tmp_path):
    write(tmp_path, {**receipt(), "metrics": {}})
    with pytest.raises(RunError, match="ssae evaluate"):
        read_receipts(tmp_path)


def test_the_table_says_what_the_receipts_say():
    one = receipt()
    before = results_table([one])
    assert "| bottle | lite 128 | 1 | 98.8 | 95.0 | 50.0 | 90.0 |" in before
    changed = copy.deepcopy(one)
    changed["metrics"]["pixel_auroc"] = 0.321
    assert "32.1" in results_table([changed])
    assert "32.1" not in before


def test_seeds_give_mean_and_spread():
    table = results_table([receipt(seed=0, au_pro=0.90), receipt(seed=1, au_pro=0.92)])
    assert "| 2 |" in table
    assert "91.0 ± 1.4" in table


def test_a_split_that_is_not_official_is_marked_and_noted():
    note = "not the official split: 243 normal training, 21 normal test, 57 defective test images"
    table = results_table([{**receipt("grid"), "split_note": note}])
    assert "grid (other split)" in table
    assert note in table


def test_provenance_has_a_row_for_each_receipt():
    table = provenance_table([receipt(seed=0), receipt(seed=1)])
    assert table.count("`ccccccc`") == 2
    assert "1.5 min" in table
    assert "heat maps" not in table
    assert "| `ccccccc`, heat maps `ddddddd` |" in provenance_table(
        [{**receipt(), "rescored_commit": "d" * 40}]
    )


def test_committed_receipts_are_whole(root):
    found = [
        (root / "results" / place, value)
        for place in (".", "longer", "adamw", "longer_adamw")
        for value in read_receipts(root / "results" / place / "mvtec_ad")
    ]
    assert {folder.name for folder, _ in found} == {"results", "longer", "adamw", "longer_adamw"}
    for folder, value in found:
        assert (folder / receipt_path(value)).exists(), "a receipt lies at another path than it says"
        assert value["metrics"].keys() >= METRICS.keys()
        assert len(value["data_sha256"]) == 64
        assert not value["code_commit"].endswith("-dirty"), "made from code that is in no commit"


def test_the_page_prints_the_committed_receipts(root, html):
    page = (html / "12_mvtec.html").read_text(encoding="utf8")
    for value in read_receipts(root / "results" / "mvtec_ad"):
        assert value["data_sha256"][:12] in page
    rows = [
        line for line in results_table(read_receipts(root / "results" / "mvtec_ad")).splitlines()[2:] if line
    ]
    for cell in (cell.strip() for row in rows if row.startswith("|") for cell in row.strip("|").split("|")):
        assert cell in page


@pytest.mark.slow
def test_a_changed_receipt_changes_the_chapter(root, tmp_path, monkeypatch):
    """Nothing of the tables is typed in: the chapter run beside other receipts prints those."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name in ("ssae", "results", "weights"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "results" / "mvtec_ad" / "pill" / "lite-128-seed0.json"
    value = json.loads(path.read_text())
    value["metrics"]["pixel_ap"] = 0.1234
    path.write_text(json.dumps(value))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("SSAE_MVTEC_ROOT", raising=False)
    notebook = nbformat.read(root / "book" / "12_mvtec.ipynb", as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    shown = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))
    for results, there in ((root / "results", False), (tmp_path / "results", True)):
        table = results_table(read_receipts(results / "mvtec_ad")).splitlines()
        (row,) = (line for line in table if line.startswith("| pill "))
        assert (row in shown) is there, row


def test_a_data_set_at_the_root_of_a_disk_has_a_name():
    assert receipts.dataset_name(Category("candle", Path("/candle"), 16, ())) == "candle"
    assert receipts.dataset_name(Category("candle", Path("/visa/candle"), 16, ())) == "visa"


def test_the_commit_is_that_of_the_package_and_of_no_repository_around_it(tmp_path):
    package = Path(ssae.__file__).parent
    shutil.copytree(package, tmp_path / "site" / "ssae", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / ".gitignore").write_text("site/\n")
    for command in (["init", "-q"], ["add", ".gitignore"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    code = "from ssae.receipts import code_commit; print(code_commit())"

    def told():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    assert told() == "unknown"
    for command in (["add", "--force", "site"], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *command], check=True)
    commit = told()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    with (tmp_path / "site" / "ssae" / "scoring.py").open("a") as file:
        file.write("# changed\n")
    assert told() == f"{commit}-dirty"
