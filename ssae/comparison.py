"""Every objective of the book trained on the same data, side by side: the tables of chapters 6 and 7.

``python -m ssae.comparison signals-1 signals-2 noise digits`` trains all rows with several seeds and writes
one receipt for each; the chapters print these, and train single rows themselves with the functions below.

- ``signals-1`` and ``signals-2``: harmonic signals in R^64 on a manifold of dimension 1 and 2, where the
  exact orthogonal projection is known and stands in the table as a row of its own.
- ``noise``: signals of dimension 1 again, noise kept or removed in training against noise in the test.
- ``digits``: the 8 x 8 handwritten digits that scikit-learn ships, one class normal, each class in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ssae.files import write_atomically
from ssae.manifolds import HarmonicSignals
from ssae.metrics import image_auroc, pixel_auroc
from ssae.mlp import Ensemble, LinearAutoencoder, MLPAutoencoder, Residual
from ssae.objectives import (
    Contractive,
    Corruption,
    Denoising,
    Idempotent,
    Masked,
    Objective,
    Reconstruction,
    ReconstructionContractive,
    Sparse,
)
from ssae.projection import conservation, jacobian, principal_angles
from ssae.receipts import code_commit, device_name, now, read_json, versions
from ssae.signals import BlockCorruption, WindowCorruption
from ssae.training import Draw, FitSettings, fit

Map = Callable[[Tensor], Tensor]

#: Both kinds of data are vectors of this length.
SIZE = 64
#: Standard deviation of the noise that the denoising rows remove, that the noise-keeping rows keep, and that
#: the noisy test adds. About an eighth of the root mean square of a signal. The book's own choice.
NOISE = 0.1


@dataclass(frozen=True)
class Row:
    """One trained row of a table: the objective, the length of the network's code, whether it has a skip."""

    objective: Objective
    code: int
    skip: bool = False


@dataclass(frozen=True)
class Budget:
    """How long each row trains; the same for all. The book's own choice.

    Parameters
    ----------
    steps, batch : int
        Optimiser steps, and samples in each step for each seed.
    width : int
        Width of the hidden layers, and of the code where it is no bottleneck.
    learning_rate : float
    """

    steps: int = 1000
    batch: int = 64
    width: int = 96
    learning_rate: float = 3e-3


def rows(corruption: Corruption, bottleneck: int, budget: Budget) -> dict[str, Row]:
    """The trained rows by the names that the tables print. All weights are the book's own choice."""
    masked = Masked(corruption, weight=0.5)
    wide: dict[str, Objective] = {
        "AE": Reconstruction(),
        "sparse": Sparse(weight=0.01),
        "CAE": Contractive(weight=0.1, probes=1),
        "RCAE": ReconstructionContractive(weight=NOISE**2, probes=1),
        "DAE": Denoising(NOISE),
        "DAE, 3x noise": Denoising(3 * NOISE),
        "masked 0.1": Masked(corruption, weight=0.1),
        "masked 0.5": masked,
        "masked 0.9": Masked(corruption, weight=0.9),
        "masked + idempotent": Idempotent(masked, corruption, weight=0.1),
        "masked + kept noise": Masked(corruption, weight=0.5, noise=NOISE),
        "masked + kept noise/2": Masked(corruption, weight=0.5, noise=NOISE / 2),
    }
    table = {name: Row(objective, budget.width) for name, objective in wide.items()}
    return {"AE, bottleneck": Row(Reconstruction(), bottleneck)} | table


