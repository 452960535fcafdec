"""The repository itself: its metadata agree with each other, and nothing is in it that must not be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))


@pytest.fixture(scope="module")
def lock(root: Path) -> list[Requirement]:
    lines = (root / "requirements.lock").read_text(encoding="utf8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Text files under version control, or skip outside a checkout."""
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def pinned(lock: list[Requirement], python: str) -> dict[str, str]:
    """Version of every package the lock installs on Linux under one version of Python."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
    }
    chosen = [r for r in lock if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in chosen]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in chosen}


def test_every_line_of_the_lock_pins_one_version(lock):
    for requirement in lock:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None, requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_the_metadata(lock, pyproject, python):
    versions = pinned(lock, python)
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["book"], *extras["test"]]:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"python_version": python}):
            version = versions[canonicalize_name(wanted.name)]
            assert wanted.specifier.contains(version), f"{line}, but the lock has {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_jupyter_book_one_and_a_full_torch(lock, python):
    versions = pinned(lock, python)
    assert versions["jupyter-book"].startswith("1.")
    assert "+" not in versions["torch"], "a build for one kind of machine only"
    assert "torchvision" in versions


def test_environment_follows_the_lock(root):
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert {re.split("[=<>]", entry)[0] for entry in conda} == {"python", "pip"}, (
        "versions belong in the lock"
    )
    assert pip == ["--requirement requirements.lock", "--editable ."]


def test_core_dependencies_leave_a_colab_alone(pyproject):
    """Only lower bounds, so that pip has no reason to replace a torch or numpy that is there."""
    for line in pyproject["project"]["dependencies"]:
        assert all(spec.operator == ">=" for spec in Requirement(line).specifier), line


# What Google's Colab had installed in August 2025 (Python 3.12); later ones only have newer.
COLAB = {
    "torch": "2.8.0+cu126",
    "torchvision": "0.23.0+cu126",
    "numpy": "2.0.2",
    "scipy": "1.16.1",
    "scikit-learn": "1.6.1",
    "scikit-image": "0.25.2",
    "matplotlib": "3.10.0",
    "pillow": "11.3.0",
    "safetensors": "0.6.2",
    "tqdm": "4.67.1",
    "ipywidgets": "7.7.1",
}


def test_a_colab_has_what_the_package_needs_but_for_anywidget(pyproject):
    wanted = {r.name: r.specifier for r in map(Requirement, pyproject["project"]["dependencies"])}
    assert set(wanted) - set(COLAB) == {"anywidget"}
    for name, version in COLAB.items():
        assert wanted[name].contains(version), f"pip would replace {name} {version} on Colab"


def test_importing_the_package_is_light(root):
    code = "import sys, ssae; print(sorted({'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_agree(root):
    import ssae

    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf8"))
    assert citation["version"] == ssae.__version__
    assert citation["cff-version"] == "1.2.0"


def test_licences_are_whole(root):
    assert "Permission is hereby granted, free of charge" in (root / "LICENSE").read_text(encoding="utf8")
    text = (root / "LICENSE-text").read_text(encoding="utf8")
    assert [int(n) for n in re.findall(r"^Section (\d) --", text, re.MULTILINE)] == list(range(1, 9))


# In pieces, so that this file does not name what it looks for.
HOSTS = ["py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js.org", "deb.debian" + ".org"]
HOSTS += ["download.py" + "torch.org"]
MACHINE = re.compile(
    r"(?:^|[^A-Za-z.])/(?:wo" + r"rk|fa" + r"rm|home|Users)/|/tmp/ba" + r"sh_jobs", re.MULTILINE
)
BINARY = {".png", ".jpg", ".webp", ".safetensors", ".onnx", ".wasm", ".woff2", ".ico", ".npz"}


def test_the_readme_names_the_chapters_as_they_are(root):
    readme = (root / "README.md").read_text(encoding="utf8")
    for path in sorted((root / "book").glob("[01]*.md")):
        title = re.search("^# (.*)$", path.read_text(encoding="utf8"), re.MULTILINE)[1]
        assert f"{int(path.name[:2])}. [{title}](book/{path.name})" in readme


def test_every_exercise_is_listed_and_has_a_solution(root):
    chapters = "\n".join(path.read_text(encoding="utf8") for path in sorted((root / "book").glob("[01]*.md")))
    exercises = re.findall(r"^`{3,}{exercise(?:-start)?} (.*)\n:label: (ex-[\w-]+)$", chapters, re.MULTILINE)
    assert len(exercises) > 40
    assert len(exercises) == len(re.findall(r"^:label: ex-", chapters, re.MULTILINE))
    listed = (root / "book" / "solutions.md").read_text(encoding="utf8")
    assert [(title, label) for label, title in re.findall(r"{ref}`(ex-[\w-]+)`: (.*)", listed)] == exercises
    for _, label in exercises:
        assert re.search(rf"{{solution(-start)?}} {label}$", chapters, re.MULTILINE), label


def test_no_registry_and_no_path_of_a_machine_is_named(tracked, root):
    for path in tracked:
        if path.suffix in BINARY:
            continue
        text = path.read_text(encoding="utf8")
        where = path.relative_to(root)
        for host in HOSTS:
            assert host not in text, f"{where} names the registry {host}"
        found = MACHINE.search(text)
        assert found is None, f"{where} names a path of a machine: {found[0]!r}"


def test_files_stay_small(tracked, root):
    heavy = {str(p.relative_to(root)): p.stat().st_size for p in tracked if p.stat().st_size > 3_000_000}
    assert not heavy
    weights = sum(p.stat().st_size for p in tracked if p.is_relative_to(root / "weights"))
    assert weights < 10_000_000


def test_notebooks_are_committed_without_outputs(tracked):
    for path in tracked:
        if path.suffix == ".ipynb":
            notebook = json.loads(path.read_text(encoding="utf8"))
            assert all(not cell.get("outputs") for cell in notebook["cells"]), path


def test_no_image_of_a_foreign_data_set_is_committed(tracked, root):
    """The pictures of this repository are its own."""
    endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".svg", ".avif"}
    pictures = {p.relative_to(root).as_posix() for p in tracked if p.suffix.lower() in endings}
    assert pictures == {f"book/_static/{name}" for name in ("cover.png", "favicon.svg", "logo.svg")}


@pytest.mark.slow
def test_lint(root):
    """Style and types, as `make lint` checks them."""
    for command in (["ruff", "check", "."], ["mypy"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_leaves_a_conda_environment_that_is_too_old_to_conda(root: Path, tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    command = ["make", "--always-make", f"VENV={tmp_path}", f"{tmp_path}/.ready"]
    made = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert made.returncode != 0
    assert "conda env update --file environment.yml, then touch" in made.stderr
    assert not (tmp_path / "pyvenv.cfg").exists()
