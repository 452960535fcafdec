"""Images in the folder layout of MVTec AD: load them, and find everything that is wrong with them.

The layout (Bergmann et al., CVPR 2019), one folder a category::

    ROOT/CATEGORY/train/good/*.png                     normal images to train on
    ROOT/CATEGORY/test/good/*.png                      normal images to test on
    ROOT/CATEGORY/test/DEFECT/NAME.png                 defective images, one folder a kind of defect
    ROOT/CATEGORY/ground_truth/DEFECT/NAME_mask.png    their masks: 0 normal, anything else (255) defective

`load_category` reads it at any resolution, `check` lists every problem of a whole tree in one pass, and
both judge a file with the same code: what `check` calls an error is what loading refuses, as a `DataError`
that names the file, the fault and the mend. (`check` alone finds
copies that were saved anew, in other bytes.)

Explained in chapters 12 and 14.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import stat
import threading
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")

__all__ = [
    "PROBLEM_KINDS",
    "Category",
    "DataError",
    "Problem",
    "categories",
    "check",
    "data_sha256",
    "image_files",
    "load_category",
    "load_folder",
    "load_images",
    "load_masks",
    "load_textures",
    "mvtec_root",
    "open_category",
    "photo_tensor",
    "read_photo",
    "tree_files",
    "unused_copies",
    "unused_files",
    "upright_photo",
    "usable_cores",
]

GOOD = "good"
MAX_PIXELS = 100_000_000  # a header that claims more is taken for a bomb
FEW_IMAGES = 10  # a smaller training set is pointed out
READ_AHEAD = 64  # photographs that are decoded side by side
SMALLEST = 16  # pixels a side; nothing smaller is a photograph

_FORMATS = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".jfif": {"JPEG"},
    ".bmp": {"BMP", "DIB"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
}
# The decoders that may look at a file, whatever its ending: others are not needed, and the one for PostScript
# would start another program.
_DECODERS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")
_ENDINGS = ", ".join(_FORMATS)
# Photographs in formats that are not read: nobody would miss them silently.
_FOREIGN = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".jpe", ".tga", ".exr", ".pbm", ".pgm", ".ppm"),
    *(".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".raw"),
}
_IGNORED = {"thumbs.db", "desktop.ini", "license.txt", "readme.txt"}
_MEANS_GOOD = {"good", "ok", "normal", "okay", "goods"}
# Words in the name of a folder that say so, as in "def_front" or "ko".
_MEANS_BAD = {
    *("abnormal", "anomalies", "anomalous", "anomaly", "bad", "broken", "crack", "cracked", "damaged", "def"),
    *("defect", "defective", "defects", "fail", "failed", "faulty", "ko", "ng", "nok", "reject", "rejected"),
}
_NOT_TO_TRAIN_ON = {"test", "mask", "masks", "ground_truth"}
_VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".wmv", ".mpg", ".mpeg"}


# Problems

PROBLEM_KINDS: Mapping[str, tuple[str, str, str]] = {
    # kind: (severity, what is wrong, mend); braces are filled in where the problem is found
    # the file
    "not_a_file": ("error", "is not a regular file", "replace it by an image file"),
    "broken_link": (
        "error",
        "is a link that leads nowhere or in a circle",
        "replace it by the file it stood for",
    ),
    "permission": ("error", "may not be read", "give yourself permission (chmod u+rX)"),
    "unreadable": (
        "error",
        "cannot be read: truncated, damaged, or no image ({why})",
        "copy or export it again",
    ),
    "zero_bytes": ("error", "is an empty file", "copy the file again"),
    "lfs_pointer": ("error", "is a Git LFS pointer, not the image", "run `git lfs pull` in its repository"),
    "video": ("error", "is a video", "save single pictures of it as PNG or JPEG and give those"),
    "foreign_format": ("error", "is in a format that is not read ({format})", "export it as JPEG or PNG"),
    "bomb": (
        "error",
        f"claims more than {MAX_PIXELS // 10**6} million pixels",
        "replace it or cut it into pieces",
    ),
    "multi_frame": (
        "error",
        "holds {frames} frames, and which is meant is unknown",
        "save each as its own file",
    ),
    "wrong_extension": ("warning", "is a {format} file by its content", "give it the right extension"),
    # the photograph
    "sixteen_bit": (
        "error",
        "has more than 8 bits a channel, and its white level is unknown",
        "convert it to 8 bits with the range of the camera",
    ),
    "transparent": (
        "error",
        "has transparent pixels, whose colour is undefined",
        "flatten it onto a background",
    ),
    "tiny": ("error", "is only {width} x {height} pixels", "replace it by the full image"),
    "alpha": ("warning", "has an alpha channel (opaque, dropped)", "save it without alpha"),
    "palette": ("warning", "is a palette image (converted to RGB)", "save it as RGB or grey"),
    "colour_space": ("warning", "is {mode} (converted to RGB without a colour profile)", "export it as RGB"),
    "exif_rotation": (
        "warning",
        "is stored turned, with an EXIF orientation (turned upright on loading)",
        "save it upright, and see that its mask fits the upright image",
    ),
    "blank": ("warning", "is one uniform colour", "look whether the photograph failed"),
    # the mask
    "mask_empty": (
        "error",
        "marks no pixel of a defective image",
        "draw the defect, or move the image to test/good",
    ),
    "mask_full": ("warning", "marks every pixel", "see that 0 means normal and the mask is not inverted"),
    "mask_not_binary": (
        "error",
        "has values between normal and defective",
        "set what is defective to 255 and the rest to 0 (of class numbers all but 0 are defective), and save "
        "it as PNG, never as JPEG",
    ),
    "mask_size": (
        "error",
        "is {width} x {height} pixels, its image {image_width} x {image_height}",
        "export the mask at the size of its image",
    ),
    "mask_missing": (
        "error",
        "is a defective image without a mask",
        "draw ground_truth/{defect}/{stem}_mask.png",
    ),
    "mask_folder": (
        "error",
        "is a folder where the mask of an image should be",
        "unite the masks in it into one file, {stem}_mask.png; to train only, give the folder {train}",
    ),
    "mask_ambiguous": ("error", "has several masks: {masks}", "keep one"),
    "mask_on_good": (
        "error",
        "marks a defect on an image of test/good",
        "move the image to the folder of its defect, or remove the mask",
    ),
    "mask_without_image": ("warning", "is a mask without an image", "restore the image or remove the mask"),
    "no_masks": (
        "error",
        "does not exist, so no image of this defect has a mask",
        "put NAME_mask.png files there; to train only, give the folder {train}",
    ),
    "no_truth": (
        "warning",
        "does not exist, so there are no masks, and only image AUROC can be measured",
        "draw ground_truth/DEFECT/NAME_mask.png to measure what is found where, too",
    ),
    "orphan_masks": ("warning", "holds masks of a defect that test does not have", "restore test/{defect}"),
    # the folders
    "missing": ("error", "does not exist", "{mend}"),
    "not_a_folder": ("error", "is not a folder", "{mend}"),
    "empty": ("error", "holds no image", "{mend}"),
    "no_categories": ("error", "holds no category of the MVTec AD layout", "{mend}"),
    "no_defects": ("error", "holds no defect folder, and metrics need both kinds", "add test/DEFECT"),
    "good_misspelt": ("error", "would count as a defect, but its name says normal", "name it exactly 'good'"),
    "few_images": ("warning", "holds only {count} images", "take more photographs of normal parts"),
    "train_folder": (
        "warning",
        "lies in train and is not used",
        "keep normal images in train/good, others in test",
    ),
    "nested_folder": (
        "warning",
        "lies inside a folder of images and is not used",
        "move its images one level up",
    ),
    "stray_image": ("warning", "lies outside the layout and is not used", "move it into {where}"),
    "ignored": ("warning", "is of no known image type and not used", "convert it to PNG or remove it"),
    "passed_over": (
        "warning",
        "holds images where none are looked for ({count}); they are not used",
        "{mend}",
    ),
    "not_a_category": (
        "warning",
        "has neither train nor test and is not used",
        "remove it, or add train/good",
    ),
    "bad_folder": (
        "error",
        "looks by its name as if it held defective parts or masks; training wants good parts only",
        "move the photographs of good parts into a folder named 'good' beside it, or give their folder alone",
    ),
    "several_categories": (
        "error",
        "holds {count} categories",
        "choose one: --category {names}",
    ),
    # the category
    "same_name": (
        "error",
        "differs from {other} only in extension or case",
        "rename or remove one of the two",
    ),
    "train_in_test": (
        "error",
        "is the same image as {other}",
        "remove one: testing on training images proves nothing",
    ),
    "both_labels": (
        "error",
        "is the same image as {other}: normal and defective at once",
        "remove one of the two",
    ),
    "duplicate": ("warning", "is the same image as {other}", "remove one of the two"),
    "copy": ("warning", "is the same file as {other} and not used", "remove it"),
    "mixed_sizes": (
        "warning",
        "has images of several sizes ({sizes})",
        "see that all show the part at one scale",
    ),
    "not_square": ("warning", "has images that are not square (squeezed on loading)", "crop them to squares"),
    "mixed_colour": ("warning", "has grey and colour images", "use one kind, or colour itself is an anomaly"),
    "unset": (
        "error",
        "is not set, so MVTec AD cannot be found",
        "download MVTec AD from its authors (licence CC BY-NC-SA 4.0), unpack it, and set the variable to "
        "the folder that holds bottle/, cable/ and so on, or give --data",
    ),
}


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of a data folder.

    Attributes
    ----------
    path
        The file or folder at fault.
    kind
        A key of `PROBLEM_KINDS`, such as ``"mask_size"``.
    message
        What is wrong, in words.
    mend
        What to do about it.
    severity
        ``"error"`` where a result would be wrong (loading refuses), ``"warning"`` where loading copes.
    """

    path: str
    kind: str
    message: str
    mend: str
    severity: str

    def __str__(self) -> str:
        return f"{self.severity}: {_printable(self.path)} {self.message}. Mend: {self.mend}."


