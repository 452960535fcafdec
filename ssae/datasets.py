"""Images in the folder layout of MVTec AD: load them, and find everything that is wrong with them.

The layout (Bergmann et al., CVPR 2019), one folder a category::

    ROOT/CATEGORY/train/good/*.png                        normal images to train on
    ROOT/CATEGORY/test/good/*.png                         normal images to test on
    ROOT/CATEGORY/test/DEFECT/NAME.png                    defective images, one folder a kind of defect
    ROOT/CATEGORY/ground_truth/DEFECT/NAME_mask.png       their masks: 0 normal, anything else (255) defective

`load_category` reads it at any resolution, `check` lists every problem of a whole tree in one pass, and both
judge a file with the same code: what `check` calls an error is what loading refuses, as a `DataError` that names
the file, the fault and the mend.

Explained in chapters 12 and 14.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

__all__ = [
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
    "mvtec_root",
]

GOOD = "good"
MAX_PIXELS = 100_000_000  # beyond any inspection camera; above it a header is taken for a decompression bomb
FEW_IMAGES = 10  # below this a training set is named as small

_FORMATS = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".bmp": {"BMP", "DIB"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
}
_IGNORED = {"thumbs.db", "desktop.ini", "license.txt", "readme.txt"}
_LOOKS_GOOD = {"good", "ok", "normal", "okay", "goods"}


# Problems


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of a data folder.

    Attributes
    ----------
    path
        The file or folder at fault.
    kind
        A stable short name of the fault, such as ``"mask_size"``.
    message
        What is wrong, in words.
    mend
        What to do about it.
    severity
        ``"error"`` where a result would be wrong or impossible (loading refuses), ``"warning"`` where loading
        copes.
    """

    path: str
    kind: str
    message: str
    mend: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {_printable(self.path)}: {self.message}. Mend: {self.mend}."


class DataError(ValueError):
    """Data that cannot be used as it lies: the message names each file, what is wrong with it and the mend.

    Attributes
    ----------
    problems
        The `Problem` records behind the message.
    """

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        shown = [str(problem) for problem in self.problems[:10]]
        if len(self.problems) > 10:
            shown.append(f"... and {len(self.problems) - 10} more: `ssae data check` lists them all")
        super().__init__("\n".join(shown))


def _printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped: a file name may hold anything."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )


def _raise_errors(problems: Iterable[Problem]) -> None:
    errors = sorted(problem for problem in problems if problem.severity == "error")
    if errors:
        raise DataError(errors)


# Single files


def _problem(path: Path, kind: str, message: str, mend: str) -> Problem:
    return Problem(str(path), kind, message, mend)


def _warning(path: Path, kind: str, message: str, mend: str) -> Problem:
    return Problem(str(path), kind, message, mend, "warning")


def _read_bytes(path: Path) -> tuple[bytes, list[Problem]]:
    try:
        mode = path.stat().st_mode  # follows links, so a loop shows up here
        if not stat.S_ISREG(mode):
            # Opening a named pipe would wait for ever.
            return b"", [_problem(path, "not_a_file", "is not a regular file", "replace it by an image file")]
        data = path.read_bytes()
    except PermissionError:
        return b"", [
            _problem(path, "permission", "may not be read", "give yourself read permission (chmod u+r)")
        ]
    except OSError as error:
        if path.is_symlink():
            return b"", [
                _problem(
                    path,
                    "broken_link",
                    "is a link that leads nowhere or in a circle",
                    "replace it by the file it stood for",
                )
            ]
        return b"", [
            _problem(path, "unreadable", f"cannot be read ({error.strerror or error})", "copy the file again")
        ]
    if not data:
        return b"", [_problem(path, "zero_bytes", "is an empty file", "copy the file again")]
    if data.startswith(b"version https://git-lfs"):
        return b"", [
            _problem(
                path,
                "lfs_pointer",
                "is a Git LFS pointer, not the image",
                "run `git lfs pull` where it came from",
            )
        ]
    return data, []


