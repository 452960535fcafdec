"""The command line ``ssae``. Exit codes: 0 done, 1 the input is at fault, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import glob
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from ssae import __version__
from ssae.fetch import add_arguments as add_fetch_arguments

OK, INPUT_ERROR, INTERRUPTED = 0, 1, 130

# What to do about what the file system says.
MENDS = {
    errno.EACCES: "; close it where it is open, ask for permission, or name another folder",
    errno.EPERM: "; close it where it is open, ask for permission, or name another folder",
    errno.EROFS: "; name a folder on a disk that can be written",
    errno.ENOSPC: "; make room on the disk, or name another",
    errno.ENOENT: "; look for a typing error in the name, and whether the disk is there",
    errno.ENOTDIR: "; a file stands where a folder is needed: name another folder",
    errno.EEXIST: "; a file stands where a folder is needed: name another folder",
    errno.ENAMETOOLONG: "; give a shorter name",
}

EPILOG = """\
with photographs of your own, good parts only in my_parts:

  ssae train --data my_parts --minutes 20 --out runs/my_parts
  ssae predict runs/my_parts new_photographs --out found

a first run, without any data set:

  ssae data make-textures textures
  ssae train --data textures --category brick --steps 300 --out runs/brick
  ssae evaluate runs/brick
  ssae predict runs/brick textures/brick/test/scratch --out heat