def _problem(kind: str, path: Path | str, **facts: object) -> Problem:
    severity, message, mend = PROBLEM_KINDS[kind]
    shown = {name: _printable(str(fact)) for name, fact in facts.items()}
    return Problem(str(path), kind, message.format_map(shown), mend.format_map(shown), severity)


class DataError(ValueError):
    """Data that cannot be used as it lies: the message names each file, what is wrong with it and the mend.

    Attributes
    ----------
    problems
        The `Problem` records behind the message.
    """

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        shown = [str(problem) for problem in problems[:10]]
        if len(problems) > 10:
            shown.append(f"... and {len(problems) - 10} more: `ssae data check` lists them all")
        super().__init__("\n".join(shown))


def _raise_errors(problems: Iterable[Problem]) -> None:
    errors = sorted(problem for problem in problems if problem.severity == "error")
    if errors:
        raise DataError(*errors)


def _printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped: a file name may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# Single files: read the bytes, decode them, judge what was decoded


def _read_bytes(path: Path) -> tuple[bytes, list[Problem]]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            unlisted = [problem for problem in _entries(path)[2] if problem.severity == "error"]
            return b"", unlisted or [_problem("not_a_file", path)]
        if not stat.S_ISREG(mode):  # opening a named pipe would wait for ever
            return b"", [_problem("not_a_file", path)]
        data = path.read_bytes()
    except PermissionError:
        return b"", [_problem("permission", path)]
    except OSError as error:
        if os.path.islink(path):
            return b"", [_problem("broken_link", path)]
        # Windows calls a name that cannot be one invalid.
        if isinstance(error, FileNotFoundError) or error.errno in (errno.EINVAL, errno.ENAMETOOLONG):
            return b"", [_problem("missing", path, mend="look for a typing error in its name")]
        return b"", [_problem("unreadable", path, why=error.strerror)]
    if not data:
        return b"", [_problem("zero_bytes", path)]
    if data.startswith(b"version https://git-lfs"):
        return b"", [_problem("lfs_pointer", path)]
    return data, []