def _read(path: Path) -> tuple[Image.Image | None, list[Problem]]:
    """The decoded image in the mode of its file, or None, and what is wrong with the file as a file."""
    data, problems = _read_bytes(path)
    if not data:
        return None, problems
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # verify() compares the check sums of a PNG, which decoding alone does not; it uses the object up.
            Image.open(io.BytesIO(data)).verify()
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            deep = ";16" in str(getattr(image, "tile", "")) or image.mode.startswith(("I", "F"))
            frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        fault = f"claims more than {MAX_PIXELS // 1_000_000} million pixels (a decompression bomb, or a wrong header)"
        return None, [_problem(path, "bomb", fault, "replace it, or cut it into smaller images")]
    except Exception as error:  # image plugins raise anything on damaged input: struct.error, SyntaxError ...
        detail = type(error).__name__
        return None, [
            _problem(
                path,
                "unreadable",
                f"is no readable image: truncated, damaged, or another kind of file ({detail})",
                "copy or export it again",
            )
        ]
    image.info["deep"] = deep
    if frames > 1:
        problems.append(
            _problem(
                path,
                "multi_frame",
                f"holds {frames} frames, and which one is meant is unknown",
                "save each as a file of its own",
            )
        )
    expected = _FORMATS.get(path.suffix.lower())
    if expected is not None and image.format not in expected:
        problems.append(
            _warning(
                path,
                "wrong_extension",
                f"is a {image.format} file by its content",
                "rename it to the right extension",
            )
        )
    return image, problems


