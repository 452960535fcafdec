"""The book's figure style and the drawings that several chapters share.

Every colour comes from :data:`PALETTE` (Okabe and Ito's set, told apart in all common kinds of colour
vision), every scalar field from a perceptually uniform colour map: no figure relies on hue alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "HEAT",
    "PALETTE",
    "SIGNED",
    "WIDTH",
    "Animation",
    "animate_iterates",
    "as_image",
    "draw_mask",
    "overlay",
    "png",
    "show_heat_maps",
    "show_images",
    "show_scores",
    "use_style",
]

PALETTE: dict[str, str] = {
    "normal": "#0072B2",  # blue: normal data, clean signals
    "anomaly": "#D55E00",  # vermillion: whatever is abnormal or corrupted
    "projection": "#009E73",  # bluish green: projections, reconstructions
    "accent": "#E69F00",  # orange
    "second": "#56B4E9",  # sky blue
    "third": "#CC79A7",  # reddish purple
    "highlight": "#F0E442",  # yellow: only on dark ground
    "ink": "#24292F",  # text, exact curves
    "muted": "#8C959F",  # grids, references
    "faint": "#D8DEE4",  # data in the background
}
HEAT = "inferno"  #: colour map of heat maps: dark where nothing changed
SIGNED = "PuOr"  #: colour map of signed differences, centred at zero
WIDTH = 7.2  #: full text width of a page, inches

_CYCLE = ("normal", "anomaly", "projection", "accent", "second", "third", "ink")


def use_style() -> None:
    """Set matplotlib to the book's style; in a notebook also ask for figures at twice the resolution.

    Only matplotlib's own settings (``rcParams``) are touched; ``matplotlib.rcdefaults()`` undoes it.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, WIDTH * 0.45),
            "figure.dpi": 96,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 192,
            "font.size": 9.5,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.labelsize": 9.5,
            "axes.labelcolor": PALETTE["ink"],
            "axes.edgecolor": PALETTE["muted"],
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[PALETTE[name] for name in _CYCLE]),
            "grid.color": PALETTE["faint"],
            "grid.linewidth": 0.6,
            "text.color": PALETTE["ink"],
            "xtick.color": PALETTE["ink"],
            "ytick.color": PALETTE["ink"],
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.frameon": True,
            "legend.framealpha": 0.85,
            "legend.edgecolor": "none",
            "legend.fontsize": 8.5,
            "lines.linewidth": 1.8,
            "lines.markersize": 4,
            "image.cmap": HEAT,
            "image.interpolation": "nearest",
            "svg.hashsalt": "ssae",  # the same figure gives the same file
        }
    )
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("retina")


def as_image(values: ArrayLike) -> NDArray[np.float64]:
    """An array that matplotlib draws, from an image in the layout of the models.

    Parameters
    ----------
    values : array or tensor, ``(C, H, W)``, ``(1, H, W)``, ``(H, W)`` or ``(H, W, C)``
        An image with one or three channels. Tensors may live on any device.

    Returns
    -------
    ndarray, ``(H, W)`` or ``(H, W, 3)``
        Float64, not clipped.

    Raises
    ------
    ValueError
        If no axis can be the channels.
    """
    array = np.asarray(_on_host(values), dtype=np.float64)
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise ValueError(
            f"an image has the shape (C, H, W), (H, W) or (H, W, C) with 1 or 3 channels, not {array.shape}"
        )
    return array


def overlay(
    image: ArrayLike,
    heat: ArrayLike,
    *,
    limits: tuple[float, float] | None = None,
    colormap: str | Colormap = HEAT,
    opacity: float = 0.85,
) -> NDArray[np.float64]:
    """Blend a heat map into its image: invisible where the score is low, opaque where it is high.

    Parameters
    ----------
    image : array or tensor, ``(C, H, W)``, ``(H, W)`` or ``(H, W, C)``
        In [0, 1].
    heat : array or tensor, ``(H, W)`` or ``(1, H, W)``
        Anomaly score of each pixel.
    limits : (low, high), optional
        Scores drawn as nothing and as the strongest colour. By default the smallest and the largest score of
        this map; give the same limits to several maps to compare them.
    colormap : str or Colormap
        Colours of the scores.
    opacity : float in [0, 1]
        How much the strongest colour hides of the image.

    Returns
    -------
    ndarray, ``(H, W, 3)``
        In [0, 1].
    """
    base = as_image(image)
    if base.ndim == 2:
        base = np.repeat(base[..., None], 3, axis=-1)
    scores = as_image(heat)
    if scores.shape != base.shape[:2]:
        raise ValueError(
            f"the heat map has the shape {scores.shape}, its image {base.shape[:2]}: resize one of them"
        )
    low, high = limits if limits is not None else (float(scores.min()), float(scores.max()))
    level = np.clip((scores - low) / max(high - low, 1e-12), 0.0, 1.0)
    colours = (colormaps[colormap] if isinstance(colormap, str) else colormap)(level)[..., :3]
    weight = (opacity * level)[..., None]
    return np.clip((1.0 - weight) * base + weight * colours, 0.0, 1.0)