@dataclass(frozen=True)
class _Decoded:
    """An image without palette, alpha and rotation, and what it was before."""

    image: Image.Image  # "L" or "RGB"; its own mode where deep
    format: str | None
    mode: str
    deep: bool
    frames: int
    turned: bool
    opaque: bool | None  # None: no alpha


class _Quiet:
    """Pillow's warnings ignored while any thread is inside: `warnings.catch_warnings` alone, entered by
    several threads, leaves them ignored for ever.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_QUIET = _Quiet()


def _decode(data: bytes) -> _Decoded:
    with _QUIET:  # Pillow warns of bombs at a limit of its own, and refuses twice that
        image: Image.Image = Image.open(io.BytesIO(data), formats=_DECODERS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        # verify() compares the check sums of a PNG, which decoding alone does not; it uses the object up.
        image.verify()
        return _normalised(Image.open(io.BytesIO(data), formats=_DECODERS))


def _normalised(image: Image.Image) -> _Decoded:
    """An opened image, decoded if it is not yet, without palette, alpha and rotation."""
    kind, mode = image.format, image.mode
    # A 16-bit RGB file is silently cut to 8 bits; only the decoder's raw mode tells.
    deep = mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", ""))
    # The further frames of an MPO are a phone's previews.
    frames = 1 if kind == "MPO" else getattr(image, "n_frames", 1)
    image.load()
    turned = image.getexif().get(0x0112, 1) not in (0, 1)
    if turned:
        image = ImageOps.exif_transpose(image)
    opaque = None
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        grey = mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        opaque = image.getchannel("A").getextrema() == (255, 255)
        image = image.convert("L" if grey else "RGB")
    elif not deep and mode not in ("L", "RGB"):
        image = image.convert("L" if mode == "1" else "RGB")
    return _Decoded(image, kind, mode, deep, frames, turned, opaque)


def _read(path: Path) -> tuple[_Decoded | None, list[Problem]]:
    """The decoded file, or None, and what is wrong with it whether photograph or mask."""
    ending = path.suffix.lower()
    if ending in _VIDEOS:
        return None, [_problem("video", path)]
    if ending in _FOREIGN:
        return None, [_problem("foreign_format", path, format=ending[1:].upper())]
    data, problems = _read_bytes(path)
    if not data:
        return None, problems
    try:
        decoded = _decode(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None, [_problem("bomb", path)]
    except Exception as error:  # on damaged input the decoders raise anything: struct.error, SyntaxError ...
        return None, [_problem("unreadable", path, why=type(error).__name__)]
    if decoded.frames > 1:
        problems.append(_problem("multi_frame", path, frames=decoded.frames))
    if decoded.format not in _FORMATS.get(path.suffix.lower(), {decoded.format}):
        problems.append(_problem("wrong_extension", path, format=decoded.format))
    if decoded.turned:
        problems.append(_problem("exif_rotation", path))
    if decoded.opaque is False:
        problems.append(_problem("transparent", path))
    return decoded, problems


def _read_photo(path: Path) -> tuple[Image.Image | None, list[Problem]]:
    """The upright 8-bit image in mode "L" or "RGB", or None, and everything wrong with it."""
    decoded, problems = _read(path)
    if decoded is None:
        return None, problems
    if decoded.deep:
        return None, [*problems, _problem("sixteen_bit", path)]
    image = decoded.image
    if decoded.opaque:
        problems.append(_problem("alpha", path))
    if decoded.mode in ("P", "PA"):
        problems.append(_problem("palette", path))
    elif decoded.mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa"):
        problems.append(_problem("colour_space", path, mode=decoded.mode))
    if min(image.size) < SMALLEST:
        problems.append(_problem("tiny", path, width=image.width, height=image.height))
    if all(low == high for low, high in (band.getextrema() for band in image.split())):
        problems.append(_problem("blank", path))
    return image, problems


def _photo_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a photograph as it is shown, from its header alone; None if that cannot be read,
    which is told when its pixels are asked for.
    """
    try:
        with _QUIET, Image.open(path, formats=_DECODERS) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # as in `_read`, decoders raise anything
        return None


def _read_mask(path: Path) -> tuple[np.ndarray | None, list[Problem]]:
    """The mask as booleans (H, W), or None, and everything wrong with it by itself."""
    decoded, problems = _read(path)
    if decoded is None:
        return None, problems
    values = np.asarray(decoded.image)
    values = values.reshape(*values.shape[:2], -1)
    mask = (values != 0).any(axis=2)
    marked = values[mask]
    if (marked != marked[:1]).any():
        problems.append(_problem("mask_not_binary", path))
    if not mask.any():
        problems.append(_problem("mask_empty", path))
    elif mask.all():
        problems.append(_problem("mask_full", path))
    return mask, problems


def _compare_sizes(mask_path: Path, mask: np.ndarray, image_size: tuple[int, int]) -> list[Problem]:
    height, width = mask.shape
    if (width, height) == image_size:
        return []
    facts = {"width": width, "height": height, "image_width": image_size[0], "image_height": image_size[1]}
    return [_problem("mask_size", mask_path, **facts)]


# Loading pixels


def load_images(paths: Sequence[str | os.PathLike[str]], resolution: int) -> Tensor:
    """Read images as one tensor.

    Each is turned upright (EXIF), made RGB (grey is repeated over the channels) and resized to a square by
    Lanczos resampling whose support grows with the reduction, so nothing aliases; an image of the right
    size is not touched.

    Parameters
    ----------
    paths
        Image files.
    resolution
        Height and width of the result in pixels.

    Returns
    -------
    Tensor
        ``(N, 3, resolution, resolution)``, float32 in [0, 1].

    Raises
    ------
    DataError
        A file is unreadable, or reading it would guess at its values (16 bits, transparency, several frames).
    ValueError
        `resolution` is not positive.
    """
    _check_resolution(resolution)
    images = torch.empty(len(paths), 3, resolution, resolution)
    start = time.perf_counter()

    def read(path: str | os.PathLike[str]) -> Tensor:
        return photo_tensor(read_photo(path), resolution)

    # Decoding and resizing leave Python's lock to others. A few ahead at a time, not all.
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        start_of = range(0, len(paths), READ_AHEAD)
        batches = (pool.map(read, paths[start : start + READ_AHEAD]) for start in start_of)
        for index, image in enumerate(progress_over(chain.from_iterable(batches), "images", len(paths))):
            images[index] = image
    LOGGER.info("read %d images in %.1f s", len(paths), time.perf_counter() - start)
    return images