def _opaque(image: Image.Image) -> tuple[Image.Image, bool | None]:
    """The image without alpha and palette, and whether its alpha was opaque throughout (None: it has none)."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        full = image.convert("RGBA")
        low, _ = full.getchannel("A").getextrema()
        grey = image.mode in ("LA", "La", "L")
        return full.convert("L" if grey else "RGB"), low == 255
    if image.mode == "P":
        return image.convert("RGB"), None
    return image, None


def _read_photo(path: Path) -> tuple[Image.Image | None, list[Problem]]:
    """The upright 8-bit image in mode "L" or "RGB", or None, and everything wrong with it."""
    image, problems = _read(path)
    if image is None:
        return None, problems
    if image.info["deep"]:
        fault = "has more than 8 bits a channel, and its white level is unknown"
        problems.append(
            _problem(path, "sixteen_bit", fault, "convert it to 8 bits with the camera's true range")
        )
        return None, problems
    if image.mode == "P":
        problems.append(
            _warning(path, "palette", "is a palette image (converted to RGB)", "save it as RGB or grey")
        )
    if image.mode == "CMYK":
        problems.append(
            _warning(path, "cmyk", "is CMYK (converted to RGB without a colour profile)", "export it as RGB")
        )
    elif image.mode not in ("1", "L", "RGB", "P", "RGBA", "LA", "PA", "La", "RGBa"):
        problems.append(
            _warning(path, "colour_space", f"has mode {image.mode} (converted to RGB)", "export it as RGB")
        )
    turned = image.getexif().get(0x0112, 1) not in (0, 1)
    if turned:
        fault = "is stored turned, with an EXIF orientation (turned upright on loading)"
        problems.append(
            _warning(
                path, "exif_rotation", fault, "save it upright; see that its mask fits the upright image"
            )
        )
        image = ImageOps.exif_transpose(image)
    image, opaque = _opaque(image)
    if opaque is True:
        problems.append(
            _warning(path, "alpha", "has an alpha channel (opaque, dropped)", "save it without alpha")
        )
    elif opaque is False:
        problems.append(
            _problem(
                path,
                "transparent",
                "has transparent pixels, whose colour is undefined",
                "flatten it onto a background",
            )
        )
    image = image.convert("L") if image.mode in ("1", "L") else image.convert("RGB")
    if min(image.size) < 16:
        problems.append(
            _problem(
                path, "tiny", f"is only {image.width} x {image.height} pixels", "replace it by the full image"
            )
        )
    if all(low == high for low, high in (band.getextrema() for band in image.split())):
        problems.append(
            _warning(path, "blank", "is one uniform colour", "look whether the photograph failed")
        )
    return image, problems


def _read_mask(path: Path) -> tuple[np.ndarray | None, list[Problem]]:
    """The mask as booleans (H, W), or None, and everything wrong with it by itself."""
    image, problems = _read(path)
    if image is None:
        return None, problems
    turned = image.getexif().get(0x0112, 1) not in (0, 1)
    if turned:
        problems.append(
            _warning(
                path,
                "exif_rotation",
                "is a mask stored turned (turned upright on loading)",
                "save it upright",
            )
        )
        image = ImageOps.exif_transpose(image)
    image, opaque = _opaque(image)
    if opaque is False:
        fault = "is a mask with transparent pixels: where the defect is, is unclear"
        problems.append(_problem(path, "transparent", fault, "save it as grey, 0 and 255"))
        return None, problems
    values = np.asarray(image)
    flat = values.reshape(values.shape[0], values.shape[1], -1).astype(np.int64)
    mask = (flat != 0).any(axis=2)
    marked = flat[mask]
    if marked.size and (marked != marked[0]).any():
        fault = "is a mask with grey levels between normal and defective"
        problems.append(
            _problem(path, "mask_not_binary", fault, "threshold it to 0 and 255 and save as PNG, never JPEG")
        )
    if not mask.any():
        fault = "is a mask without a single defective pixel"
        problems.append(
            _problem(path, "mask_empty", fault, "draw the defect, or move the image to test/good")
        )
    elif mask.all():
        fault = "is a mask that marks every pixel"
        problems.append(
            _warning(path, "mask_full", fault, "see that 0 means normal and that the mask is not inverted")
        )
    return mask, problems


# Loading pixels


def load_images(paths: Sequence[str | os.PathLike[str]], resolution: int) -> Tensor:
    """Read images as one tensor.

    Each is turned upright (EXIF), made RGB (grey is repeated over the channels) and resized to a square by
    Lanczos resampling whose support grows with the reduction, so nothing aliases; an image of the right size is
    not touched.

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
    for index, path in enumerate(_progress(paths, "images")):
        photo, problems = _read_photo(Path(path))
        _raise_errors(problems)
        assert photo is not None
        if photo.size != (resolution, resolution):
            photo = photo.resize((resolution, resolution), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(photo, dtype=np.float32) / 255)
        images[index] = pixels if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return images


def load_masks(
    paths: Sequence[str | os.PathLike[str] | None],
    resolution: int,
    image_paths: Sequence[str | os.PathLike[str]] | None = None,
) -> Tensor:
    """Read defect masks as one boolean tensor; None stands for a normal image and gives an empty mask.

    A mask is resampled by nearest neighbour. That keeps the share of defective pixels on average, where
    max-pooling would grow every defect. A mask that no sample hits is max-pooled instead: a defective image never
    loses its mask.

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
    for index, path in enumerate(_progress(paths, "masks")):
        if path is None:
            continue
        mask, problems = _read_mask(Path(path))
        if mask is not None and image_paths is not None:
            problems += _size_problems(Path(path), mask, Path(image_paths[index]))
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


def _size_problems(mask_path: Path, mask: np.ndarray, image_path: Path) -> list[Problem]:
    photo, _ = _read_photo(image_path)
    if photo is None or photo.size == mask.shape[::-1]:
        return []
    return [_mask_size(mask_path, mask, photo.size)]


def _mask_size(path: Path, mask: np.ndarray, size: tuple[int, int]) -> Problem:
    fault = f"is a mask of {mask.shape[1]} x {mask.shape[0]} pixels for an image of {size[0]} x {size[1]}"
    return _problem(path, "mask_size", fault, "draw or export the mask at the size of its image")


def _check_resolution(resolution: int) -> None:
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}; give the height and width in pixels, for example 256")


def _progress(items: Sequence, what: str) -> Iterable:
    return tqdm(items, desc=what, delay=2, leave=False, disable=None)


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
        Mask of each test image; None for normal ones.
    """

    name: str
    root: Path
    resolution: int
    train_paths: tuple[Path, ...]
    test_paths: tuple[Path, ...] = ()
    test_defects: tuple[str, ...] = ()
    mask_paths: tuple[Path | None, ...] = ()

    @property
    def labels(self) -> Tensor:
        """``(N,)`` bool: True for a defective test image."""
        return torch.tensor([defect != GOOD for defect in self.test_defects], dtype=torch.bool)

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
        """``(N, H, W)`` bool, True on defects, empty for normal images; see `load_masks`."""
        return load_masks(self.mask_paths, self.resolution, self.test_paths)


