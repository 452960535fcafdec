"""The live figures in a notebook: the page's own modules through anywidget, answered by the kernel's model.

``playground(...)``, ``signal_repair(...)``, ``blind_spot(...)``, ``corruption_bench(...)``,
``paint_a_defect(...)``, ``score_explorer(...)`` and ``setting_chooser(...)`` open the figures of the same
names in Jupyter, VS Code and Colab. Nothing is exported for them: each answer is a forward pass of the torch
model at hand, so a model trained anew in the notebook answers at once. Explained in the back matter of the
book.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from ipywidgets import Image as Picture
from ipywidgets import VBox, Widget
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from ssae.live import (
    SCENES,
    SIGNALS,
    BlindSpot,
    Choices,
    CorruptionBench,
    chooser_settings,
    curve_points,
    explorer_settings,
    explorer_strips,
    save_strip,
)
from ssae.payloads import FORMAT, VERSION, encode_array
from ssae.scoring import ScoringSettings

Predict = Callable[[Tensor], Tensor]

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)


def web_folder() -> Path:
    """Folder of the modules: beside the package once installed, in the repository otherwise.

    Raises
    ------
    FileNotFoundError
        If the modules are in neither place.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "_web", here.parent / "web" / "src"):
        if (folder / "frame.js").is_file():
            return folder
    raise FileNotFoundError(f"the live figures' modules are missing in {here / '_web'}; install ssae again")