def usable_cores() -> int:
    """Processor cores that this process may use: a cluster or a container may grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_photo(path: str | os.PathLike[str]) -> Image.Image:
    """One photograph at its own size: upright (EXIF), 8 bits a channel, mode ``"L"`` or ``"RGB"``.

    Raises
    ------
    DataError
        As :func:`load_images`.
    """
    photo, problems = _read_photo(Path(path))
    _raise_errors(problems)
    assert photo is not None
    return photo


def upright_photo(image: Image.Image) -> Image.Image:
    """An open image as `read_photo` gives its file: upright, 8 bits a channel, mode ``"L"`` or ``"RGB"``.

    Raises
    ------
    DataError
        If its values would have to be guessed at: 16 bits, transparency. That a colour image had 16 bits can
        only be told until Pillow has loaded its pixels, and cut them to 8; give the path where in doubt.
    """
    decoded = _normalised(image)
    name = Path(getattr(image, "filename", "") or "the image given")
    if decoded.deep:
        raise DataError(_problem("sixteen_bit", name))
    if decoded.opaque is False:
        raise DataError(_problem("transparent", name))
    return decoded.image


def photo_tensor(photo: Image.Image, resolution: int) -> Tensor:
    """A photograph as ``(3, resolution, resolution)``, float32 in [0, 1], resized as `load_images` does."""
    if photo.size != (resolution, resolution):
        photo = photo.resize((resolution, resolution), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(photo, dtype=np.float32) / 255)
    return pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def load_textures(folder: str | os.PathLike[str], size: int, count: int = 256) -> Tensor:
    """Foreign textures for :class:`ssae.corruption.PartialCorruption`: photographs, for instance those of the
    Describable Textures Dataset.

    Parameters
    ----------
    folder
        Image files, or folders of them, which are searched with all folders inside.
    size
        Height and width of a texture in pixels.
    count
        How many to take at most; they are spread evenly over the sorted files, so that every folder gives
        some.

    Returns
    -------
    Tensor
        ``(T, 3, size, size)``, float32 in [0, 1]: of each photograph the greatest square in the middle.

    Raises
    ------
    DataError
        If the folder is missing, a file taken cannot be read, or there is no image at all.
    """
    _check_resolution(size)
    files = list(tree_files(folder))
    if not files:
        raise DataError(_problem("empty", Path(folder), mend=f"put images there ({_ENDINGS})"))
    count = min(count, len(files))
    chosen = [files[round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)]
    textures = torch.empty(len(chosen), 3, size, size)
    for index, path in enumerate(progress_over(chosen, "textures")):
        textures[index] = photo_tensor(_middle(read_photo(path)), size)
    LOGGER.info("read %d of %d foreign textures below %s", len(chosen), len(files), folder)
    return textures


def _middle(photo: Image.Image) -> Image.Image:
    side = min(photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    return photo.crop((left, top, left + side, top + side))


def load_masks(
    paths: Sequence[str | os.PathLike[str] | None],
    resolution: int,
    image_paths: Sequence[str | os.PathLike[str]] | None = None,
) -> Tensor:
    """Read defect masks as one boolean tensor; None stands for a normal image and gives an empty mask.

    A mask is resampled by nearest neighbour. That keeps the share of defective pixels on average, where
    max-pooling would grow every defect. A mask that no sample hits is max-pooled instead: a defective image
    never loses its mask.

    Parameters
    ----------
    paths
        Mask files, or None.
    resolution
        Height and width of the result in pixels.
    image_paths
        The images the masks belong to; when given, each mask must have its image's size.

    Returns
    -------
    Tensor
        ``(N, resolution, resolution)``, bool.

    Raises
    ------
    DataError
        A mask is unreadable, empty, not binary, or does not fit its image.
    """
    _check_resolution(resolution)
    masks = torch.zeros(len(paths), resolution, resolution, dtype=torch.bool)
    for index, path in enumerate(progress_over(paths, "masks")):
        if path is None:
            continue
        mask, problems = _read_mask(Path(path))
        if mask is not None and image_paths is not None:
            size = _photo_size(Path(image_paths[index]))
            problems += _compare_sizes(Path(path), mask, size) if size is not None else []
        _raise_errors(problems)
        assert mask is not None
        masks[index] = torch.from_numpy(_resize_mask(mask, resolution))
    return masks


def _resize_mask(mask: np.ndarray, resolution: int) -> np.ndarray:
    if mask.shape == (resolution, resolution):
        return mask
    rows, columns = (((np.arange(resolution) + 0.5) * size / resolution).astype(int) for size in mask.shape)
    small = mask[np.ix_(rows, columns)]
    if not small.any():
        hit_rows, hit_columns = np.nonzero(mask)
        small[hit_rows * resolution // mask.shape[0], hit_columns * resolution // mask.shape[1]] = True
    return small


def _check_resolution(resolution: int) -> None:
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; give the height and width in pixels, for example 256")


def progress_over(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """``items``, with a progress bar and the time left on a terminal once they have taken two seconds."""
    return tqdm(items, desc=what, total=total, delay=2, leave=False, disable=None)


# Folders


@dataclass(frozen=True)
class Category:
    """One category: its files, and their pixels on request.

    Attributes
    ----------
    name
        Name of the category.
    root
        The category's own folder.
    resolution
        Height and width, in pixels, at which images and masks are read.
    train_paths
        Normal images to train on.
    test_paths
        Test images, by kind of defect and then by name.
    test_defects
        Kind of defect of each test image; ``"good"`` for normal ones.
    mask_paths
        Mask of each test image; None for normal ones, and for all where the data set has no masks.
    copies
        Normal images that are left out of ``train_paths``, each with the one there that holds the same bytes.
        A copy among the held-out images would make them look familiar.
    """

    name: str
    root: Path
    resolution: int
    train_paths: tuple[Path, ...]
    test_paths: tuple[Path, ...] = ()
    test_defects: tuple[str, ...] = ()
    mask_paths: tuple[Path | None, ...] = ()
    copies: tuple[tuple[Path, Path], ...] = ()

    @property
    def labels(self) -> Tensor:
        """``(N,)`` bool: True for a defective test image."""
        return torch.tensor([defect != GOOD for defect in self.test_defects], dtype=torch.bool)

    @property
    def has_masks(self) -> bool:
        """Whether its defects are outlined."""
        return any(path is not None for path in self.mask_paths)

    @property
    def defects(self) -> tuple[str, ...]:
        """The kinds of defect, without ``"good"``, in alphabetical order."""
        return tuple(sorted(set(self.test_defects) - {GOOD}))

    def train_images(self) -> Tensor:
        """``(N, 3, H, W)`` float32 in [0, 1], read anew at each call; see `load_images`."""
        return load_images(self.train_paths, self.resolution)

    def test_images(self) -> Tensor:
        """``(N, 3, H, W)`` float32 in [0, 1], read anew at each call; see `load_images`."""
        return load_images(self.test_paths, self.resolution)

    def test_masks(self) -> Tensor:
        """``(N, H, W)`` bool, True on defects, empty for normal images; see `load_masks`.

        Where the data set has no masks, `has_masks` is false and all are empty.
        """
        return load_masks(self.mask_paths, self.resolution, self.test_paths)


def _key(name: str) -> str:
    """A name for comparing and ordering: composed Unicode, since macOS stores accents decomposed."""
    return unicodedata.normalize("NFC", name)


def _missing_folder(folder: Path, mend: str) -> list[Problem]:
    if os.path.isdir(folder):
        return []
    return [_problem("not_a_folder" if os.path.lexists(folder) else "missing", folder, mend=mend)]


def _entries(folder: Path) -> tuple[list[Path], list[Path], list[Problem]]:
    """Folders and image files directly in `folder`, in the order of their names, and what is odd about it."""
    folders: list[Path] = []
    files: list[Path] = []
    problems: list[Problem] = []
    try:
        names = sorted(os.listdir(folder), key=lambda name: (_key(name), name))
    except PermissionError:
        return [], [], [_problem("permission", folder)]
    except OSError as error:
        return [], [], [_problem("unreadable", folder, why=error.strerror)]
    for name in names:
        path = folder / name
        if name.startswith(".") or name.lower() in _IGNORED:
            continue
        if os.path.isdir(path):  # Path.is_dir raises in a folder that may not be entered
            folders.append(path)
        elif path.suffix.lower() in _FORMATS:
            files.append(path)
        else:
            problems.append(_problem("ignored", path))
    return folders, files, problems


def _image_folder(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The images of a folder that should hold images and nothing else, and what is wrong with the folder."""
    folders, files, problems = _entries(folder)
    problems += [_problem("nested_folder", path) for path in folders]
    seen: dict[str, Path] = {}
    for path in files:
        # The two would share a mask, or overwrite each other on a file system that ignores case.
        other = seen.setdefault(_key(path.stem).casefold(), path)
        if other is not path:
            problems.append(_problem("same_name", path, other=other.name))
    if not files and not any(problem.path == str(folder) for problem in problems):
        problems.append(_problem("empty", folder, mend=_mend_of_empty(folder)))
        others = [Path(problem.path) for problem in problems if problem.kind == "ignored"]
        problems += [found for path in others if _unread(path) for found in _read(path)[1]]
    return files, problems