def _key(name: str) -> str:
    """A name for comparing and ordering: composed Unicode, since macOS stores accents decomposed."""
    return unicodedata.normalize("NFC", name)


def _entries(folder: Path) -> tuple[list[Path], list[Path], list[Problem]]:
    """Folders and image files directly in `folder`, in the order of their names, and what is odd about it."""
    folders: list[Path] = []
    files: list[Path] = []
    problems: list[Problem] = []
    try:
        names = sorted(os.listdir(folder), key=lambda name: (_key(name), name))
    except PermissionError:
        return (
            [],
            [],
            [
                _problem(
                    folder, "permission", "may not be listed", "give yourself read permission (chmod u+rx)"
                )
            ],
        )
    except OSError as error:
        return (
            [],
            [],
            [
                _problem(
                    folder,
                    "unreadable",
                    f"cannot be listed ({error.strerror or error})",
                    "replace it by a folder",
                )
            ],
        )
    for name in names:
        path = folder / name
        if name.startswith(".") or name.lower() in _IGNORED:
            continue
        if path.is_dir():
            folders.append(path)
        elif path.suffix.lower() in _FORMATS:
            files.append(path)
        else:
            ending = path.suffix or "no extension"
            problems.append(
                _warning(
                    path,
                    "ignored",
                    f"is not used: {ending} is no known image type",
                    "convert it to PNG, or remove it",
                )
            )
    return folders, files, problems


