"""The command line ``ssae``. Exit codes: 0 done, 1 the input is at fault, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssae import __version__
from ssae.fetch import add_arguments as add_fetch_arguments

OK, INPUT_ERROR, INTERRUPTED = 0, 1, 130

EPILOG = """\
a first run, without any data set:

  ssae data make-textures textures
  ssae train --data textures --category brick --steps 300 --out runs/brick
  ssae evaluate runs/brick
  ssae predict runs/brick textures/brick/test/scratch --out heat
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parser().parse_args(arguments)
    # Imported late, so that --help answers at once.
    from ssae.datasets import DataError
    from ssae.experiment import RunError
    from ssae.fetch import FetchError
    from ssae.metrics import MetricInputError
    from ssae.training import CheckpointError, Interrupted, TrainingDiverged

    try:
        return int(options.run(options))
    except (DataError, FetchError, RunError, MetricInputError, CheckpointError, TrainingDiverged) as error:
        print(f"ssae: {error}", file=sys.stderr)
        return INPUT_ERROR
    except OSError as error:
        print(f"ssae: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return INPUT_ERROR
    except Interrupted as error:
        print(f"ssae: {error}", file=sys.stderr)
        return INTERRUPTED


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

    train = commands.add_parser(
        "train",
        help="train a model on the normal images of one category",
        description="Train on CATEGORY/train/good. The same command again resumes an interrupted run "
        "and does nothing for a finished one.",
    )
    train.add_argument("--data", required=True, metavar="ROOT", help="data set in the MVTec AD folder layout")
    train.add_argument(
        "--category", metavar="NAME", help="category to train on; needed if ROOT holds several"
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
        default=128,
        metavar="N",
        help="side in pixels images are resized to (default 128)",
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=positive_int, metavar="N", help="length of training in steps (default 4000)"
    )
    length.add_argument("--minutes", type=positive_float, metavar="M", help="length of training in minutes")
    train.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of everything random (default 0)"
    )
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    train.add_argument("--device", metavar="NAME", help="cpu or cuda (default: the GPU if there is one)")
    train.set_defaults(run=run_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a run on its test split",
        description="Measure a finished run on the test split, write the metrics into RUN/receipt.json "
        "and print them.",
    )
    evaluate.add_argument("run_dir", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument(
        "--data", metavar="ROOT", help="data set to test on (default: the one of the training)"
    )
    evaluate.add_argument("--json", action="store_true", help="print the receipt as JSON instead of a table")
    evaluate.add_argument("--device", metavar="NAME", help="cpu or cuda (default: the GPU if there is one)")
    evaluate.set_defaults(run=run_evaluate)

    predict = commands.add_parser(
        "predict",
        help="score images and draw heat maps",
        description="Score images with a finished run. Writes a heat map overlay for each and scores.csv "
        "into DIR.",
    )
    predict.add_argument("run_dir", metavar="RUN", help="folder of a finished run")
    predict.add_argument("paths", metavar="PATH", nargs="+", help="image files, or folders of them")
    predict.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    predict.add_argument("--device", metavar="NAME", help="cpu or cuda (default: the GPU if there is one)")
    predict.set_defaults(run=run_predict)

    data = commands.add_parser("data", help="make or check data sets").add_subparsers(
        required=True, metavar="ACTION"
    )
    make = data.add_parser(
        "make-textures",
        help="write the textures that come with the book",
        description="Write the four texture categories of the book in the MVTec AD folder layout. "
        "No download needed.",
    )
    make.add_argument("dir", metavar="DIR", help="folder to write to")
    make.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the textures (default 0)")
    make.set_defaults(run=run_make_textures)
    check = data.add_parser(
        "check",
        help="list everything that is wrong with a data set",
        description="Look at every file of a data set in the MVTec AD folder layout and list every problem "
        "with its mend.",
    )
    check.add_argument("root", metavar="ROOT", help="data set, or one category of it")
    check.set_defaults(run=run_check)
    add_fetch_arguments(
        data.add_parser(
            "fetch",
            help="download and unpack a data set",
            description="State the licence, download the archive or take the one given, verify it, unpack it "
            "safely, and install it whole or not at all.",
        )
    )
    return top


def run_train(options: argparse.Namespace) -> int:
    """``ssae train``."""
    from ssae.datasets import categories
    from ssae.experiment import ExperimentSettings, RunError, train
    from ssae.training import FitSettings

    category = options.category
    if category is None:
        found = categories(options.data)
        if len(found) != 1:
            raise RunError(
                f"{options.data} holds {len(found)} categories; choose one: --category {' | '.join(found)}"
            )
        category = found[0]
    defaults = ExperimentSettings.for_category(category, options.resolution, preset=options.preset)
    steps = options.steps or (None if options.minutes else defaults.fit.steps)
    fit: FitSettings = replace(defaults.fit, steps=steps, minutes=options.minutes, seed=options.seed)
    receipt = train(replace(defaults, fit=fit), options.data, options.out, device(options))
    print(
        f"{Path(options.out)}: {receipt['train_steps']} steps in {receipt['train_seconds']:.0f} s "
        f"({receipt['images_per_second']:.0f} images/s); now: ssae evaluate {options.out}"
    )
    return OK


def run_evaluate(options: argparse.Namespace) -> int:
    """``ssae evaluate``."""
    from ssae.experiment import evaluate

    receipt = evaluate(options.run_dir, options.data, device(options))
    if options.json:
        print(json.dumps(receipt, indent=2))
        return OK
    print(f"{receipt['dataset']} / {receipt['category']}, {receipt['split_note']}")
    print(f"{receipt['preset']} at {receipt['resolution']}, seed {receipt['seed']}")
    for name, value in receipt["metrics"].items():
        print(f"  {name:<18} {value:.4f}")
    return OK


def run_predict(options: argparse.Namespace) -> int:
    """``ssae predict``: 1 if any image could not be read, the others are done nevertheless."""
    from ssae.experiment import predict

    rows, failures = predict(options.run_dir, options.paths, options.out, device(options))
    for row in rows:
        print(f"{'anomalous' if row['anomalous'] else 'normal':<9} {row['score']:.6f}  {row['file']}")
    for message in failures:
        print(f"ssae: {message}", file=sys.stderr)
    found = sum(row["anomalous"] for row in rows)
    print(f"{len(rows)} images, {found} anomalous, {len(failures)} unreadable; see {options.out}")
    return INPUT_ERROR if failures else OK


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


def positive_int(text: str) -> int:
    """An integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