training on two GPUs of this machine, or two processes where there is none:

  torchrun --nproc-per-node 2 -m ssae.cli train --data my_parts --minutes 20 --out runs/my_parts
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        # Imported late, so that --help answers at once; it takes seconds, in which one may change one's mind.
        from ssae.datasets import DataError
        from ssae.distributed import FirstProcessFailed, ProcessError
        from ssae.experiment import RunError
        from ssae.fetch import FetchError
        from ssae.metrics import MetricInputError
        from ssae.training import CheckpointError, Interrupted, TrainingDiverged
    except KeyboardInterrupt:
        print("ssae: stopped", file=sys.stderr)
        return INTERRUPTED

    if options.verbose:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("ssae").setLevel(logging.INFO)
    # A file may have any name: it is shown as far as the terminal can, and read as it comes.
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if os.name == "nt" and isinstance(sys.stdin, io.TextIOWrapper):  # lists are saved in UTF-8, with its mark
        sys.stdin.reconfigure(encoding="utf-8-sig")
    try:
        with logging_redirect_tqdm() if options.verbose else nullcontext():
            return int(options.run(options))
    except FirstProcessFailed:
        return INPUT_ERROR
    except (
        DataError,
        FetchError,
        RunError,
        MetricInputError,
        CheckpointError,
        TrainingDiverged,
        ProcessError,
    ) as error:
        complain(error)
        return INPUT_ERROR
    except OSError as error:
        mend = MENDS.get(error.errno or 0, "")
        complain(f"{error.filename or 'file system'}: {error.strerror or error}{mend}")
        return INPUT_ERROR
    except KeyboardInterrupt as error:
        complain(error if isinstance(error, Interrupted) else "stopped")
        return INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            smaller = ", or choose a lower --resolution or fewer photographs"
            complain(f"the memory is full; end what else runs{smaller * hasattr(options, 'resolution')}")
            return INPUT_ERROR
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines()[0]
        complain(f"torch cannot compile here ({reason}); install a C++ compiler, or leave --compile away")
        return INPUT_ERROR


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, that of a GPU, or that of torch on the CPU."""
    named = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)


def complain(message: object) -> None:
    """Say on standard error what is wrong, and in which process if there are several."""
    from ssae.distributed import rank

    print(f"ssae: process {rank()}: {message}" if rank() else f"ssae: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="ssae",
        description="Visual anomaly detection with an autoencoder that learns to repair normal images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ssae {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    talk = argparse.ArgumentParser(add_help=False)
    talk.add_argument(
        "-v", "--verbose", action="store_true", help="say on standard error what is read, done and written"
    )
    where = argparse.ArgumentParser(add_help=False, parents=[talk])
    where.add_argument("--device", metavar="NAME", help="cpu or cuda (default: the GPU if there is one)")

    train = commands.add_parser(
        "train",
        parents=[where],
        help="train a model on photographs of good parts",
        description="Train on photographs of good parts: any folder of them, or CATEGORY/train/good of a "
        "data set in the MVTec AD layout. Of a bare folder a fifth, at most 500, is held out to set the "
        "threshold, and settings that are not given are chosen and explained. The same command again resumes "
        "an interrupted run and does nothing for a finished one. Watch RUN/progress to see whether it will "
        "work. Started by torchrun, several processes share each batch.",
    )
    train.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="photographs of good parts (png, jpg, bmp, tif, webp; any size; one level of subfolders is "
        "read too), or a data set in the MVTec AD layout",
    )
    train.add_argument(
        "--category", metavar="NAME", help="category to train on; needed if FOLDER holds several"
    )
    train.add_argument(
        "--preset",
        choices=["lite", "full"],
        default="lite",
        help="model: lite for CPUs (default), full for GPUs",
    )
    train.add_argument(
        "--resolution",
        type=positive_int,
        metavar="N",
        help="side in pixels images are resized to (default 128, less for smaller photographs)",
    )
    train.add_argument(
        "--symmetry",
        choices=["auto", "none", "flips", "rotations", "all"],
        default="auto",
        help="how a good part may lie and still be good: mirrored both ways, turned by quarters, or both "
        "(default: only what the photographs show)",
    )
    train.add_argument(
        "--texture",
        choices=["auto", "yes", "no"],
        default="auto",
        help="whether the photographs show a surface that looks alike everywhere, such as cloth (default: "
        "what the photographs show)",
    )
    train.add_argument(
        "--foreign",
        metavar="FOLDER",
        help="photographs of textures that have nothing to do with the parts, to damage images with in "
        "training, for instance the Describable Textures Dataset (default: computed ones)",
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=positive_int, metavar="N", help="length of training in steps (default 8000)"
    )
    length.add_argument("--minutes", type=positive_float, metavar="M", help="length of training in minutes")
    train.add_argument(
        "--seed", type=seed_number, default=0, metavar="S", help="seed of everything random (default 0)"
    )
    train.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="what to compute in: bfloat16 is faster where the device has it, which auto finds out; "
        "float32 comes nearer to the same weights on other machines (default auto)",
    )
    train.add_argument(
        "--compile",
        action="store_true",
        help="let torch compile the model first: about half a minute that a training of ten minutes or more "
        "wins back; needs a C++ compiler, on a GPU Triton",
    )
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    train.set_defaults(run=run_train_together)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[where],
        help="measure a run on its test split",
        description="Measure a finished run on the test split, write the metrics into RUN/receipt.json "
        "and print them.",
    )
    evaluate.add_argument("run_dir", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument(
        "--data",
        metavar="ROOT",
        help="data set in the MVTec AD layout, or one category of it, to test on (default: the one of the "
        "training)",
    )
    evaluate.add_argument("--category", metavar="NAME", help="category of ROOT to test on")
    evaluate.add_argument("--json", action="store_true", help="print the receipt as JSON instead of a table")
    evaluate.set_defaults(run=run_evaluate)

    decide = argparse.ArgumentParser(add_help=False)
    decide.add_argument(
        "--false-alarms",
        type=share,
        default=0.0,
        metavar="P",
        help="per cent of the held-out good photographs that may score above the threshold (default 0); more "
        "finds fainter defects and raises more false alarms",
    )
    predict = commands.add_parser(
        "predict",
        parents=[decide, where],
        help="score photographs, draw heat maps and masks, write a report",
        description="Score photographs with a finished run. Writes into DIR: heat_maps/ and masks/, one PNG "
        "for each photograph; scores.csv; scores.jsonl for programs; and report.html, to be opened in a "
        "browser. A file that cannot be read is named and passed over, and the exit code is 1.",
    )
    predict.add_argument("run_dir", metavar="RUN", help="folder of a finished run")
    predict.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="photographs, or folders that are searched with all folders in them; - reads paths from "
        "standard input, one a line",
    )
    predict.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    predict.add_argument(
        "--maps",
        action="store_true",
        help="write raw heat maps too: float32 TIFF, as MVTec's evaluation reads",
    )
    predict.set_defaults(run=run_predict)

    export = commands.add_parser(
        "export",
        parents=[decide, talk],
        help="write a run as one ONNX file",
        description="Write a finished run as ONNX: photographs of any size go in, heat maps, scores and "
        "verdicts come out. Compared with torch before it is kept.",
    )
    export.add_argument("run_dir", metavar="RUN", help="folder of a finished run")
    export.add_argument("--out", required=True, metavar="FILE", help="file to write, for instance model.onnx")
    export.set_defaults(run=run_export)

    sweep = commands.add_parser(
        "sweep",
        parents=[talk],
        help="train and measure many runs",
        description="Train and evaluate every change of GRID on every category with every seed, each as a "
        "run in a folder of its own below DIR. Started again, it passes over what is finished and goes on "
        "with the rest. Prints a table at the end; the exit code is 1 if a run failed.",
    )
    sweep.add_argument("grid", metavar="GRID", help="JSON file: categories, seeds, base, changes, each")
    sweep.add_argument("--data", required=True, metavar="ROOT", help="data set in the MVTec AD folder layout")
    sweep.add_argument("--out", required=True, metavar="DIR", help="folder of all runs")
    sweep.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="runs at a time (default 1)")
    sweep.add_argument(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="submit to a Slurm cluster through submitit instead, for instance "
        "slurm_partition=gpu,gpus_per_node=1,timeout_min=120",
    )
    sweep.add_argument(
        "--receipts", metavar="DIR2", help="write all receipts to DIR2/CHANGE/CATEGORY-seedK.json too"
    )
    sweep.set_defaults(run=run_sweep)

    data = commands.add_parser("data", help="make or check data sets").add_subparsers(
        required=True, metavar="ACTION"
    )
    make = data.add_parser(
        "make-textures",
        parents=[talk],
        help="write the textures that come with the book",
        description="Write the four texture categories of the book in the MVTec AD folder layout. "
        "No download needed.",
    )
    make.add_argument("dir", metavar="DIR", help="folder to write to")
    make.add_argument(
        "--seed", type=seed_number, default=0, metavar="S", help="seed of the textures (default 0)"
    )
    make.set_defaults(run=run_make_textures)
    check = data.add_parser(
        "check",
        parents=[talk],
        help="list everything that is wrong with a data set",
        description="Look at every file of a data set in the MVTec AD folder layout, or of a bare folder of "
        "photographs, and list every problem with its mend.",
    )
    check.add_argument(
        "root", metavar="ROOT", help="data set, one category of it, or a folder of photographs"
    )
    check.set_defaults(run=run_check)
    add_fetch_arguments(
        data.add_parser(
            "fetch",
            parents=[talk],
            help="download and unpack a data set",
            description="State the licence, download the archive or take the one given, verify it, unpack it "
            "safely, and install it whole or not at all.",
        )
    )
    return top


def run_train_together(options: argparse.Namespace) -> int:
    """``ssae train``, by one process or by those that ``torchrun`` started."""
    from ssae.distributed import process_group

    with process_group():
        return run_train(options)


def run_train(options: argparse.Namespace) -> int:
    """``ssae train``."""
    from ssae import automatic
    from ssae.datasets import data_sha256, open_category, unused_copies, unused_files
    from ssae.experiment import ExperimentSettings, RunError, split, texture_settings, train
    from ssae.models import preset_settings
    from ssae.receipts import dataset_name
    from ssae.scoring import false_alarms
    from ssae.training import FitSettings

    where = device(options)
    network = preset_settings(options.preset)
    if options.resolution is not None and options.resolution % network.stride:
        raise RunError(
            f"--resolution must be a multiple of {network.stride}, got {options.resolution}; "
            f"try {network.nearest_side(options.resolution)}"
        )
    category = open_category(options.data, options.category, options.resolution or 128)
    for problem in unused_copies(category) if category.test_paths else unused_files(category):
        print(problem)
    if category.test_paths and dataset_name(category) in ("textures", "mvtec_ad"):
        settings = ExperimentSettings.for_category(category.name, category.resolution, preset=options.preset)
        if options.symmetry != "auto":
            settings = replace(settings, symmetry=options.symmetry)
        if options.texture != "auto":
            settings = replace(settings, **texture_settings(options.texture == "yes", settings.resolution))
    else:
        if not category.test_paths:
            kept, held = split(category, options.seed)
            known = false_alarms(len(held), 0).high
            if len(category.train_paths) < automatic.ENOUGH:
                print(f"{len(category.train_paths)} photographs are few: fifty are a start")
            print(
                f"{len(category.train_paths)} photographs of good parts: {len(kept)} to learn from, "
                f"{len(held)} held out to set the threshold (false alarms will be known to lie below "
                f"{100 * known:.0f} %)"
            )
        settings, reasons = automatic.choose(
            category, options.resolution, options.symmetry, options.texture, options.preset
        )
        print("\n".join(reasons))
        category = replace(category, resolution=settings.resolution)
    steps = options.steps or (None if options.minutes else settings.fit.steps)
    fit: FitSettings = replace(
        settings.fit,
        steps=steps,
        minutes=options.minutes,
        seed=options.seed,
        precision=options.precision,
        compile=options.compile,
    )
    source = category.root.parent if category.test_paths else category
    settings = replace(settings, fit=fit)
    finished = (Path(options.out) / "receipt.json").exists()
    receipt = train(settings, source, options.out, where, watch=True, textures=options.foreign)
    if finished and not category.test_paths and receipt["data_sha256"] != data_sha256(category):
        raise RunError(
            f"{options.out} is finished, and was trained on other photographs than {options.data} holds; "
            "choose a new folder to train on these"
        )
    after = "evaluate" if category.test_paths else "predict"
    print(
        f"{Path(options.out)}: {receipt['train_steps']} steps in {receipt['train_seconds']:.0f} s "
        f"({receipt['images_per_second']:.0f} images/s); now: ssae {after} {options.out}"
        + ("" if category.test_paths else " PHOTOGRAPHS --out FOLDER")
    )
    return OK


def run_evaluate(options: argparse.Namespace) -> int:
    """``ssae evaluate``."""
    from ssae.experiment import evaluate

    receipt = evaluate(options.run_dir, options.data, device(options), options.category)
    if options.json:
        print(json.dumps(receipt, indent=2))
        return OK
    tested = receipt.get("tested_on", receipt)
    print(f"{tested['dataset']} / {tested['category']}, {tested['split_note']}")
    print(f"{receipt['preset']} at {receipt['resolution']}, seed {receipt['seed']}")
    for name, value in receipt["metrics"].items():
        print(f"  {name:<18} {value:.4f}")
    for kind, of in receipt["defects"].items():
        pixels = f", pixel AUROC {of['pixel_auroc']:.4f}" if "pixel_auroc" in of else ""
        print(f"  {kind}: {of['images']} images, image AUROC {of['image_auroc']:.4f}{pixels}")
    if "au_pro" not in receipt["metrics"]:
        print("no masks, so what is found where was not measured")
    return OK


def run_predict(options: argparse.Namespace) -> int:
    """``ssae predict``: 1 if any file could not be read, the others are done nevertheless."""
    from ssae.experiment import RunError, load_run
    from ssae.inspection import Decision, Failure, inspect

    run = load_run(options.run_dir, device(options))
    decision = Decision.of(run, options.false_alarms)
    paths: Iterable[str] = [path for given in options.paths for path in expanded(given)]
    if "-" in options.paths:
        if len(options.paths) > 1:
            raise RunError("- reads all paths from standard input; give either - or paths")
        paths = map(given_path, filter(str.strip, sys.stdin))
    count = anomalous = failures = 0
    for found in inspect(run, paths, options.out, decision, options.maps):
        if isinstance(found, Failure):
            failures += 1
            print(f"ssae: {found.message}", file=sys.stderr)
            continue
        count += 1
        anomalous += found.anomalous
        print(f"{'anomalous' if found.anomalous else 'normal':<9} {found.score:.6f}  {printable(found.file)}")
    print(decision)
    print(f"{count} photographs, {anomalous} anomalous, {failures} unreadable; see {options.out}/report.html")
    return INPUT_ERROR if failures else OK


def expanded(path: str) -> list[str]:
    """What a pattern stands for: Windows leaves that to the program."""
    found = sorted(glob.glob(path)) if re.search("[*?]", path) and not os.path.lexists(path) else []
    return found or [path]


def given_path(line: str) -> str:
    """A path from a line of standard input."""
    from ssae.experiment import RunError

    if "\0" in line:
        raise RunError(
            "standard input has null bytes; give one path a line, in UTF-8 (find -print, not -print0; in "
            "PowerShell, Out-File -Encoding utf8)"
        )
    return line.rstrip("\n")


def run_export(options: argparse.Namespace) -> int:
    """``ssae export``."""
    import torch

    from ssae.experiment import RunError, load_run
    from ssae.export import export_run

    run = load_run(options.run_dir, torch.device("cpu"))
    try:
        gap = export_run(run, options.out, options.false_alarms)
    except ImportError as error:
        raise RunError(f"an export needs {error.name}: pip install onnx onnxscript") from error
    except ValueError as error:
        raise RunError(str(error)) from error
    checked = "onnxruntime is not installed, so it was not run" if gap != gap else f"off torch by {gap:.1g}"
    print(f"{options.out}: {Path(options.out).stat().st_size / 1e6:.1f} MB, {checked}")
    return OK


def run_sweep(options: argparse.Namespace) -> int:
    """``ssae sweep``: 1 if any run failed, the others are done nevertheless."""
    from ssae.sweep import (
        Grid,
        cluster_parameters,
        jobs_of,
        keep_receipts,
        sweep,
        sweep_on_slurm,
        sweep_table,
    )

    jobs = jobs_of(Grid.read(options.grid), options.data, options.out)
    if options.slurm is None:
        done, failed = sweep(jobs, options.jobs)
    else:
        parameters = cluster_parameters(options.slurm)
        done, failed = sweep_on_slurm(jobs, Path(options.out) / "slurm", **parameters)
    if options.receipts is not None:
        keep_receipts(done, options.receipts)
    print(sweep_table([(job.change, receipt) for job, receipt in done]))
    for job, error in failed:
        print(f"ssae: {job.name}: {error}", file=sys.stderr)
    return INPUT_ERROR if failed else OK


def run_make_textures(options: argparse.Namespace) -> int:
    """``ssae data make-textures``."""
    from ssae.textures import make_textures

    print(f"wrote {make_textures(options.dir, seed=options.seed)}")
    return OK


def run_check(options: argparse.Namespace) -> int:
    """``ssae data check``: 1 if there is an error, warnings alone pass."""
    from ssae.datasets import check

    problems = check(options.root)
    for problem in problems:
        print(problem)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{options.root}: {errors} errors, {len(problems) - errors} warnings")
    return INPUT_ERROR if errors else OK


def device(options: argparse.Namespace) -> Any:
    """The device asked for, or the best there is."""
    import torch

    from ssae.experiment import RunError
    from ssae.training import default_device

    if options.device is None:
        return default_device()
    try:
        return torch.zeros(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}") from error


def printable(text: str) -> str:
    """``text`` without what a terminal could not show or would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def share(text: str) -> float:
    """Per cent as a share in [0, 1)."""
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 100 per cent, got {text}")
    return value / 100


def positive_int(text: str) -> int:
    """An integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def seed_number(text: str) -> int:
    """An integer from 0 on that fits into 63 bits."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must not be negative, and less than 2^63, got {text}")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