def train(row: Row, draw: Draw, seeds: Sequence[int], budget: Budget) -> list[nn.Module]:
    """Train one row with several seeds at once.

    Parameters
    ----------
    row : Row
    draw : callable
        ``draw(generator) -> (len(seeds) * budget.batch, SIZE)``; part k of the batch is for seed k.
    seeds : sequence of int
        Seeds of the initial weights; batches, corruptions and noise derive from the first.
    budget : Budget

    Returns
    -------
    list of nn.Module
        In evaluation mode, one for each seed: :class:`ssae.mlp.MLPAutoencoder`, with a skip in ``Residual``.
    """
    ensemble = Ensemble(
        [
            MLPAutoencoder(
                SIZE,
                row.code,
                hidden=(budget.width,),
                activate_code=row.code >= SIZE,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in seeds
        ]
    )
    settings = FitSettings(steps=budget.steps, learning_rate=budget.learning_rate, seed=seeds[0])
    model = Residual(ensemble) if row.skip else ensemble
    fit(model, draw, row.objective, settings, progress=False)
    return [Residual(member).eval() if row.skip else member for member in ensemble.members()]


def pool_draw(pool: Tensor, count: int) -> Draw:
    """A ``draw`` that picks ``count`` samples of ``pool``, on the device of the model, with replacement."""
    return lambda g: pool[torch.randint(len(pool), (count,), generator=g, device=g.device)]


# Signals: the projection is known.


def harmonic_signals(dim: int) -> HarmonicSignals:
    """The signals of chapters 6 and 7: harmonics 2 and 5, so that a window hides up to 1.5 periods."""
    return HarmonicSignals(dim=dim, length=SIZE, harmonics=(2, 5))


def signal_pool(dim: int, count: int = 8192) -> Tensor:
    """Training signals ``(count, SIZE)`` in float32."""
    return harmonic_signals(dim).sample(count, torch.Generator().manual_seed(1)).float()


class SignalTest:
    """Damaged test signals of known source and known projection, and what is measured on them.

    Parameters
    ----------
    dim : int
        Dimension of the manifold, 1 or 2.
    count : int, default 500
        Number of test signals. Distances to the manifold and Jacobians are taken on the first tenth.
    seed : int, default 2
    """

    def __init__(self, dim: int, count: int = 500, seed: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.manifold = harmonic_signals(dim)
        self.clean = self.manifold.sample(count, generator)
        self.corrupted, self.mask = WindowCorruption()(self.clean, generator)
        self.noise = NOISE * torch.randn(self.clean.shape, generator=generator, dtype=self.clean.dtype)
        self.projected = self.manifold.project(self.corrupted)
        self.few = max(1, count // 10)

    @torch.no_grad()
    def measure(self, f: Map) -> dict[str, float]:
        """All measures of the table; distances are root mean squares over signals and samples of a signal.

        ``f`` maps float64 batches ``(B, SIZE)`` to such.
        """
        output = f(self.corrupted)
        error = (output - self.clean).square().mean(1)
        few = self.clean[: self.few]
        with torch.enable_grad():
            matrices = jacobian(f, few).detach()
        identity = torch.eye(SIZE, dtype=torch.float64)
        angles = principal_angles(matrices, self.manifold.tangent(few))
        exact = (self.projected - self.clean).square().mean(1)
        noisy = self.corrupted + self.noise
        return {
            "to_source": _rms(output - self.clean),
            "to_projection": _rms(output - self.projected),
            "to_manifold": _rms(self.manifold.nearest(output[: self.few]).distance / SIZE**0.5),
            "clean_part": _rms((output - self.clean)[self.mask == 0]),
            "on_manifold": _rms(f(self.clean) - self.clean),
            "idempotence": _rms(f(output) - output),
            "jacobian": matrices.square().sum((1, 2)).mean().item(),
            "jacobian_minus_identity": (matrices - identity).square().sum((1, 2)).mean().item(),
            "tangent_angle": angles[:, 0].rad2deg().mean().item(),
            "conserved": conservation(f, self.corrupted, self.clean, self.mask).holds.double().mean().item(),
            "beats_projection": (error < exact).double().mean().item(),
            "pixel_auroc": self._pixel_auroc(output - self.corrupted),
            "pixel_auroc_noisy": self._pixel_auroc(f(noisy) - noisy),
        }

    @torch.no_grad()
    def measure_under_noise(self, f: Map) -> dict[str, float]:
        """Pixel AUROC at each level of noise in the test, gain of the noise, and ``||J - I||^2``.

        The gain is the share of the noise that ``f`` lets pass on normal signals, by regression of
        ``f(x + e) - f(x)`` on ``e`` at the level ``NOISE``: 1 for the identity, ``d / n`` for the projection.
        """
        few = self.clean[: self.few]
        with torch.enable_grad():
            matrices = jacobian(f, few).detach()
        identity = torch.eye(SIZE, dtype=torch.float64)
        passed = f(self.clean + self.noise) - f(self.clean)
        measured = {
            "jacobian_minus_identity": (matrices - identity).square().sum((1, 2)).mean().item(),
            "gain": ((passed * self.noise).sum() / self.noise.square().sum()).item(),
            "to_source": _rms(f(self.corrupted) - self.clean),
        }
        for level in (0.0, *NOISE_LEVELS):
            noisy = self.corrupted + level / NOISE * self.noise
            measured[f"pixel_auroc_{level}"] = self._pixel_auroc(f(noisy) - noisy)
        return measured

    def _pixel_auroc(self, change: Tensor) -> float:
        return pixel_auroc(change.square()[:, None], self.mask[:, None])


def signal_table(
    dim: int, seeds: Sequence[int], budget: Budget
) -> Iterable[tuple[str, list[dict[str, float]]]]:
    """The rows of ``signals-<dim>`` one by one: name, and the measures of each seed."""
    test = SignalTest(dim)
    pool = signal_pool(dim)
    yield "exact projection", [test.measure(test.manifold.project)]
    yield "PCA", [test.measure(LinearAutoencoder.from_pca(pool.double(), 4))]
    draw = pool_draw(pool, len(seeds) * budget.batch)
    for name, row in rows(WindowCorruption(), 2 * dim, budget).items():
        yield name, [test.measure(model.double()) for model in train(row, draw, seeds, budget)]


# Noise: kept, removed, and met in the test.

#: Levels of noise in training and in the test.
NOISE_LEVELS = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class WithNoise:
    """A corruption, then Gaussian noise of deviation ``sigma`` that is *not* in the target: to be removed."""

    corruption: Corruption
    sigma: float

    def __call__(self, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt a batch ``(B, n)``; the mask is that of the corruption alone."""
        corrupted, mask = self.corruption(clean, generator)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device, dtype=clean.dtype)
        return corrupted + self.sigma * noise.to(clean.device), mask


def noise_rows(budget: Budget) -> dict[str, Row]:
    """The masked objective without noise, with noise kept and to be removed; each also with a skip."""
    corruption = WindowCorruption()
    objectives: dict[str, Objective] = {"no noise": Masked(corruption)}
    for level in NOISE_LEVELS[1:]:
        objectives[f"kept {level}"] = Masked(corruption, noise=level)
        objectives[f"removed {level}"] = Masked(WithNoise(corruption, level))
    plain = {name: Row(objective, budget.width) for name, objective in objectives.items()}
    return plain | {f"skip, {name}": replace(row, skip=True) for name, row in plain.items()}


def noise_table(seeds: Sequence[int], budget: Budget) -> Iterable[tuple[str, list[dict[str, float]]]]:
    """The rows of ``noise`` one by one: name, and the measures of each seed."""
    test = SignalTest(1)
    pool = signal_pool(1)
    yield "exact projection", [test.measure_under_noise(test.manifold.project)]
    draw = pool_draw(pool, len(seeds) * budget.batch)
    for name, row in noise_rows(budget).items():
        yield name, [test.measure_under_noise(model.double()) for model in train(row, draw, seeds, budget)]


# Digits: real data, no projection known.


@dataclass(frozen=True)
class Digits:
    """Grey levels in [0, 1], ``(N, 64)`` float64, and labels 0 to 9; one half of each class to train on."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """The 1,797 handwritten digits of scikit-learn (UCI, "Optical recognition of handwritten digits")."""
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.data) / 16, torch.from_numpy(bunch.target)
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        index = (labels == label).nonzero()[:, 0]
        first[index[: len(index) // 2]] = True
    return Digits(images[first], labels[first], images[~first], labels[~first])


class DigitTest:
    """Test digits of one class, occluded, and of the nine other classes; what is measured on them.

    Parameters
    ----------
    data : Digits
    normal : int
        The class taken for normal.
    seed : int, default 2
    """

    def __init__(self, data: Digits, normal: int, seed: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.clean = data.test[data.test_labels == normal]
        self.others = data.test[data.test_labels != normal]
        self.corrupted, self.mask = BlockCorruption()(self.clean, generator)
        self.noise = NOISE * torch.randn(self.clean.shape, generator=generator, dtype=self.clean.dtype)

    @torch.no_grad()
    def measure(self, f: Map) -> dict[str, float]:
        """All measures of the table; ``f`` maps float64 batches ``(B, SIZE)`` to such."""
        output = f(self.corrupted)
        noisy = self.corrupted + self.noise
        with torch.enable_grad():
            matrices = jacobian(f, self.clean[:20]).detach()
        identity = torch.eye(SIZE, dtype=torch.float64)
        images = torch.cat([self.clean, self.others])
        scores = (f(images) - images).square().sum(1)
        labels = torch.arange(len(images)) >= len(self.clean)
        occluded = (output - self.corrupted).square().sum(1)
        pair_labels = torch.arange(2 * len(self.clean)) >= len(self.clean)
        return {
            "to_source": _rms(output - self.clean),
            "clean_part": _rms((output - self.clean)[self.mask == 0]),
            "on_manifold": _rms(f(self.clean) - self.clean),
            "idempotence": _rms(f(output) - output),
            "jacobian": matrices.square().sum((1, 2)).mean().item(),
            "jacobian_minus_identity": (matrices - identity).square().sum((1, 2)).mean().item(),
            "conserved": conservation(f, self.corrupted, self.clean, self.mask).holds.double().mean().item(),
            "pixel_auroc": self._pixel_auroc(output - self.corrupted),
            "pixel_auroc_noisy": self._pixel_auroc(f(noisy) - noisy),
            "auroc_occlusion": image_auroc(torch.cat([scores[: len(self.clean)], occluded]), pair_labels),
            "auroc_other_digits": image_auroc(scores, labels),
        }

    def _pixel_auroc(self, change: Tensor) -> float:
        return pixel_auroc(change.square()[:, None], self.mask[:, None])


def nearest_sample(samples: Tensor) -> Map:
    """The projection onto a finite set: each point goes to the nearest of ``samples``."""
    return lambda points: samples[torch.cdist(points, samples).argmin(1)] + 0 * points


def digit_table(seeds: Sequence[int], budget: Budget) -> Iterable[tuple[str, list[dict[str, float]]]]:
    """The rows of ``digits`` one by one: name, and for each seed the measures averaged over the classes."""
    data = digits()
    tests = [DigitTest(data, label) for label in range(10)]
    pools = [data.train[data.train_labels == label] for label in range(10)]
    yield "nearest sample", [_mean([t.measure(nearest_sample(p)) for t, p in zip(tests, pools, strict=True)])]
    pca = [LinearAutoencoder.from_pca(pool, 16) for pool in pools]
    yield "PCA", [_mean([t.measure(f) for t, f in zip(tests, pca, strict=True)])]

    def draw(generator: torch.Generator) -> Tensor:
        parts = [pool_draw(pool.float(), budget.batch)(generator) for _ in seeds for pool in pools]
        return torch.cat(parts)

    # One member for each seed and class: all of them train side by side.
    member_seeds = [10 * seed + label for seed in seeds for label in range(10)]
    for name, row in rows(BlockCorruption(), 16, budget).items():
        models = train(row, draw, member_seeds, budget)
        measured = [tests[k % 10].measure(model.double()) for k, model in enumerate(models)]
        yield name, [_mean(measured[k : k + 10]) for k in range(0, len(measured), 10)]


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _mean(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}


# Receipts.

#: Where the committed receipts lie in a checkout of the book.
RECEIPTS = Path(__file__).parents[1] / "results" / "signals"
#: Budget of each table. The digits are few, and fifty networks train at once.
BUDGETS = {
    "signals-1": Budget(),
    "signals-2": Budget(),
    "noise": Budget(),
    "digits": Budget(steps=500, batch=32, width=64),
}


def write_receipt(table: str, seeds: Sequence[int], budget: Budget, folder: Path) -> Path:
    """Train every row of a table and write ``folder/<table>.json``, anew after each row."""
    measured: Iterable[tuple[str, list[dict[str, float]]]]
    if table == "digits":
        measured, trained = digit_table(seeds, budget), rows(BlockCorruption(), 16, budget)
    elif table == "noise":
        measured, trained = noise_table(seeds, budget), noise_rows(budget)
    else:
        dim = int(table.removeprefix("signals-"))
        measured, trained = signal_table(dim, seeds, budget), rows(WindowCorruption(), 2 * dim, budget)
    receipt: dict[str, Any] = {
        "dataset": table,
        "seeds": list(seeds),
        "settings": asdict(budget),
        "noise": NOISE,
        "versions": versions() | {"sklearn": sklearn.__version__},
        "device": device_name(torch.device("cpu")),
        "code_commit": code_commit(),
        "rows": {},
    }
    path = folder / f"{table}.json"
    started = time.monotonic()
    for name, measures in measured:
        entry: dict[str, Any] = {"objective": repr(trained[name].objective)} if name in trained else {}
        entry["measures"] = {key: [round(m[key], 6) for m in measures] for key in measures[0]}
        receipt["rows"][name] = entry
        receipt["seconds"] = round(time.monotonic() - started, 1)
        receipt["created"] = now()
        write_atomically(path, (json.dumps(receipt, indent=1) + "\n").encode())
        print(f"{table}: {name} done after {receipt['seconds']:.0f} s", flush=True)
    return path


def read_table(table: str, folder: Path = RECEIPTS) -> dict[str, Any]:
    """The receipt of a table, one of the keys of ``BUDGETS``.

    Raises
    ------
    FileNotFoundError
        If it was not made yet; the message names the command.
    """
    path = folder / f"{table}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make it with `python -m ssae.comparison {table}`")
    receipt: dict[str, Any] = read_json(path)
    return receipt


def mean_and_spread(receipt: dict[str, Any], row: str, measure: str) -> tuple[float, float]:
    """Mean and sample standard deviation over the seeds; the deviation of a single value is 0."""
    values = receipt["rows"][row]["measures"][measure]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown_table(receipt: dict[str, Any], columns: dict[str, tuple[str, int]]) -> str:
    """A receipt as a Markdown table, ``mean ± standard deviation`` over the seeds.

    Parameters
    ----------
    receipt : dict
        From :func:`read_table`.
    columns : dict
        For each measure its heading and the number of decimals, in the order wanted.
    """
    lines = [
        "| | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for row, entry in receipt["rows"].items():
        cells = []
        for measure, (_, decimals) in columns.items():
            mean, spread = mean_and_spread(receipt, row, measure)
            several = len(entry["measures"][measure]) > 1
            cells.append(f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if several else ""))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: which tables, how many seeds, where to."""
    parser = argparse.ArgumentParser(prog="python -m ssae.comparison", description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--out", type=Path, default=RECEIPTS, help="folder of the receipts")
    options = parser.parse_args(arguments)
    for table in options.tables:
        write_receipt(table, range(options.seeds), BUDGETS[table], options.out)


if __name__ == "__main__":
    main()
