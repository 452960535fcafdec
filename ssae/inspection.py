"""Apply a run to photographs, as many as there are, by workers side by side.

Each worker takes a few photographs all the way, from decoding through the model to writing, so that no
processor waits for another and never more than a few photographs are held in memory. Explained in chapter 14.
"""

from __future__ import annotations

import csv
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ssae.datasets import DataError, photo_tensor, read_photo, tree_files, usable_cores
from ssae.experiment import Run, calibrate
from ssae.files import naming
from ssae.plotting import HEAT
from ssae.receipts import RunError
from ssae.report import Report
from ssae.scoring import FalseAlarms, image_scores

A = TypeVar("A")
B = TypeVar("B")

#: Photographs that a worker takes at a time: a GPU needs a batch to be busy, a processor has caches to fit.
BATCH, BATCH_ON_CPU = 8, 4
#: Longest side in pixels of a heat map picture; a photograph from a camera is shown smaller.
PICTURE = 1024
FOLDERS = ("heat_maps", "masks", "maps")


@dataclass(frozen=True)
class Finding:
    """What was found on one photograph.

    Parameters
    ----------
    file
        The photograph.
    score, threshold, anomalous
        Its anomaly score, and whether that is above the threshold.
    marked
        Share of its pixels in the mask, in [0, 1].
    heat_map, mask, map
        Files written, relative to the output folder; ``map`` is empty unless raw maps were asked for.
    """

    file: str
    score: float
    threshold: float
    anomalous: bool
    marked: float
    heat_map: str
    mask: str
    map: str = ""


@dataclass(frozen=True)
class Failure:
    """A file that could not be read, and why."""

    file: str
    message: str


@dataclass(frozen=True)
class Decision:
    """Thresholds of image and pixel scores, and the false alarms to expect of the former."""

    image: float
    pixel: float
    false_alarms: FalseAlarms

    @classmethod
    def of(cls, run: Run, rate: float = 0.0) -> Decision:
        """From the images the run held out, see :meth:`ssae.scoring.Calibration.thresholds`."""
        return cls(*calibrate(run).thresholds(rate))

    def __str__(self) -> str:
        f = self.false_alarms
        return (
            f"threshold {self.image:.6f}: {f.above} of {f.images} held-out good photographs score higher. Of "
            f"good ones to come, taken in the same way, it will flag {100 * f.expected:.1f} %, give or take: "
            f"between {100 * f.low:.1f} and {100 * f.high:.1f} % with {100 * f.confidence:.0f} % confidence"
        )


@dataclass(frozen=True)
class _Photo:
    """A decoded photograph: the model's input ``(3, R, R)``, a picture to draw on, and its own size."""

    file: Path
    name: str
    pixels: Tensor
    picture: Image.Image
    size: tuple[int, int]


def inspect(
    run: Run,
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    decision: Decision | None = None,
    maps: bool = False,
    workers: int | None = None,
) -> Iterator[Finding | Failure]:
    """Score photographs one after the other and write what was found; work is done as the result is consumed.

    Writes into ``out``: ``heat_maps/NAME.png``, the photograph with what is wrong laid over it;
    ``masks/NAME.png`` at the photograph's own size, 255 where a pixel is above the pixel threshold;
    ``scores.csv``; ``scores.jsonl`` with the field names of anomalib's predictions; ``report.html``, one file
    to be opened in a browser. The names keep the subfolders of a given folder.

    Parameters
    ----------
    run
        See :func:`ssae.experiment.load_run`.
    paths
        Image files, or folders of them, which are searched with all folders inside.
    out
        Folder to write to, made if it is missing.
    decision
        Thresholds; by default the largest values among the images the run held out.
    maps
        Whether to write raw heat maps too, ``maps/NAME.tiff`` in float32 at the photograph's own size: the
        form that the evaluation code of MVTec AD reads.
    workers
        Threads that work side by side; by default one for each processor that is granted, at most 8. They
        share the threads that torch would use.

    Yields
    ------
    Finding or Failure
        For each file in turn. A file that cannot be read stops nothing.

    Raises
    ------
    RunError
        If no path is given, ``out`` lies where the photographs are, or a given folder holds no image.
    OSError
        If ``out`` cannot be written.
    """
    out = Path(out)
    items = files(paths, out)
    first = list(islice(items, 1))  # what is wrong with the request shows before anything is written
    if not first:
        raise RunError("no file was named; on standard input, give one path a line")
    decision = decision or Decision.of(run)
    workers = workers or min(8, usable_cores())
    for folder in FOLDERS[: 3 if maps else 2]:
        (out / folder).mkdir(parents=True, exist_ok=True)
    report = Report(out / "report.html", str(decision))

    def process(batch: list[tuple[Path, str]]) -> list[Finding | Failure]:
        photos = [_decode(*item, resolution=run.settings.resolution) for item in batch]
        for (_, name), photo in zip(batch, photos, strict=True):
            if isinstance(photo, Failure):  # results of an earlier request must not pass for its own
                _forget(out, name, FOLDERS)
        return [write(item) for item in _scored(run, photos)]

    def write(item: tuple[_Photo, Tensor, float] | Failure) -> Finding | Failure:
        if isinstance(item, Failure):
            report.failure(item.file, item.message)
            return item
        photo, heat, score = item
        if not maps:
            _forget(out, photo.name, FOLDERS[2:])
        finding, drawn = _write(photo, heat.numpy(), score, decision, out, maps)
        report.finding(finding.file, finding.score, finding.anomalous, finding.marked, photo.picture, drawn)
        return finding

    batches = in_batches(chain(first, items), BATCH_ON_CPU if run.device.type == "cpu" else BATCH)
    # A layer split over all processors ends when the slowest is done; photographs side by side wait for none.
    # The number of torch's threads belongs to the thread that sets it, and new threads inherit the last one.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "inspect", torch.set_num_threads, (max(1, threads // workers),))
    try:
        with _Tables(out) as tables:
            (out / "report.html").unlink(missing_ok=True)  # of an earlier request, should this one be stopped
            for results in in_order(pool, process, batches, 2 * workers):
                for found in results:
                    tables.add(found)
                    yield found
        report.write()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _scored(run: Run, photos: Sequence[_Photo | Failure]) -> Iterator[tuple[_Photo, Tensor, float] | Failure]:
    good = [photo for photo in photos if isinstance(photo, _Photo)]
    if good:
        heat = run.heat_maps(torch.stack([photo.pixels for photo in good]))
        scores = image_scores(heat, run.settings.scoring).tolist()
        scored = iter(zip(good, heat, scores, strict=True))
    for photo in photos:
        yield photo if isinstance(photo, Failure) else next(scored)


