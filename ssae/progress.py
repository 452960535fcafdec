"""A look at a training while it runs: defects drawn on held-out normal images, measured and shown.

The defects share no code with the training corruption, so a number that rises says that the model learns to
find what it was never shown. Explained in chapter 14.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ssae import metrics
from ssae.files import write_atomically
from ssae.plotting import overlay, png
from ssae.scoring import ScoringSettings, heat_map, image_scores
from ssae.training import FitSettings, LogRow

HEADER = "step,seconds,image_auroc,pixel_auroc"
ROW = re.compile(r"(\d+),([\d.]+),[\d.]+,[\d.]+")


class Progress:
    """Measure drawn defects at a few points of a training; to be called with every row of its log.

    Writes ``scores.csv`` and, for each point, a sheet of pictures ``step-N.png`` with one column for each
    example: the defective image, its true defect, the repair, the heat map.

    Parameters
    ----------
    normal
        Held-out normal images ``(N, 3, H, W)`` in [0, 1].
    defective
        Images with a defect, same shape.
    masks
        Their defects, ``(N, H, W)``, bool.
    scoring
        How heat maps become scores.
    fit
        Length of the training.
    folder
        Where to write, made if it is missing.
    applied
        What makes of the model in training the one that is applied, by default the same.
    """

    #: More images than this would take time from the training and hardly change the number.
    IMAGES = 16
    COLUMNS = 6
    #: Shares of the training after which it is measured.
    POINTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __init__(
        self,
        normal: Tensor,
        defective: Tensor,
        masks: Tensor,
        scoring: ScoringSettings,
        fit: FitSettings,
        folder: Path,
        applied: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.images = torch.cat([normal, defective])
        self.masks = torch.cat([torch.zeros_like(masks), masks])
        self.scoring, self.fit, self.folder, self.applied = scoring, fit, folder, applied
        self.reached: float | None = None
        self.rows: list[str] = []

    def __call__(self, model: nn.Module, row: LogRow) -> None:
        """Measure if one of the points was passed since the row before."""
        if self.reached is None:
            self.reached = self._resume(row.step)
        before, self.reached = self.reached, self._share(row.step, row.seconds)
        if self.reached < 1 and any(before < point <= self.reached for point in self.POINTS):
            self.measure(model, row)

    def _share(self, step: int, seconds: float) -> float:
        """Share of the training that is done."""
        if self.fit.steps is not None:
            return step / self.fit.steps
        assert self.fit.minutes is not None
        return seconds / (60 * self.fit.minutes)

    def _resume(self, step: int) -> float:
        """Take over what was measured up to a step, and not what came after the checkpoint that the training
        goes on from; the share of the training that was done at the last of it.
        """
        path = self.folder / "scores.csv"
        text = path.read_text(errors="replace") if path.exists() else ""
        rows = [row for line in text.splitlines() if (row := ROW.fullmatch(line)) and int(row[1]) < step]
        self.rows = [row[0] for row in rows]
        return self._share(int(rows[-1][1]), float(rows[-1][2])) if rows else 0.0

    def measure(self, model: nn.Module, row: LogRow) -> dict[str, float]:
        """Image and pixel AUROC of the drawn defects, written down and drawn."""
        repaired = self._apply(model)
        heat = heat_map(self.images, repaired, self.scoring)
        measured = {
            "image_auroc": metrics.image_auroc(
                image_scores(heat, self.scoring), self.masks.flatten(1).any(1)
            ),
            "pixel_auroc": metrics.pixel_auroc(heat, self.masks),
        }
        name = f"step-{row.step:07d}.png"
        self.rows.append(
            f"{row.step},{row.seconds:.1f},{measured['image_auroc']:.4f},{measured['pixel_auroc']:.4f}"
        )
        table = "\n".join([HEADER, *self.rows, ""]).encode()
        for file, content in ((name, png(self._sheet(repaired, heat))), ("scores.csv", table)):
            try:
                write_atomically(self.folder / file, content)
            except PermissionError:
                # On Windows an open table cannot be replaced, and the training is worth more than it.
                tqdm.write(f"{self.folder / file} could not be written; close it where it is open")
        tqdm.write(
            f"step {row.step}, {row.seconds / 60:.1f} min: of defects drawn on {len(self.images) // 2} "
            f"held-out images, image AUROC {measured['image_auroc']:.3f}, pixel AUROC "
            f"{measured['pixel_auroc']:.3f}; see {self.folder.name}/{name}"
        )
        return measured

    @torch.no_grad()
    def _apply(self, model: nn.Module) -> Tensor:
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        apply = self.applied(model)
        repaired = torch.cat([apply(batch.to(device)).float().cpu() for batch in self.images.split(8)])
        model.train(training)
        return repaired

    def _sheet(self, repaired: Tensor, heat: Tensor) -> np.ndarray:
        count = len(self.images) // 2
        highest = max(float(heat[:count].amax()), 1e-12)
        columns = []
        for index in range(count, count + min(count, self.COLUMNS)):
            image = self.images[index]
            truth = self.masks[index].to(image).expand_as(image)
            blended = torch.from_numpy(overlay(image, heat[index], limits=(highest / 2, 2 * highest)))
            rows = [image, truth, repaired[index].clamp(0, 1), blended.permute(2, 0, 1)]
            columns.append(torch.cat(rows, dim=1))
        return torch.cat(columns, dim=2).permute(1, 2, 0).double().numpy()