def png(pixels: NDArray[Any]) -> bytes:
    """Encode an image ``(H, W)`` or ``(H, W, 3)``, values in [0, 1], as PNG."""
    buffer = io.BytesIO()
    # Heat maps are written by the thousand; a higher level takes five times as long for a tenth of the size.
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def draw_mask(axes: Axes, mask: ArrayLike, *, colour: str = PALETTE["second"], width: float = 1.2) -> None:
    """Outline a mask on an image that is already drawn; an empty mask draws nothing.

    Parameters
    ----------
    axes : matplotlib Axes
        Where the image is.
    mask : array or tensor, ``(H, W)`` or ``(1, H, W)``
        Boolean or in [0, 1]; the outline follows the level one half.
    colour : str
        Colour of the line, drawn over a dark rim so that it shows on every ground.
    width : float
        Width of the line, points.
    """
    level = as_image(mask)
    if level.max() <= 0.5:
        return
    # A border of zeros closes the outline of regions that touch the edge of the image.
    padded = np.pad(level, 1)
    columns, rows = np.arange(-1, level.shape[1] + 1), np.arange(-1, level.shape[0] + 1)
    for line, shade in ((2.2 * width, PALETTE["ink"]), (width, colour)):
        axes.contour(columns, rows, padded, levels=[0.5], colors=[shade], linewidths=[line])
    axes.set_xlim(-0.5, level.shape[1] - 0.5)
    axes.set_ylim(level.shape[0] - 0.5, -0.5)


def show_images(
    images: Sequence[ArrayLike],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    masks: Sequence[ArrayLike | None] | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
    colormap: str = "gray",
    width: float = WIDTH,
) -> Figure:
    """Draw images side by side, in rows of equal size, without axes.

    Parameters
    ----------
    images : sequence of arrays or tensors, each ``(C, H, W)``, ``(H, W)`` or ``(H, W, C)``
        A batch ``(B, C, H, W)`` is such a sequence.
    titles : sequence of str, optional
        One above each image; as many as there are columns label the columns only.
    columns : int, optional
        Images in a row. All of them by default.
    masks : sequence of arrays ``(H, W)`` or None, optional
        Outlined on the images.
    limits : (low, high) or None
        Values drawn as black and white. Colour images are clipped to [0, 1]; None fits each grey image.
    colormap : str
        For images with one channel.
    width : float
        Width of the figure, inches.

    Returns
    -------
    Figure
    """
    if len(images) == 0:
        raise ValueError("there is no image to show")
    drawn = [as_image(image) for image in images]
    across = columns or len(drawn)
    down = -(-len(drawn) // across)
    if titles is not None and len(titles) not in (across, len(drawn)):
        raise ValueError(f"{len(titles)} titles for {len(drawn)} images in {across} columns")
    side = width / across
    ratio = drawn[0].shape[0] / drawn[0].shape[1]
    title_height = 0.24 if titles is not None else 0.0
    rows_with_title = down if titles is not None and len(titles) > across else 1
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(width, down * side * ratio + rows_with_title * title_height),
        squeeze=False,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03},
    )
    for index, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if index >= len(drawn):
            continue
        image = drawn[index]
        low, high = limits if limits is not None else (None, None)
        axes.imshow(np.clip(image, 0, 1) if image.ndim == 3 else image, cmap=colormap, vmin=low, vmax=high)
        mask = masks[index] if masks is not None else None
        if mask is not None:
            draw_mask(axes, mask)
        if titles is not None and index < len(titles):
            axes.set_title(titles[index], fontsize=9, loc="center")
    return figure