def in_batches(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """``items`` in lists of ``size``, the last one perhaps shorter; should they end with an error, it comes
    after those before it.
    """
    items = iter(items)
    failure = None
    while failure is None:
        batch: list[A] = []
        try:
            for item in islice(items, size):
                batch.append(item)
        except Exception as error:
            failure = error
        if not batch:
            break
        yield batch
    if failure is not None:
        raise failure


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    """``map(function, items)`` in a pool, at most ``ahead`` results in advance: memory stays bounded.

    Should ``items`` end with an error, it comes after all results of those before it.
    """
    waiting: deque[Future[B]] = deque()
    items = iter(items)
    failure = None
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure is not None:
        raise failure


def files(paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Iterator[tuple[Path, str]]:
    """Each image file and the name of its results: files as they are, folders with all folders inside.

    Raises
    ------
    RunError
        If a folder holds no image, or results in ``out`` would lie among the photographs. Of paths that come
        one by one, a folder without images is given like a file, so that reading names it.
    DataError
        If a folder may not be read; likewise only where all paths are known in advance.
    """
    check = partial(_check_apart, out=Path(out).resolve())
    known = isinstance(paths, Sequence)
    if known:  # all at once, before anything is written
        for path in map(Path, paths):
            check(path)
            if os.path.isdir(path) and next(tree_files(path, unread=True), None) is None:
                raise RunError(f"{path} holds no image, nor do the folders in it; give PNG or JPEG files")
    taken: dict[str, int] = {}
    for path in map(Path, paths):
        if not known:
            check(path)
        found = False
        if os.path.isdir(path):
            with suppress(DataError):  # a folder that may not be listed is named below
                for file in tree_files(path, unread=True):
                    found = True
                    yield file, unused_name(file.relative_to(path).with_suffix("").as_posix(), taken)
        if not found:
            yield path, unused_name(path.stem, taken)


def _check_apart(path: Path, out: Path) -> None:
    place = path.resolve()
    results = {out / folder for folder in FOLDERS}
    among = place in (out, *out.parents) if os.path.isdir(path) else place.parent == out
    if among or results & {place, *place.parents}:
        raise RunError(
            f"{out}: the results would lie among the photographs ({path}) and be taken for some the next "
            f"time; give --out a folder elsewhere"
        )


def unused_name(name: str, taken: dict[str, int]) -> str:
    """``name``, or ``name-2``, ``name-3`` ... if it is taken; the result is taken from then on."""
    unused = name
    while unused.lower() in taken:
        taken[name.lower()] += 1
        unused = f"{name}-{taken[name.lower()]}"
    taken[unused.lower()] = 1
    return unused


def _decode(file: Path, name: str, resolution: int) -> _Photo | Failure:
    try:
        photo = read_photo(file)
    except DataError as error:
        return Failure(os.fspath(file), str(error))
    pixels = photo_tensor(photo, resolution)
    picture, size = photo, photo.size
    if max(size) > PICTURE:
        picture = photo.copy()
        picture.thumbnail((PICTURE, PICTURE))
    return _Photo(file, name, pixels, picture.convert("RGB"), size)


def _write(
    photo: _Photo, heat: np.ndarray, score: float, decision: Decision, out: Path, maps: bool
) -> tuple[Finding, Image.Image]:
    drawn = draw_heat(photo.picture, heat, (decision.pixel / 2, 2 * decision.pixel))
    places = {folder: f"{folder}/{photo.name}.png" for folder in FOLDERS[:2]}
    full = Image.fromarray(heat)
    if full.size != photo.size:
        full = full.resize(photo.size, Image.Resampling.BILINEAR)
    marked = np.asarray(full) > decision.pixel
    mask = Image.fromarray(marked.astype(np.uint8) * np.uint8(255))
    _save(drawn, out / places["heat_maps"], "PNG")
    _save(mask, out / places["masks"], "PNG")
    if maps:
        places["maps"] = f"maps/{photo.name}.tiff"
        _save(full, out / places["maps"], "TIFF")
    return Finding(
        os.fspath(photo.file),
        score,
        decision.image,
        score > decision.image,
        float(marked.mean()),
        places["heat_maps"],
        places["masks"],
        places.get("maps", ""),
    ), drawn


def _forget(out: Path, name: str, folders: Sequence[str]) -> None:
    """Remove the results of an earlier request for a photograph of this name."""
    for folder in folders:
        with suppress(OSError):  # no file can have a name that the system refuses, nor can it be there
            (out / folder / f"{name}.{'tiff' if folder == 'maps' else 'png'}").unlink(missing_ok=True)


def _save(image: Image.Image, path: Path, kind: str) -> None:
    with naming(path):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "PNG":
            path.write_bytes(png(np.asarray(image)))
        else:
            image.save(path, kind)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels, ``(H, W)`` grey or ``(H, W, 3)`` RGB, as a PNG file.

    Pillow holds Python's lock while it packs a PNG, so that every other worker waits; zlib lets go of it.
    Results are written by the thousand: with the difference to the row above in all rows and run-length
    coding, a photograph takes a third of the time of Pillow's fastest level and about as much room.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # A row begins with the number of its filter; 2 is the difference to the row above.
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    packed = packer.compress(filtered.data) + packer.flush()
    colour = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        for name, data in chunks
    )


def draw_heat(picture: Image.Image, heat: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    """The heat map ``(H, W)``, scaled up, over an RGB picture: :func:`ssae.plotting.overlay` in 8 bits."""
    low, high = limits
    level = np.clip((heat - low) * (255 / max(high - low, 1e-12)), 0, 255).round().astype(np.uint8)
    grey = Image.fromarray(level)
    if grey.size != picture.size:
        grey = grey.resize(picture.size, Image.Resampling.BILINEAR)
    colours = grey.copy()
    colours.putpalette(_PALETTE)
    return Image.composite(colours.convert("RGB"), picture, grey.point(_OPACITY))


_PALETTE = (colormaps[HEAT](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()
_OPACITY = [round(0.85 * value) for value in range(256)]


def _no_formula(path: str) -> str:
    """The same path, written so that no spreadsheet takes it for a formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t")) else path


class _Tables:
    """``scores.csv`` for people, ``scores.jsonl`` for programs, at any time complete up to the last row."""

    def __init__(self, out: Path) -> None:
        # A file name may hold bytes that are no text; they are written as they are.
        # Spreadsheets take a file for UTF-8 by the mark at its beginning.
        self.csv = open(out / "scores.csv", "w", newline="", encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
        self.jsonl = open(out / "scores.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self.writer = csv.writer(self.csv, lineterminator="\n")
        self.writer.writerow([*Finding.__dataclass_fields__, "error"])

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for file in (self.csv, self.jsonl):
            # Closing writes what could not be written before, and may fail again: the first error counts.
            with suppress(OSError) if kind else naming(Path(file.name)):
                file.close()

    def add(self, found: Finding | Failure) -> None:
        if isinstance(found, Failure):
            blank = [""] * (len(Finding.__dataclass_fields__) - 1)
            self.writer.writerow([_no_formula(found.file), *blank, found.message])
            record: dict[str, Any] = {"image_path": found.file, "error": found.message}
        else:
            self.writer.writerow([_no_formula(found.file), *list(vars(found).values())[1:], ""])
            record = {
                "image_path": found.file,
                "pred_score": found.score,
                "pred_label": found.anomalous,
                "pred_mask": found.mask,
                "anomaly_map": found.map or None,
                "threshold": found.threshold,
                "heat_map": found.heat_map,
            }
        self.jsonl.write(json.dumps(record) + "\n")
        for file in (self.csv, self.jsonl):
            with naming(Path(file.name)):
                file.flush()