@cache
def linked_module(figure: str) -> str:
    """One self-contained ES module for a figure, as anywidget wants it.

    Each module becomes a function that returns its exports, called once in the order of the imports, so names
    cannot collide. Pages of the book load the same modules unlinked.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for _, other in _IMPORT.findall(_source(name)):
                visit(other)
            order.append(name)

    visit(figure)
    visit("widget")
    body = "\n".join(_as_function(name) for name in order)
    return f"{body}\nexport default {_variable('widget')}.widgetFor({_variable(figure)}.mount);\n"


def _source(name: str) -> str:
    return (web_folder() / f"{name}.js").read_text(encoding="utf-8")


def _as_function(name: str) -> str:
    source = _source(name)
    exports = ", ".join(_EXPORT.findall(source))
    source = _IMPORT.sub(lambda found: f"const {{{found[1]}}} = {_variable(found[2])};\n", source)
    source = re.sub(r"^export ", "", source, flags=re.MULTILINE)
    return f"const {_variable(name)} = (() => {{\n{source}\nreturn {{ {exports} }};\n}})();"


def _variable(name: str) -> str:
    return "module_" + name.replace("-", "_")


class LiveFigure(anywidget.AnyWidget):
    """A live figure answered by this kernel.

    Parameters
    ----------
    figure : str
        Name of the figure, a module of ``web/src``.
    payload : dict
        What the figure reads, in the format of :mod:`ssae.payloads`; its ``models`` may be empty.
    models : mapping of str to callable
        ``model(inputs) -> outputs`` by name, batches of float32 tensors.
    parts : mapping of str to (payload, models), optional
        Further payloads by key, for figures with a choice of manifold or texture.
    options : dict, optional
        What the directive's ``:options:`` are in a page.
    file_urls : dict, optional
        Addresses of further files by role.
    """

    _css = traitlets.Unicode().tag(sync=True)
    _esm = traitlets.Unicode().tag(sync=True)
    figure = traitlets.Unicode().tag(sync=True)
    payload = traitlets.Dict().tag(sync=True)
    part_payloads = traitlets.Dict().tag(sync=True)
    options = traitlets.Dict().tag(sync=True)
    file_urls = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        figure: str,
        payload: dict[str, Any],
        models: Mapping[str, Predict],
        parts: Mapping[str, tuple[dict[str, Any], Mapping[str, Predict]]] | None = None,
        options: dict[str, Any] | None = None,
        file_urls: dict[str, str] | None = None,
    ) -> None:
        parts = parts or {}
        super().__init__(
            _esm=linked_module(figure),
            _css=(web_folder() / "live.css").read_text(encoding="utf-8"),
            figure=figure,
            payload=payload,
            part_payloads={key: part for key, (part, _) in parts.items()},
            options=options or {},
            file_urls=file_urls or {},
        )
        self._models: dict[str | None, Mapping[str, Predict]] = {None: models}
        self._models |= {key: part_models for key, (_, part_models) in parts.items()}
        self.on_msg(self._answer)

    def _answer(self, _widget: object, question: dict[str, Any], buffers: list[bytes]) -> None:
        try:
            model = self._models[question["part"]][question["model"]]
            inputs = torch.from_numpy(np.frombuffer(buffers[0], dtype="<f4").copy())
            shape = question["shape"] or (-1, self.payload["settings"]["width"])
            outputs = _run(model, inputs.reshape(tuple(shape)))
        except Exception as error:  # The figure shows the message; the kernel must not go down with it.
            self.send({"id": question["id"], "error": f"{type(error).__name__}: {error}"})
            return
        self.send({"id": question["id"]}, [outputs.numpy().astype("<f4").tobytes()])


@torch.no_grad()
def _run(model: Predict, inputs: Tensor) -> Tensor:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is not None:
        inputs = inputs.to(parameter)
    return model(inputs).float().cpu().contiguous()


def _payload(figure: str, settings: dict[str, Any], **arrays: ArrayLike | Tensor) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "figure": figure,
        "settings": settings,
        "arrays": {name: encode_array(values) for name, values in arrays.items()},
    }


def in_notebook(make: Callable[[], Widget]) -> Widget | None:
    """The widget of ``make`` in a notebook; nothing in the pages of the book, where the page's own figure
    answers.
    """
    return None if os.environ.get("SSAE_BOOK_PAGES") else make()


def playground(
    models: Mapping[str, Predict], scene: str = "circle", options: Mapping[str, Any] | None = None
) -> LiveFigure:
    """The projection playground on one manifold.

    Parameters
    ----------
    models : mapping of str to callable
        Maps of the plane, ``(B, 2)`` to ``(B, 2)``, by the keys of ``ssae.live.PLAYGROUND_OBJECTIVES``.
    scene : {"circle", "ellipse", "sine"}
        The manifold.
    options : mapping, optional
        What the directive's ``:options:`` are in a page.
    """
    chosen = SCENES[scene]
    settings = {
        "manifold": scene,
        "manifolds": {scene: chosen.title},
        "extent": chosen.extent,
        "start": list(chosen.start),
        "closed": chosen.closed,
        "width": 2,
    }
    samples = chosen.manifold.sample(150, torch.Generator().manual_seed(1))
    payload = _payload("projection-playground", settings, curve=curve_points(chosen), samples=samples)
    shown = {"methods": ["exact", *models], **(options or {})}
    return LiveFigure("projection-playground", payload, models, options=shown)


def signal_repair(models: Mapping[str, tuple[str, Predict]]) -> LiveFigure:
    """The signal-repair figure with models of your own.

    Parameters
    ----------
    models : mapping of str to (str, callable)
        Title and map of the signals, ``(B, 64)`` to ``(B, 64)``, by any key.
    """
    settings = {
        "model": next(iter(models)),
        "models": {key: title for key, (title, _) in models.items()},
        "width": SIGNALS.length,
        "shape": {
            "length": SIGNALS.length,
            "amplitudes": list(SIGNALS.amplitudes),
            "harmonics": list(SIGNALS.harmonics),
        },
    }
    payload = _payload("signal-repair", settings)
    maps = {key: model for key, (_, model) in models.items()}
    return LiveFigure("signal-repair", payload, maps, parts={key: (payload, maps) for key in models})


def paint_a_defect(
    reconstruct: Predict,
    images: Tensor,
    limit: float,
    image_limit: float,
    scoring: ScoringSettings | None = None,
) -> LiveFigure:
    """The figure in which one paints on an image, with a model and images of your own.

    Parameters
    ----------
    reconstruct : callable
        The model, ``(1, 3, S, S)`` to the same shape; for a run of the package ``run.applied``.
    images : Tensor
        Normal images to paint on, ``(N, 3, S, S)`` in [0, 1].
    limit, image_limit : float
        Largest pixel and image score of normal images, see ``ssae.experiment.thresholds``.
    scoring : ScoringSettings, optional
        How the difference becomes a heat map, as when the limits were taken; for a run
        ``run.settings.scoring``. The figure knows no other image score than ``"top"``.
    """
    scoring = scoring or ScoringSettings()
    settings = {
        "texture": "own",
        "textures": {"own": "Own"},
        "model": "own",
        "side": images.shape[-1],
        "kernel": scoring.kernel,
        "passes": scoring.passes,
        "top_share": scoring.top_share,
        "root": scoring.root,
        "limit": limit,
        "image_limit": image_limit,
    }
    payload = _payload("paint-a-defect", settings)
    return LiveFigure("paint-a-defect", payload, {"own": reconstruct}, file_urls={"images": _address(images)})


def blind_spot(figure: BlindSpot) -> LiveFigure:
    """The figure in which a defect outgrows what a network sees.

    Parameters
    ----------
    figure : BlindSpot
        Networks and images, as for ``ssae.live.write_blind_spot``.
    """
    payload = _payload("blind-spot", figure.settings(), **figure.arrays())
    files = {"images": _address(figure.images())}
    return LiveFigure("blind-spot", payload, {"both": figure.network()}, file_urls=files)


def corruption_bench(bench: CorruptionBench) -> LiveFigure:
    """The figure with the dials of the training corruption.

    Parameters
    ----------
    bench : CorruptionBench
        Images and networks, as for ``ssae.live.write_corruption_bench``.
    """
    payload = _payload("corruption-bench", bench.settings())
    parts = {key: (payload, {"model": model}) for key, (_, model) in bench.models.items()}
    files = {"images": _address(bench.pictures())}
    return LiveFigure("corruption-bench", payload, {}, parts=parts, file_urls=files)


def score_explorer(
    images: Tensor, maps: Tensor, masks: Tensor, titles: Sequence[str], passes: int = 3
) -> LiveFigure:
    """The figure with one threshold over many heat maps, for maps of your own.

    Parameters
    ----------
    images : Tensor
        ``(N, 3, S, S)`` in [0, 1].
    maps : Tensor
        What a model changed in each, ``(N, S, S)``, not negative and not filtered yet, see
        ``ssae.scoring.difference_map``.
    masks : Tensor
        ``(N, S, S)``, true where an image is defective; some pixel has to be, and some not.
    titles : sequence of str
        A name for each image.
    passes : int
        How often the box filter is applied.
    """
    largest, strips = explorer_strips(images, maps, masks)
    payload = _payload("score-explorer", explorer_settings(largest, titles, passes))
    files = {role: _address_of(Image.fromarray(strip)) for role, strip in strips.items()}
    return LiveFigure("score-explorer", payload, {}, file_urls=files)


def setting_chooser(choices: Choices) -> LiveFigure:
    """The figure in which one chooses among settings, with runs of your own.

    Parameters
    ----------
    choices
        Sets of runs, see ``ssae.live.chooser_settings``.
    """
    return LiveFigure("setting-chooser", _payload("setting-chooser", chooser_settings(choices)), {})


def sliders(draw: Callable[..., Figure], **controls: Widget) -> VBox | None:
    """Controls above a figure that follows them; in the pages of the book, which have no kernel, one frame.

    Parameters
    ----------
    draw : callable
        Gives the figure for the values of the controls.
    **controls : Widget
        One widget with a ``value`` for each argument of ``draw``, labelled with its name if it has no
        description; the page shows the frame of these values.
    """
    if os.environ.get("SSAE_BOOK_PAGES"):
        draw(**{name: control.value for name, control in controls.items()})
        plt.show()
        return None
    # A picture and not ``ipywidgets.interact``: its output widget sometimes leaves nbclient waiting for ever.
    picture = Picture(format="png")

    def show(_: object = None) -> None:
        picture.value = png(draw(**{name: control.value for name, control in controls.items()}))

    for name, control in controls.items():
        control.description = control.description or name
        control.observe(show, "value")
    show()
    return VBox([*controls.values(), picture])


def png(figure: Figure) -> bytes:
    """PNG file of a figure, for an ``ipywidgets.Image``; closes it, so that no cell shows it twice."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _address(images: Tensor) -> str:
    """Images ``(N, 3, S, S)`` as one picture, one below the other, in an address of its own."""
    buffer = io.BytesIO()
    save_strip(images, buffer)
    return _data_address(buffer)


def _address_of(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _data_address(buffer)


def _data_address(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