def show_heat_maps(
    images: Sequence[ArrayLike],
    heat_maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None] | None = None,
    titles: Sequence[str] | None = None,
    *,
    limits: tuple[float, float] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Images in the upper row, the same images under their heat maps in the lower one.

    Parameters
    ----------
    images : sequence of arrays or tensors, each ``(C, H, W)``, ``(H, W)`` or ``(H, W, C)``
        In [0, 1].
    heat_maps : sequence of arrays or tensors, each ``(H, W)`` or ``(1, H, W)``
        Anomaly scores.
    masks : sequence of arrays ``(H, W)`` or None, optional
        True defects, outlined in both rows.
    titles : sequence of str, optional
        One above each column.
    limits : (low, high), optional
        Common scale of all maps. By default from the median to the largest score of all maps together, so
        that the maps can be compared with each other.
    width : float
        Width of the figure, inches.

    Returns
    -------
    Figure
    """
    if len(images) != len(heat_maps):
        raise ValueError(f"{len(images)} images but {len(heat_maps)} heat maps")
    scores = [as_image(heat) for heat in heat_maps]
    if limits is None:
        everything = np.concatenate([score.ravel() for score in scores])
        limits = (float(np.median(everything)), float(everything.max()))
    blended = [overlay(image, score, limits=limits) for image, score in zip(images, scores, strict=True)]
    return show_images(
        [*images, *blended],
        titles,
        columns=len(scores),
        masks=None if masks is None else [*masks, *masks],
        width=width,
    )


def show_scores(
    axes: Axes,
    normal: ArrayLike,
    anomalous: ArrayLike,
    *,
    threshold: float | None = None,
    label: str = "anomaly score",
) -> None:
    """Draw every score of two groups as a point, one row for each group, and the threshold as a line.

    Parameters
    ----------
    axes : matplotlib Axes
        Where to draw.
    normal, anomalous : arrays or tensors, ``(N,)``
        Scores of the two groups.
    threshold : float, optional
        Scores above it count as anomalous.
    label : str
        What the horizontal axis shows.
    """
    generator = np.random.default_rng(0)  # only spreads the points vertically
    for row, (values, name) in enumerate(((anomalous, "anomaly"), (normal, "normal"))):
        scores = np.asarray(_on_host(values), dtype=np.float64).ravel()
        heights = row + generator.uniform(-0.22, 0.22, len(scores))
        marker = "^" if name == "anomaly" else "o"
        axes.scatter(scores, heights, s=16, color=PALETTE[name], marker=marker, alpha=0.65, linewidths=0)
    if threshold is not None:
        axes.axvline(threshold, color=PALETTE["ink"], linewidth=1.2, linestyle="--")
        axes.annotate("threshold", (threshold, 1.42), xytext=(4, 0), textcoords="offset points", fontsize=8.5)
    axes.set_yticks([0, 1], ["anomalous", "normal"])
    axes.set_ylim(-0.5, 1.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)


@dataclass(frozen=True, repr=False)
class Animation:
    """A moving picture that a notebook and a page show without any script.

    Attributes
    ----------
    svg : str
        The picture, one ``svg`` element that requests nothing. It moves on screens of readers who have not
        asked for less motion; for all others, and on paper, it is a still with the whole of every path.
    name : str
        Identifier of the picture: the prefix of every name inside, and the same for the same picture.
    title : str
        What the picture is, in a few words.
    """

    svg: str
    name: str
    title: str

    def __repr__(self) -> str:
        return f"<Animation: {self.title}>"

    def _repr_html_(self) -> str:
        """The picture with a box that pauses it; the box is there only where the picture moves."""
        pause = f"{self.name}-pause"
        return (
            f'<div class="ssae-animation {self.name}"><input type="checkbox" id="{pause}"/>'
            f'<label for="{pause}">Pause</label>{self.svg}</div>'
        )


def animate_iterates(
    trajectories: Mapping[str, ArrayLike],
    *,
    title: str,
    description: str,
    ground: ArrayLike | None = None,
    counts: Sequence[int] | None = None,
    colours: Sequence[str] = ("projection", "normal", "anomaly", "third"),
    step_seconds: float = 0.75,
    width: int = 640,
) -> Animation:
    """Points of the plane that move from ``x`` to ``f(x)`` to ``f(f(x))`` ..., one panel for each map.

    All panels have the same scale and move together, over and over until the reader pauses them. Each point
    leaves its path behind. Explained in chapter 3.

    Parameters
    ----------
    trajectories : mapping from str to arrays or tensors, each ``(K + 1, N, 2)``
        Title of each panel and where its ``N`` points are at the start and after each of ``K`` moves.
    title : str
        Name of the picture for those who cannot see it.
    description : str
        What there is to see, for the same readers; it has to say what the motion shows.
    ground : array or tensor, ``(M, 2)``, optional
        A closed curve drawn in every panel.
    counts : sequence of int, ``(K + 1,)``, optional
        How often the map has been applied at each place of the trajectories: ``0, 1, ..., K`` by default.
        With gaps in the count a move stands for several applications.
    colours : sequence of str
        Names in :data:`PALETTE`, one for each panel.
    step_seconds : float
        Time of one move with the rest after it.
    width : int
        Width of the picture, CSS pixels; narrower columns shrink it.

    Returns
    -------
    Animation
        Its last value in a cell shows it.

    Raises
    ------
    ValueError
        If there is no panel, a shape is not as above, a value is not finite, or there are too few colours or
        counts.
    """
    paths = {name: np.asarray(_on_host(path), dtype=np.float64) for name, path in trajectories.items()}
    if not paths:
        raise ValueError("there is no trajectory to draw")
    if len(colours) < len(paths):
        raise ValueError(f"{len(paths)} panels but {len(colours)} colours: give one for each panel")
    frames = len(next(iter(paths.values())))
    for name, path in paths.items():
        if path.ndim != 3 or path.shape[2] != 2 or len(path) != frames or frames < 2 or path.shape[1] == 0:
            raise ValueError(
                f"the trajectories of {name!r} have the shape {path.shape}, not (K + 1, N, 2) with the same "
                "K > 0 in every panel"
            )
        if not np.isfinite(path).all():
            raise ValueError(f"the trajectories of {name!r} are not finite: apply the map less often")
    if counts is not None and len(counts) != frames:
        raise ValueError(f"{len(counts)} counts for {frames} frames: give one for each frame")
    curve = np.empty((0, 2)) if ground is None else np.asarray(_on_host(ground), dtype=np.float64)
    if curve.ndim != 2 or curve.shape[1] != 2:
        raise ValueError(f"the ground has the shape {curve.shape}, not (M, 2)")

    # From the plane to the pixels of one panel: the same scale everywhere, y upwards.
    everything = np.concatenate([curve, *(path.reshape(-1, 2) for path in paths.values())])
    low, high = everything.min(0), everything.max(0)
    gap, rim, head, foot = 14.0, 6.0, 30.0, 30.0
    across = (width - gap * (len(paths) - 1)) / len(paths)
    scale = (across - 2 * rim) / max(high[0] - low[0], (high[1] - low[1]) / 2, 1e-9)
    height = round(head + scale * (high[1] - low[1]) + rim + foot)
    corner = np.array([(across - scale * (high[0] + low[0])) / 2, head + scale * high[1]])

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.round(corner + points * [scale, -scale], 1) + 0.0

    # One round: a rest, the moves, a longer rest. When each place is reached, in per cent of it:
    seconds = 1.0 + (frames - 1) * step_seconds + 2.0
    at = [100 * (1.0 + k * step_seconds) / seconds for k in range(frames)]
    spots = {name: place(path) for name, path in paths.items()}
    outline = "L".join(map(_numbers, place(curve)))

    # All names begin with a key of their own: a page is one room for the styles of everything on it.
    words = repr((title, description, counts, colours, seconds, list(paths), outline))
    fingerprint = hashlib.sha256(words.encode() + b"".join(spot.tobytes() for spot in spots.values()))
    key = "it" + fingerprint.hexdigest()[:6]
    rules: list[str] = []  # only for those who see it move

    def animate(label: str, keyframes: str) -> None:
        rules.append(
            f"@keyframes {key}-{label}{{{keyframes}}}.{key} .{label}{{animation-name:{key}-{label}}}"
        )

    drawn: list[str] = []
    animate("all", "0%,100%{opacity:0}2%,98%{opacity:1}")
    for k in range(1, frames):
        animate(f"t{k}", f"0%,{_percent(at[k - 1])}{{opacity:0}}{_percent(at[k], 100)}{{opacity:1}}")
    for panel, ((name, spot), colour) in enumerate(zip(spots.items(), colours, strict=False)):
        drawn.append(f'<g transform="translate({_numbers([panel * (across + gap)])})">')
        drawn.append(f'<text x="{_numbers([across / 2])}" y="16" text-anchor="middle">{escape(name)}</text>')
        if outline and panel == 0:
            drawn.append(f'<path id="{key}-ground" d="M{outline}Z" fill="none" stroke="currentColor"/>')
        elif outline:
            drawn.append(f'<use href="#{key}-ground"/>')
        dots = "".join(f"M{_numbers(start)}h0" for start in spot[0])
        drawn.append(f'<path d="{dots}" stroke="currentColor" stroke-width="2.6" stroke-linecap="round"/>')
        drawn.append(f'<g class="m all" fill="{PALETTE[colour]}" stroke="{PALETTE[colour]}">')
        for k in range(1, frames):
            moved = (spot[k] != spot[k - 1]).any(1)
            steps = zip(spot[k - 1][moved], (spot[k] - spot[k - 1])[moved], strict=True)
            if trail := "".join(f"M{_numbers(start)}l{_numbers(step)}" for start, step in steps):
                drawn.append(f'<path class="m t{k}" d="{trail}" fill="none" stroke-opacity=".7"/>')
        for index, stops in enumerate(spot.transpose(1, 0, 2)):
            # The circle stands at the end; where a point stays for several frames, one rest holds them all.
            new = [0] + [k for k in range(1, frames) if (stops[k] != stops[k - 1]).any()]
            since = [0.0] + [at[k] for k in new[1:]]
            until = [at[k - 1] for k in new[1:]] + [100.0]
            rests = (
                f"{_percent(*rest)}{{translate:{_numbers(stops[k] - stops[-1], 'px')}}}"
                for k, *rest in zip(new, since, until, strict=True)
            )
            animate(f"p{panel}-{index}", "".join(rests))
            x, y = map(float, stops[-1])
            drawn.append(f'<circle class="m p{panel}-{index}" cx="{x:g}" cy="{y:g}" r="3" stroke="none"/>')
        drawn.append("</g></g>")
    turn = [0.0] + [(a + b) / 2 for a, b in pairwise(at)]  # when the counter changes: in the middle of a move
    for k, count in enumerate(range(frames) if counts is None else counts):
        text = ("at the start", "applied once")[count] if count < 2 else f"applied {count} times"
        before = f"0%{{opacity:0}}{_percent(turn[k])}" if k else "0%"
        last = k == frames - 1
        after = ",100%{opacity:1}" if last else f"{{opacity:1}}{_percent(turn[k + 1], 100)}{{opacity:0}}"
        animate(f"n{k}", before + after)
        hidden = "" if last else ' opacity="0"'
        drawn.append(f'<text class="m n n{k}" x="{width / 2:g}" y="{height - 8}"{hidden}>{text}</text>')

    # Still unless it may move: readers who asked for less motion and paper get the end of every path.
    style = (
        f"svg.{key}{{display:block;max-width:100%;height:auto;margin:auto}}.{key} .n{{text-anchor:middle}}"
        f".{key} input,.{key} label{{display:none}}"
        "@media screen and (prefers-reduced-motion:no-preference){"
        f".{key} .m{{animation:{seconds:g}s cubic-bezier(.7,0,.3,1) infinite}}"
        f".{key} .n{{animation-timing-function:step-end}}"
        f".{key} input,.{key} label{{display:inline;vertical-align:middle;margin:0 .4em 0 0}}"
        f"#{key}-pause:checked~svg .m{{animation-play-state:paused}}{''.join(rules)}}}"
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{key}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-title {key}-desc" '
        'fill="currentColor" font-size="14" stroke-width="1.2">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc><style>{style}</style>{"".join(drawn)}</svg>'
    )
    return Animation(svg=svg, name=key, title=title)


def _percent(*times: float) -> str:
    """Places in an animation, as a selector of keyframes."""
    return ",".join(f"{round(time, 1):g}%" for time in dict.fromkeys(times))


def _numbers(values: Iterable[float], unit: str = "") -> str:
    """Coordinates, to a tenth of a pixel."""
    return " ".join(
        f"{round(float(value), 1) + 0.0:g}{unit if abs(value) >= 0.05 else ''}" for value in values
    )


def _on_host(values: Any) -> Any:
    """A tensor as a CPU tensor without history; everything else unchanged."""
    return values.detach().float().cpu() if hasattr(values, "detach") else values