def _unread(path: Path) -> bool:
    """Whether a file is meant to be seen, and is of none of the formats that are read."""
    return path.suffix.lower() in _VIDEOS | _FOREIGN


def _mend_of_empty(folder: Path) -> str:
    with suppress(DataError):  # images further down are the usual reason
        files = (path for path in tree_files(folder) if os.path.isfile(path))
        below = next((path for path in files if not _is_bad(path.parent, folder)), None)
        if below is not None:
            return f"images lie further down, in {_printable(str(below.parent))}; give that or move them"
    return f"put images there ({_ENDINGS})"


def image_files(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The image files directly in `folder`, in the order of their (Unicode-composed) names.

    Raises
    ------
    DataError
        The folder is missing, may not be read, holds no image, or two whose names differ only in extension
        or case.
    """
    folder = Path(folder)
    _raise_errors(_missing_folder(folder, "give a folder of images"))
    files, problems = _image_folder(folder)
    _raise_errors(problems)
    return tuple(files)


def load_folder(folder: str | os.PathLike[str], resolution: int) -> Category:
    """A bare folder of normal images as a `Category` without test images.

    The images lie directly in the folder or one level down. Where a subfolder is named ``good``, ``normal``
    or ``ok``, as in the Folder layout of anomalib, only that one is read. Of files that are the same byte for
    byte only the first counts: a copy among the held-out images would make them look familiar.

    Raises
    ------
    DataError
        As `image_files`; or a subfolder's name says that it holds defective parts, and none that it holds
        good ones.
    """
    _check_resolution(resolution)
    folder = Path(folder)
    files, problems = _bare_files(folder)
    _raise_errors(problems)
    copies = _copies(files)
    return Category(
        folder.resolve().name,
        folder,
        resolution,
        tuple(path for path in files if path not in copies),
        copies=tuple(copies.items()),
    )


def _bare_files(folder: Path) -> tuple[list[Path], list[Problem]]:
    """The files that :func:`load_folder` reads, copies among them, and what is wrong with where they lie."""
    problems = _missing_folder(folder, "give a folder of images")
    if problems:
        return [], problems
    inside = _entries(folder)[0]
    good = [path for path in inside if _means_good(path)]
    folders = good or [path for path in inside if _entries(path)[1]]
    if not good:
        bad = [path for path in inside if _is_bad(path, folder)]
        problems += [_problem("bad_folder", path) for path in bad]
        if _entries(folder)[1] or not folders:
            folders = [folder, *folders]
    files: list[Path] = []
    for path in folders:
        found, wrong = _image_folder(path)
        files += found
        # That there are folders inside is how photographs one level down are given.
        problems += [problem for problem in wrong if path != folder or problem.kind != "nested_folder"]
    return files, problems


def _means_good(path: Path) -> bool:
    return path.name.strip().casefold() in _MEANS_GOOD


def _is_bad(path: Path, folder: Path) -> bool:
    """Whether a name on the way from `folder` to `path` says that there is nothing to train on: "def_front"
    or "not_ok", but not "no_defects".
    """
    return any(
        name.strip().casefold() in _NOT_TO_TRAIN_ON or _says_bad(re.split(r"[\W\d_]+", name.casefold()))
        for name in path.relative_to(folder).parts
    )


def _says_bad(words: list[str]) -> bool:
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        denied = before in {"no", "non", "not", "without"}
        if word in _MEANS_GOOD and denied:
            return True
        if word in _MEANS_BAD and not denied and after != "free":
            return True
    return False


def _copies(files: Sequence[Path]) -> dict[Path, Path]:
    """Files that hold the same bytes as one before them, and that one."""
    alike: dict[tuple[int, bytes], list[Path]] = {}
    for path in files:
        with suppress(OSError):  # what cannot be read is told when its pixels are asked for
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
                continue
            with open(path, "rb") as file:
                file.seek(status.st_size // 2)
                # Files without compression are all of one size, and few differ nowhere in the middle.
                middle = hashlib.sha256(file.read(1 << 16)).digest()
            alike.setdefault((status.st_size, middle), []).append(path)
    copies: dict[Path, Path] = {}
    for group in alike.values():
        seen: dict[str, Path] = {}
        for path in group if len(group) > 1 else ():
            data, _ = _read_bytes(path)
            if data and (other := seen.setdefault(hashlib.sha256(data).hexdigest(), path)) is not path:
                copies[path] = other
    return copies


def open_category(root: str | os.PathLike[str], category: str | None, resolution: int) -> Category:
    """The category that a user means by a folder and, perhaps, a name.

    ``root`` may be a data set in the MVTec AD layout (``category`` names one unless there is only one), a
    category of it, or any folder of images of good parts, see :func:`load_folder`.

    Raises
    ------
    DataError
        As :func:`load_category` and :func:`load_folder`, or several categories are there and none was named.
    """
    root = Path(root)
    if category is not None:
        return load_category(root, category, resolution)
    _raise_errors(_missing_folder(root, "give a folder of images, or a data set"))
    if (root / "train" / GOOD).is_dir():
        if not (root / "test").is_dir():
            return replace(load_folder(root / "train", resolution), name=root.resolve().name)
        return load_category(root.resolve().parent, root.resolve().name, resolution)
    names = [name for name in _names(root) if (root / name / "train" / GOOD).is_dir()]
    if len(names) > 1:
        raise DataError(_problem("several_categories", root, count=len(names), names=" | ".join(names)))
    return load_category(root, names[0], resolution) if names else load_folder(root, resolution)


def unused_files(category: Category) -> list[Problem]:
    """What lies in the folder of a category, and one level down, that :func:`load_folder` has passed over."""
    folder = category.root
    folders, _, problems = _entries(folder)
    for path in folders:
        problems += _entries(path)[2]
    problems = [problem for problem in problems if problem.kind == "ignored"]
    problems += unused_copies(category)
    used = {*category.train_paths, *(copy for copy, _ in category.copies)}
    left = Counter(path.parent for path in tree_files(folder) if path not in used and os.path.isfile(path))
    for path, count in left.items():
        # Defective parts beside the good ones are meant to be passed over.
        if not _is_bad(path, folder):
            mend = "move them into the folder of good parts"
            if path != folder:
                mend += ", or give this folder alone"
            problems.append(_problem("passed_over", path, count=count, mend=mend))
    return problems


def unused_copies(category: Category) -> list[Problem]:
    """The normal images of a category that are left out as copies."""
    return [_problem("copy", path, other=other) for path, other in category.copies]


def tree_files(folder: str | os.PathLike[str], unread: bool = False) -> Iterator[Path]:
    """The image files of a folder and of all folders in it, folder by folder in the order of their names, and
    then of those that links in it lead to.

    Whatever a single file's fault may be is left to be found when it is read; so is that of a folder inside
    which may not be listed: it stands among the files itself.

    Parameters
    ----------
    unread
        Whether to give photographs in formats that are not read (HEIC, raw) and videos as well, so that
        reading names them.

    Raises
    ------
    DataError
        The folder is missing or may not be read.
    """
    folder = Path(folder)
    _raise_errors(_missing_folder(folder, "give a folder of images"))
    # What was met, or lies above, is not entered again: links neither double a file nor lead in a circle.
    place = Path(os.path.realpath(folder))
    met = {str(path) for path in (place, *place.parents)}
    links: list[Path] = []
    yield from _tree(folder, unread, met, links)
    for link in links:  # more are found on the way
        yield from _inside(link, unread, met, links)


def _tree(folder: Path, unread: bool, met: set[str], links: list[Path]) -> Iterator[Path]:
    folders, files, problems = _entries(folder)
    _raise_errors(problems)
    if unread:
        files += [path for path in map(Path, (problem.path for problem in problems)) if _unread(path)]
    yield from files
    for path in folders:
        if os.path.islink(path):
            links.append(path)
        else:
            yield from _inside(path, unread, met, links)


def _inside(folder: Path, unread: bool, met: set[str], links: list[Path]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place not in met:
        met.add(place)
        try:
            yield from _tree(folder, unread, met, links)
        except DataError:
            yield folder


def load_category(root: str | os.PathLike[str], category: str, resolution: int) -> Category:
    """Find the files of one category; its pixels are read when asked for.

    Parameters
    ----------
    root
        Folder of categories in the MVTec AD layout.
    category
        Name of the category's folder in `root`.
    resolution
        Height and width at which images and masks will be read.

    Returns
    -------
    Category
        Of training images that are the same byte for byte only the first counts.

    Raises
    ------
    DataError
        A split is missing or empty, a mask is missing or ambiguous, or a file lies both in train and in test.
    """
    _check_resolution(resolution)
    folder = category_folder(Path(root), category)
    found = ", ".join(_names(Path(root))) or "none"
    _raise_errors(_missing_folder(folder, f"choose one of the categories there: {found}"))
    listing, problems = _list_category(folder, resolution)
    digests: dict[Path, str] = {}
    for path in (*listing.train_paths, *listing.test_paths):
        data, _ = _read_bytes(path)  # an unreadable file is refused when its pixels are asked for
        if data:
            digests[path] = hashlib.sha256(data).hexdigest()
    _raise_errors(problems + _duplicates(listing, digests))
    first: dict[str, Path] = {}
    pairs = [(path, first.setdefault(digests.get(path, str(path)), path)) for path in listing.train_paths]
    return replace(
        listing,
        train_paths=tuple(first.values()),
        copies=tuple(pair for pair in pairs if pair[0] is not pair[1]),
    )


def category_folder(root: Path, category: str) -> Path:
    """Where a category lies, if it is there: on Linux a name with accents may be there in another
    composition.
    """
    folder = root / category
    if not folder.is_dir() and root.is_dir():
        same = [path for path in _entries(root)[0] if _key(path.name) == _key(category)]
        folder = same[0] if same else folder
    return folder


def _list_category(folder: Path, resolution: int) -> tuple[Category, list[Problem]]:
    """The files of a category as far as they match, and every problem that names alone show."""
    train, problems = _list_train(folder / "train")
    test: list[Path] = []
    defects: list[str] = []
    masks: list[Path | None] = []
    kinds, found = _list_test(folder / "test")
    problems += found
    truth_folders = {_key(path.name): path for path in _entries(folder / "ground_truth")[0]}
    no_truth = not os.path.lexists(folder / "ground_truth")
    if no_truth and any(kind.name != GOOD for kind in kinds):
        problems.append(_problem("no_truth", folder / "ground_truth"))
    for kind in kinds:
        files, found = _image_folder(kind)
        problems += found
        truth = truth_folders.pop(_key(kind.name), folder / "ground_truth" / kind.name)
        matched: list[Path | None] = [None] * len(files)
        if not no_truth and (kind.name == GOOD or not _means_good(kind)):
            matched, found = _no_marks(files, truth) if kind.name == GOOD else _match_masks(files, truth)
            problems += found
        test += files
        defects += [_key(kind.name)] * len(files)
        masks += matched
    problems += [
        _problem("orphan_masks", path, defect=name) for name, path in truth_folders.items() if name != GOOD
    ]
    name = _key(folder.name or folder.resolve().name)
    return Category(
        name, folder, resolution, tuple(train), tuple(test), tuple(defects), tuple(masks)
    ), problems


def _list_train(folder: Path) -> tuple[list[Path], list[Problem]]:
    other = (
        next((path for path in _entries(folder)[0] if _means_good(path)), None) if folder.is_dir() else None
    )
    mend = f"rename {other} to {GOOD}" if other else "put the normal training images there"
    problems = _missing_folder(folder / GOOD, mend)
    if problems:
        return [], problems
    files, problems = _image_folder(folder / GOOD)
    if 0 < len(files) < FEW_IMAGES:
        problems.append(_problem("few_images", folder / GOOD, count=len(files)))
    folders, strays, _ = _entries(folder)
    problems += [_problem("train_folder", path) for path in folders if path.name != GOOD]
    problems += [_problem("stray_image", path, where="train/good") for path in strays]
    return files, problems


def _list_test(folder: Path) -> tuple[list[Path], list[Problem]]:
    problems = _missing_folder(folder, "put test images into test/good and test/DEFECT")
    if problems:
        return [], problems
    kinds, strays, problems = _entries(folder)
    problems += [_problem("stray_image", path, where="test/good or test/DEFECT") for path in strays]
    names = {kind.name for kind in kinds}
    if GOOD not in names:
        problems.append(
            _problem("missing", folder / GOOD, mend="put normal test images there: metrics need both kinds")
        )
    if not names - {GOOD}:
        problems.append(_problem("no_defects", folder))
    for kind in kinds:
        if kind.name != GOOD and _means_good(kind):
            problems.append(_problem("good_misspelt", kind))
    return kinds, problems


def _no_marks(images: Sequence[Path], folder: Path) -> tuple[list[Path | None], list[Problem]]:
    """No masks for normal images; if the folder has some, they must be empty."""
    problems = []
    for path in _entries(folder)[1] if folder.is_dir() else []:
        mask, _ = _read_mask(path)
        if mask is not None and mask.any():
            problems.append(_problem("mask_on_good", path))
    return [None] * len(images), problems


def _match_masks(images: Sequence[Path], folder: Path) -> tuple[list[Path | None], list[Problem]]:
    """The mask of each image of one defect, ``NAME_mask.*`` or ``NAME.*``, and what does not match."""
    train = folder.parent.parent / "train"
    if not folder.is_dir():
        return [None] * len(images), [_problem("no_masks", folder, train=train)] if images else []
    folders, files, problems = _entries(folder)
    inside = {_key(path.name): path for path in folders}
    unused: dict[str, list[Path]] = {}
    for path in files:
        unused.setdefault(_key(path.stem), []).append(path)
    masks: list[Path | None] = []
    for image in images:
        stem = _key(image.stem)
        found = unused.pop(stem + "_mask", []) + unused.pop(stem, [])
        masks.append(found[0] if found else None)
        if not found and stem in inside:
            problems.append(_problem("mask_folder", inside[stem], stem=image.stem, train=train))
        elif not found:
            problems.append(_problem("mask_missing", image, defect=folder.name, stem=image.stem))
        elif len(found) > 1:
            problems.append(_problem("mask_ambiguous", image, masks=", ".join(path.name for path in found)))
    return masks, problems + [
        _problem("mask_without_image", path) for left in unused.values() for path in left
    ]


def _duplicates(category: Category, digests: Mapping[Path, str]) -> list[Problem]:
    """Images with equal digests where there should be two different ones."""
    labelled = [(path, "train") for path in category.train_paths]
    labelled += [
        (path, GOOD if defect == GOOD else "defect")
        for path, defect in zip(category.test_paths, category.test_defects, strict=True)
    ]
    problems = []
    seen: dict[str, tuple[Path, str]] = {}
    for path, label in labelled:
        if path not in digests:
            continue
        first, first_label = seen.setdefault(digests[path], (path, label))
        if first is path:
            continue
        if label == first_label:
            kind = "duplicate"
        else:
            kind = "train_in_test" if first_label == "train" else "both_labels"
        problems.append(_problem(kind, path, other=first.relative_to(category.root).as_posix()))
    return problems


def _is_category(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in ("train", "test", "ground_truth"))


def _names(root: Path) -> list[str]:
    return [folder.name for folder in _entries(root)[0] if _is_category(folder)]


def categories(root: str | os.PathLike[str]) -> list[str]:
    """Names of the categories in `root`, in alphabetical order.

    Raises
    ------
    DataError
        `root` is missing or holds no category.
    """
    root = Path(root)
    _raise_errors(_missing_folder(root, "give the folder that holds the categories"))
    names = _names(root)
    if not names:
        raise DataError(_no_categories(root))
    return names


def _no_categories(root: Path) -> Problem:
    """The usual reasons are one level too high, or one too low."""
    inside = [path for path in _entries(root)[0] if _names(path)]
    if inside:
        mend = f"give {inside[0]}"
    elif _is_category(root):
        mend = f"this is a category; give the folder above it, {root.resolve().parent}"
    else:
        mend = "give the folder that holds CATEGORY/train/good"
    return _problem("no_categories", root, mend=mend)


def mvtec_root() -> Path:
    """The folder of MVTec AD, taken from the environment variable ``SSAE_MVTEC_ROOT``.

    Raises
    ------
    DataError
        The variable is not set, or names no folder.
    """
    value = os.environ.get("SSAE_MVTEC_ROOT", "")
    if not value:
        raise DataError(_problem("unset", "SSAE_MVTEC_ROOT"))
    root = Path(value).expanduser()
    _raise_errors(
        _missing_folder(root, "set SSAE_MVTEC_ROOT to the folder that holds bottle/, cable/ and so on")
    )
    return root


def data_sha256(category: Category) -> str:
    """One hash of a category's data: relative names and contents, in an order no file system decides.

    Resolution and place do not enter, so a receipt can be checked on another machine.

    Raises
    ------
    DataError
        A file cannot be read.
    """
    files = [
        *category.train_paths,
        *category.test_paths,
        *(path for path in category.mask_paths if path is not None),
    ]
    lines = []
    for path in files:
        data, problems = _read_bytes(path)
        _raise_errors(problems)
        name = _key(path.relative_to(category.root).as_posix()).encode("utf-8", "surrogateescape")
        lines.append(hashlib.sha256(name).hexdigest() + hashlib.sha256(data).hexdigest())
    return hashlib.sha256("\n".join(sorted(lines)).encode("ascii")).hexdigest()


# The validator


def check(root: str | os.PathLike[str]) -> list[Problem]:
    """Every problem of a data folder, found in one pass that nothing in the folder can stop.

    Parameters
    ----------
    root
        A folder of categories, the folder of one category, or a bare folder of photographs.

    Returns
    -------
    list of Problem
        In the order of paths; empty when all is well. Errors are what loading would refuse, and copies of an
        image that were saved anew.
    """
    root = Path(root)
    problems = _missing_folder(root, "give the folder that holds the categories")
    if problems:
        return problems
    if _is_category(root):
        return sorted(_check_category(root))
    folders, strays, problems = _entries(root)
    names = _names(root)
    if not names and all(problem.kind == "ignored" for problem in problems):
        return sorted(_check_bare(root))
    # Notes and licences beside the categories are nobody's fault; files inside them are looked at.
    problems = [problem for problem in problems if problem.kind != "ignored"]
    problems += [_problem("stray_image", path, where="CATEGORY/train/good") for path in strays]
    for folder in folders:
        problems += _check_category(folder) if folder.name in names else [_problem("not_a_category", folder)]
    return sorted(problems)


def _check_bare(folder: Path) -> list[Problem]:
    """What is wrong with a folder as :func:`load_folder` takes it."""
    files, problems = _bare_files(folder)
    if 0 < len(files) < FEW_IMAGES:
        problems.append(_problem("few_images", folder, count=len(files)))
    if not files:
        grave = [problem for problem in problems if problem.severity == "error" and problem.kind != "empty"]
        return grave or [_no_categories(folder)]
    category = Category(folder.resolve().name, folder, 1, tuple(files), copies=tuple(_copies(files).items()))
    ignored = {problem for problem in unused_files(category) if problem not in problems}
    return _check_images(category, [*problems, *ignored])


def _check_category(folder: Path) -> list[Problem]:
    return _check_images(*_list_category(folder, resolution=1))


def _check_images(category: Category, problems: list[Problem]) -> list[Problem]:
    """``problems`` that names show, and those of the images and masks themselves."""
    folder = category.root
    digests: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    modes: set[str] = set()
    for path in progress_over([*category.train_paths, *category.test_paths], folder.name):
        photo, found = _read_photo(path)
        problems += found
        if photo is not None:
            # Pixels rather than bytes: a copy saved anew is still a copy.
            pixels = repr(photo.size).encode() + photo.convert("RGB").tobytes()
            digests[path] = hashlib.sha256(pixels).hexdigest()
            sizes[path] = photo.size
            modes.add(photo.mode)
    for image_path, mask_path in zip(category.test_paths, category.mask_paths, strict=True):
        if mask_path is not None:
            mask, found = _read_mask(mask_path)
            problems += found
            if mask is not None and image_path in sizes:
                problems += _compare_sizes(mask_path, mask, sizes[image_path])
    problems += _duplicates(category, digests)
    counts = Counter(sizes.values())
    if len(counts) > 1:
        shown = ", ".join(
            f"{count} of {width} x {height}" for (width, height), count in counts.most_common(4)
        )
        problems.append(_problem("mixed_sizes", folder, sizes=shown))
    if any(width != height for width, height in counts):
        problems.append(_problem("not_square", folder))
    if len(modes) > 1:
        problems.append(_problem("mixed_colour", folder))
    return problems