def image_files(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The image files directly in `folder`, in the order of their (Unicode-composed) names.

    Raises
    ------
    DataError
        The folder is missing, may not be read, or holds no image.
    """
    folder = Path(folder)
    _raise_errors(_missing_folder(folder, "give the path of a folder with images"))
    _, files, problems = _entries(folder)
    _raise_errors(problems)
    if not files:
        kinds = ", ".join(_FORMATS)
        raise DataError(_problem(folder, "empty", "holds no image", f"put images there ({kinds})"))
    return tuple(files)


def _missing_folder(folder: Path, mend: str) -> list[Problem]:
    if folder.is_dir():
        return []
    what = "is not a folder" if os.path.lexists(folder) else "does not exist"
    return [_problem(folder, "missing", what, mend)]


def load_folder(folder: str | os.PathLike[str], resolution: int) -> Category:
    """A bare folder of normal images as a `Category` without test images.

    Raises
    ------
    DataError
        The folder is missing or holds no image.
    """
    _check_resolution(resolution)
    folder = Path(folder)
    return Category(folder.resolve().name, folder, resolution, image_files(folder))


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

    Raises
    ------
    DataError
        A split is missing or empty, a mask is missing or ambiguous, or a file lies both in train and in test.
    """
    _check_resolution(resolution)
    folder = Path(root) / category
    if not folder.is_dir():
        found = ", ".join(_names(Path(root))) or "none"
        raise DataError(
            _problem(folder, "missing", "does not exist", f"choose one of the categories there: {found}")
        )
    listing, problems = _list_category(folder, resolution)
    digests: dict[Path, str] = {}
    for path in (*listing.train_paths, *listing.test_paths):
        data, _ = _read_bytes(path)  # an unreadable file is refused when its pixels are asked for
        if data:
            digests[path] = hashlib.sha256(data).hexdigest()
    _raise_errors(problems + _duplicates(listing, digests))
    return listing


def _list_category(folder: Path, resolution: int = 256) -> tuple[Category, list[Problem]]:
    """The files of a category folder as far as they match, and every problem that names alone show."""
    problems: list[Problem] = []
    train_folder, test_folder, truth_folder = folder / "train", folder / "test", folder / "ground_truth"

    train: list[Path] = []
    missing = _missing_folder(train_folder / GOOD, "put the normal training images into train/good")
    problems += missing
    if not missing:
        folders, train, found = _entries(train_folder / GOOD)
        problems += found + [_nested(path) for path in folders] + _same_stem(train)
        if not train and not any(problem.kind == "permission" for problem in found):
            problems.append(
                _problem(
                    train_folder / GOOD, "empty", "holds no image", "put the normal training images there"
                )
            )
        elif 0 < len(train) < FEW_IMAGES:
            mend = "take more photographs of normal parts"
            problems.append(
                _warning(train_folder / GOOD, "few_images", f"holds only {len(train)} images", mend)
            )
        folders, files, _ = _entries(train_folder)
        for path in folders:
            if path.name != GOOD:
                mend = "training uses train/good only; move defects to test/"
                problems.append(_warning(path, "train_folder", "lies in train and is not used", mend))
        problems += [_stray(path, "train/good") for path in files]

    test: list[Path] = []
    defects: list[str] = []
    masks: list[Path | None] = []
    missing = _missing_folder(test_folder, "put test images into test/good and test/DEFECT")
    problems += missing
    kinds: list[Path] = []
    if not missing:
        kinds, files, found = _entries(test_folder)
        problems += found + [_stray(path, "test/good or test/DEFECT") for path in files]
        if GOOD not in {path.name for path in kinds}:
            problems.append(
                _problem(
                    test_folder / GOOD,
                    "missing",
                    "does not exist",
                    "put normal test images there: metrics need both",
                )
            )
        if all(path.name == GOOD for path in kinds):
            mend = "put defective images into test/DEFECT: metrics need both"
            problems.append(_problem(test_folder, "no_defects", "holds no defect folder", mend))
    for kind in kinds:
        folders, files, found = _entries(kind)
        problems += found + [_nested(path) for path in folders] + _same_stem(files)
        if kind.name != GOOD and kind.name.strip().casefold() in _LOOKS_GOOD:
            fault = "would count as a kind of defect, but its name says normal"
            problems.append(_problem(kind, "good_misspelt", fault, "name it exactly 'good'"))
        if not files and not any(problem.kind in ("permission", "unreadable") for problem in found):
            problems.append(
                _problem(kind, "empty", "holds no image", "put images there, or remove the folder")
            )
        test += files
        defects += [_key(kind.name)] * len(files)
        matched, found = _match_masks(kind, files, truth_folder / kind.name)
        masks += matched
        problems += found
    if truth_folder.is_dir():
        for path in _entries(truth_folder)[0]:
            if path.name != GOOD and _key(path.name) not in {_key(kind.name) for kind in kinds}:
                mend = "restore test/" + path.name + ", or remove the masks"
                problems.append(
                    _warning(path, "orphan_masks", "holds masks of a defect that test does not have", mend)
                )
    category = Category(
        _key(folder.resolve().name),
        folder,
        resolution,
        tuple(train),
        tuple(test),
        tuple(defects),
        tuple(masks),
    )
    return category, problems


def _nested(path: Path) -> Problem:
    return _warning(
        path,
        "nested_folder",
        "is a folder inside a folder of images and is not used",
        "move its images one level up",
    )


def _stray(path: Path, where: str) -> Problem:
    return _warning(path, "stray_image", "lies outside the layout and is not used", f"move it into {where}")


def _same_stem(files: Sequence[Path]) -> list[Problem]:
    """Two files that differ only in their extension or case would share a mask."""
    first: dict[str, Path] = {}
    problems = []
    for path in files:
        stem = _key(path.stem).casefold()
        if stem in first:
            fault = f"has the same name as {_printable(first[stem].name)} but for extension or case"
            problems.append(_problem(path, "same_name", fault, "rename or remove one of the two"))
        first.setdefault(stem, path)
    return problems


def _match_masks(kind: Path, images: Sequence[Path], folder: Path) -> tuple[list[Path | None], list[Problem]]:
    """The mask of each image of one test folder, and what does not match."""
    if kind.name == GOOD:
        problems = []
        if folder.is_dir():
            for path in _entries(folder)[1]:
                mask, _ = _read_mask(path)
                if mask is not None and mask.any():
                    fault = "marks a defect on an image of test/good"
                    problems.append(
                        _problem(
                            path,
                            "mask_on_good",
                            fault,
                            "move the image to its defect folder, or remove the mask",
                        )
                    )
        return [None] * len(images), problems
    if not folder.is_dir():
        if not images:
            return [], []
        mend = f"put the {len(images)} masks there, named NAME_mask.png"
        return [None] * len(images), [
            _problem(folder, "no_masks", "does not exist: the defects have no masks", mend)
        ]
    _, files, problems = _entries(folder)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_stem[_key(path.stem)].append(path)
    masks: list[Path | None] = []
    used: set[Path] = set()
    for image in images:
        stem = _key(image.stem)
        found = by_stem.get(stem + "_mask", []) + by_stem.get(stem, [])
        used.update(found)
        masks.append(found[0] if found else None)
        if not found:
            mend = f"draw {_printable(folder.name)}/{_printable(image.stem)}_mask.png"
            problems.append(_problem(image, "mask_missing", "is a defective image without a mask", mend))
        elif len(found) > 1:
            others = ", ".join(_printable(path.name) for path in found)
            problems.append(_problem(image, "mask_ambiguous", f"has several masks: {others}", "keep one"))
    for path in files:
        if path not in used:
            problems.append(
                _warning(
                    path,
                    "mask_without_image",
                    "is a mask without an image",
                    "restore the image, or remove the mask",
                )
            )
    return masks, problems


def _duplicates(category: Category, digests: dict[Path, str]) -> list[Problem]:
    """Images with equal digests where there should be two different ones."""
    problems = []
    train: dict[str, Path] = {}
    for path in category.train_paths:
        digest = digests.get(path)
        if digest in train:
            problems.append(
                _warning(
                    path,
                    "duplicate",
                    f"is the same image as {_printable(train[digest].name)}",
                    "remove one of the two",
                )
            )
        elif digest is not None:
            train[digest] = path
    test: dict[str, tuple[Path, str]] = {}
    for path, defect in zip(category.test_paths, category.test_defects, strict=True):
        digest = digests.get(path)
        if digest is None:
            continue
        if digest in train:
            fault = f"is the training image train/good/{_printable(train[digest].name)}"
            problems.append(
                _problem(
                    path,
                    "train_in_test",
                    fault,
                    "remove it from one of the two: a test on training images proves nothing",
                )
            )
        if digest in test:
            other, kind = test[digest]
            where = f"{_printable(kind)}/{_printable(other.name)}"
            if (kind == GOOD) != (defect == GOOD):
                problems.append(
                    _problem(
                        path,
                        "both_labels",
                        f"is also test/{where}: normal and defective at once",
                        "remove one of the two",
                    )
                )
            else:
                problems.append(
                    _warning(path, "duplicate", f"is the same image as test/{where}", "remove one of the two")
                )
        test.setdefault(digest, (path, defect))
    return problems


def _is_category(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in ("train", "test", "ground_truth"))


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        return []
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
    inside = [path.name for path in _entries(root)[0] if _names(path)]
    mend = (
        f"give {_printable(str(root / inside[0]))}"
        if inside
        else "give the folder that holds CATEGORY/train/good"
    )
    return _problem(root, "no_categories", "holds no category of the MVTec AD layout", mend)


def mvtec_root() -> Path:
    """The folder of MVTec AD, taken from the environment variable ``SSAE_MVTEC_ROOT``.

    Raises
    ------
    DataError
        The variable is not set, or names no folder.
    """
    value = os.environ.get("SSAE_MVTEC_ROOT", "")
    if not value:
        mend = (
            "download MVTec AD from its authors (licence CC BY-NC-SA 4.0), unpack it, and set SSAE_MVTEC_ROOT "
            "to the folder that holds bottle/, cable/, ...; or give --data"
        )
        raise DataError(Problem("SSAE_MVTEC_ROOT", "unset", "is not set, so MVTec AD cannot be found", mend))
    root = Path(value).expanduser()
    _raise_errors(_missing_folder(root, "set SSAE_MVTEC_ROOT to the folder that holds bottle/, cable/, ..."))
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
        A folder of categories, or the folder of one category.

    Returns
    -------
    list of Problem
        In the order of paths; empty when all is well. Errors are what loading would refuse.
    """
    root = Path(root)
    problems = _missing_folder(root, "give the folder that holds the categories")
    if problems:
        return problems
    if _is_category(root):
        return sorted(_check_category(root))
    folders, files, problems = _entries(root)
    if any(problem.kind == "permission" for problem in problems):
        return problems
    problems = [_stray(path, "CATEGORY/train/good") for path in files]
    if not _names(root):
        problems.append(_no_categories(root))
    for folder in folders:
        if _is_category(folder):
            problems += _check_category(folder)
        elif _names(root):
            mend = "remove it, or add train/good and test"
            problems.append(
                _warning(folder, "not_a_category", "is a folder without train and test, and not used", mend)
            )
    return sorted(problems)


def _check_category(folder: Path) -> list[Problem]:
    category, problems = _list_category(folder)
    digests: dict[Path, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    size_of: dict[Path, tuple[int, int]] = {}
    for path in _progress([*category.train_paths, *category.test_paths], folder.name):
        photo, found = _read_photo(path)
        problems += found
        if photo is not None:
            # Pixels rather than bytes: a copy saved anew is still a copy.
            digests[path] = hashlib.sha256(
                repr(photo.size).encode() + photo.convert("RGB").tobytes()
            ).hexdigest()
            size_of[path] = photo.size
            sizes[photo.size] += 1
            modes[photo.mode] += 1
    for image, mask_path in zip(category.test_paths, category.mask_paths, strict=True):
        if mask_path is None:
            continue
        mask, found = _read_mask(mask_path)
        problems += found
        if mask is not None and image in size_of and size_of[image] != mask.shape[::-1]:
            problems.append(_mask_size(mask_path, mask, size_of[image]))
    problems += _duplicates(category, digests)
    if len(sizes) > 1:
        shown = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sizes.most_common(4))
        problems.append(
            _warning(
                folder,
                "mixed_sizes",
                f"has images of several sizes ({shown})",
                "see that all show the part at one scale",
            )
        )
    if any(width != height for width, height in sizes):
        problems.append(
            _warning(
                folder,
                "not_square",
                "has images that are not square (squeezed on loading)",
                "crop them to a square",
            )
        )
    if len(modes) > 1:
        problems.append(
            _warning(
                folder,
                "mixed_colour",
                "has grey and colour images",
                "use one kind: colour itself becomes an anomaly",
            )
        )
    return problems
