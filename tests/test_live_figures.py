"""The live figures in a browser: a small book of them, and those of the built book.

Chromium may talk to the test's own server only. What the figures say is compared with what torch says.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssae import live, widgets
from ssae.corruption import CorruptionSettings, procedural_textures
from ssae.experiment import ExperimentSettings, Run
from ssae.metrics import au_pro, pixel_auroc
from ssae.models import ModelSettings, build, portable
from ssae.payloads import read_payload
from ssae.receipts import METRICS
from ssae.scoring import box_filter, heat_map, image_scores
from ssae.textures import make_textures
from ssae.training import FitSettings

ROOT = Path(__file__).parents[1]
TOYS = ["projection-playground", "signal-repair", "score-explorer", "corruption-bench", "setting-chooser"]
FIGURES = [*TOYS, "blind-spot", "paint-a-defect"]

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.alone]

CONF = """
import sys
sys.path.insert(0, {extensions!r})
project = "live figures"
extensions = ["myst_nb", "live_figure"]
html_theme = "sphinx_book_theme"
html_context = {{"default_mode": "auto"}}
nb_execution_mode = "off"
numfig = True
"""
PAGE = """# {name}

```{{live-figure}} {name}
:name: fig-{name}
:alt: A still picture of {name}.
:start: {start}
:label: Start it

The caption.
```
"""
SLOW = ModelSettings(channels=(8,), dilations=(1, 2), sdc_filters=4, sdc_layers=1, sdc_kernel=3)


def small_blind_spot() -> live.BlindSpot:
    torch.manual_seed(1)
    sources = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return live.BlindSpot(
        models={
            name: (name, build(replace(SLOW, dilations=(rate,))).eval())
            for name, rate in (("plain", 1), ("dilated", 2))
        },
        fields={"plain": (9, 22), "dilated": (4, 27)},
        sources=sources,
        inputs=(sources + 0.02).clamp(0, 1),
        fills=sources.flip(0, 3),
        variance=0.08,
    )


def chosen_runs() -> dict[str, list[tuple[str, dict]]]:
    """Two sets of runs: four changes with one seed each, four with two."""
    rng = np.random.default_rng(3)
    sets = {}
    for title, changes, seeds in (("one", "abcd", 1), ("two", "wxyz", 2)):
        sets[title] = [
            (
                change,
                {
                    ground: dict(zip(METRICS, rng.random(4), strict=True))
                    for ground in ("validation", "metrics")
                },
            )
            for change in changes
            for _ in range(seeds)
        ]
    return sets


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Site:
    """A built book of one page for each figure, with the models behind it."""

    def __init__(self, folder: Path) -> None:
        target = folder / "_generated" / "live"
        self.playground = live.write_playground(FitSettings(steps=5, learning_rate=1e-2), target)
        self.repair = live.write_signal_repair(FitSettings(steps=5), target)
        data = make_textures(folder / "data", train=24, test_good=2, per_defect=1)
        torch.manual_seed(0)
        self.runs = {
            name: Run(
                build(SLOW).eval(), ExperimentSettings.for_category(name), str(data), torch.device("cpu")
            )
            for name in ("brick",)
        }
        live.write_paint_a_defect(self.runs, count=2, directory=target)
        live.write_score_explorer(self.runs["brick"], directory=target)
        self.blind_spot = small_blind_spot()
        live.write_blind_spot(self.blind_spot, target)
        self.bench = live.CorruptionBench(
            images=procedural_textures(2, 64, seeded(1)),
            textures=procedural_textures(2, 64, seeded(2)),
            models={"own": ("own", build(SLOW).eval())},
            corruption=CorruptionSettings(side=(0.3, 0.3)),
        )
        live.write_corruption_bench(self.bench, target)
        self.choices = chosen_runs()
        live.write_setting_chooser(self.choices, target)
        self.payloads = target
        (folder / "conf.py").write_text(CONF.format(extensions=str(ROOT / "book" / "_ext")), encoding="utf-8")
        for name in FIGURES:
            start = "visible" if name in TOYS else "button"
            page = folder / f"{name}.md"
            page.write_text(PAGE.format(name=name, start=start), encoding="utf-8")
        budget = PAGE.format(name=TOYS[0], start="visible").replace(":name: fig-", ":name: budget-")
        budget = budget.replace(":alt:", ':options: {"budget": true}\n:alt:')
        (folder / "budget.md").write_text(budget, encoding="utf-8")
        entries = "\n".join([*FIGURES, "budget"])
        (folder / "index.md").write_text(f"# All\n\n```{{toctree}}\n{entries}\n```\n", encoding="utf-8")
        self.html = folder / "html"
        command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(folder), str(self.html)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def address(site: Site, serve) -> str:
    return serve(site.html)


class Tab:
    """A page that may only talk to the test's server, and remembers what went wrong and what was loaded."""

    def __init__(self, context, address: str) -> None:
        self.address = address
        self.complaints: list[str] = []
        self.loaded: dict[str, int] = {}
        context.route("**/*", self._route)
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("response", self._response)

    def _route(self, route) -> None:
        url = route.request.url
        if url.endswith("favicon.ico"):
            route.fulfill(status=204)
        elif url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.complaints.append(f"requests {url}")
            route.abort()

    def _console(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _response(self, response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status} {response.url}")
        elif "/live/" in response.url:
            path = response.url.split("?")[0].removeprefix(self.address)
            self.loaded[path] = response.status

    def open(self, path: str, name: str):
        """Go to a page and wait until its figure is ready; gives the figure."""
        self.page.goto(f"{self.address}/{path}.html")
        figure = self.page.locator(f"[data-live-figure={name}]").first
        figure.scroll_into_view_if_needed()
        if figure.get_attribute("data-start") == "button":
            figure.locator(".lf-start").click()
        wait_for_state(figure, "ready")
        return figure


def wait_for_state(figure, state: str) -> None:
    handle = figure.element_handle()
    handle.owner_frame().wait_for_function(
        "figure => ['ready', 'failed'].includes(figure.dataset.state)", arg=handle, timeout=90_000
    )
    assert figure.get_attribute("data-state") == state, figure.locator(".lf-status").inner_text()


def readout(figure, name: str) -> float:
    text = figure.locator(f"[data-readout='{name}']").inner_text()
    return float(text.replace("−", "-").split()[0].rstrip("%"))


def settle(page) -> None:
    """Wait until answers under way are shown."""
    page.wait_for_timeout(250)


@pytest.fixture
def tab(browser, address: str) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = Tab(context, address)
    yield tab
    context.close()
    assert not tab.complaints


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_figure_costs_less_than_100_kilobytes(tab: Tab, site: Site, name: str) -> None:
    tab.open(name, name)
    settle(tab.page)
    size = sum(len(gzip.compress((site.html / path.lstrip("/")).read_bytes())) for path in tab.loaded)
    assert "/_static/live/page.js" in tab.loaded
    assert size < 100_000, f"{size} bytes: {sorted(tab.loaded)}"


def test_the_playground_says_what_torch_says(tab: Tab, site: Site) -> None:
    figure = tab.open(TOYS[0], TOYS[0])
    for scene, keys in (("circle", []), ("ellipse", ["ArrowLeft"] * 5 + ["Shift+ArrowDown"])):
        figure.get_by_role("radio", name=live.SCENES[scene].title).check()
        settle(tab.page)
        for key in keys:
            figure.locator(".pp-handle").press(key)
        settle(tab.page)
        shown = figure.locator("[data-readout=position]").inner_text().replace("−", "-").split(",")
        point = torch.tensor([[float(value) for value in shown]], dtype=torch.float64)
        target = live.SCENES[scene].manifold.project(point)
        assert readout(figure, "distance") == pytest.approx(float((point - target).norm()), abs=0.01)
        assert readout(figure, "error-exact") == pytest.approx(0, abs=1e-3)
        for name, model in site.playground[scene].items():
            end = model(point.float()).double()
            # The position is shown with two digits, which bounds what can be compared.
            assert readout(figure, f"moved-{name}") == pytest.approx(
                float((end - point).detach().norm()), abs=0.02
            )
            assert readout(figure, f"error-{name}") == pytest.approx(
                float((end - target).detach().norm()), abs=0.02
            )


def test_the_point_follows_pointer_and_keys(tab: Tab) -> None:
    figure = tab.open(TOYS[0], TOYS[0])
    box = figure.locator(".pp-plot").bounding_box()
    extent = live.SCENES["circle"].extent
    tab.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
    tab.page.mouse.up()
    settle(tab.page)
    assert readout(figure, "distance") == pytest.approx(abs(0.5 * extent - 1), abs=0.02)
    figure.locator(".pp-handle").press("ArrowRight")
    settle(tab.page)
    assert readout(figure, "distance") == pytest.approx(abs(0.52 * extent - 1), abs=0.02)
    assert "pp-handle" in tab.page.evaluate("document.activeElement.getAttribute('class')")
    figure.get_by_role("button", name="Start over").click()
    figure.locator("select").select_option("dae")
    settle(tab.page)
    assert len(figure.locator(".pp-field").get_attribute("d")) > 1000


#: Milliseconds from an event to the read-out that answers it, for each of ``values``: keys, or slider places.
TIMES = """async (figure, [selector, readout, values]) => {
  const control = figure.querySelector(selector);
  const cell = figure.querySelector(`[data-readout=${readout}]`);
  const times = [];
  for (const value of values) {
    await new Promise((resolve) => setTimeout(resolve, 30));
    const begin = performance.now();
    const changed = new Promise((resolve) => new MutationObserver((_, observer) => {
      observer.disconnect();
      resolve();
    }).observe(cell, { childList: true }));
    if (typeof value === "string") {
      control.dispatchEvent(new KeyboardEvent("keydown", { key: value, bubbles: true }));
    } else {
      control.value = Number(control.min) + value * (control.max - control.min);
      control.dispatchEvent(new Event("input", { bubbles: true }));
    }
    await changed;
    times.push(performance.now() - begin);
  }
  return times;
}"""
ARROWS = ["ArrowLeft", "ArrowRight"] * 15
SHARES = [(0.37 * i) % 1 for i in range(30)]


def page_with(name: str, *folders: Path) -> Path:
    """The first page that shows the figure ``name``."""
    pages = (page for folder in folders for page in sorted(folder.glob("*.html")))
    return next(page for page in pages if f'data-live-figure="{name}"' in page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "control", "answer", "values"),
    [
        ("projection-playground", ".pp-handle", "position", ARROWS),
        ("signal-repair", ".sr-plot", "change-model", ARROWS),
        ("score-explorer", ".lf-slider:has([data-readout=threshold]) input", "tpr", SHARES),
        ("score-explorer", ".lf-slider:has([data-readout=kernel]) input", "pro", SHARES),
        ("corruption-bench", ".lf-slider:has([data-readout=warp]) input", "damage", SHARES),
        ("corruption-bench", ".cb-canvas", "damage", ARROWS),
    ],
)
def test_a_toy_figure_answers_within_a_frame(
    html: Path, site: Site, browser, serve, name: str, control: str, answer: str, values: list
) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = page_with(name, html, site.html)
    figure = Tab(context, serve(page.parent)).open(page.stem, name)
    times = figure.evaluate(TIMES, [control, answer, values])
    context.close()
    # The best of thirty: what the figure needs when nothing else runs on the machine.
    assert min(times) < 16, times


def test_painting_is_answered_while_the_reader_waits(html: Path, browser, serve) -> None:
    """The first answer within five seconds of the click, every further one within 150 milliseconds."""
    name = "paint-a-defect"
    tab = Tab(browser.new_context(viewport={"width": 1200, "height": 900}), serve(html))
    firsts = []
    for _ in range(3):
        tab.page.goto(f"{tab.address}/{page_with(name, html).name}")
        figure = tab.page.locator(f"[data-live-figure={name}]").first
        firsts.append(
            figure.evaluate(
                """async (figure) => {
                  const begin = performance.now();
                  figure.querySelector(".lf-start").click();
                  const score = () => figure.querySelector("[data-readout=score]")?.textContent ?? "–";
                  while (score() === "–") await new Promise((resolve) => setTimeout(resolve, 10));
                  return performance.now() - begin;
                }"""
            )
        )
        if firsts[-1] < 5000:
            break
    assert figure.locator("canvas").first.get_attribute("width") == "128"
    times = figure.evaluate(TIMES, ["canvas", "score", [" "] * 12])
    tab.page.context.close()
    assert min(firsts) < 5000, firsts
    assert min(times) < 150, times


def test_signal_repair_says_what_torch_says(tab: Tab, site: Site) -> None:
    figure = tab.open(TOYS[1], TOYS[1])
    source = live.SIGNALS.embed(torch.tensor([[0.6]], dtype=torch.float64))
    seen = source.clone()
    seen[:, 19:31] = -0.9
    exact = live.SIGNALS.project(seen)
    maps = {"exact": exact, "model": site.repair["masked"](seen.float()).double()}
    clean = torch.ones(64, dtype=torch.bool)
    clean[19:31] = False

    def rms(gap: torch.Tensor) -> float:
        return float(gap.square().mean().sqrt())

    for name, output in maps.items():
        assert readout(figure, f"change-{name}") == pytest.approx(rms(output - seen), abs=2e-3)
        assert readout(figure, f"source-{name}") == pytest.approx(rms(output - source), abs=2e-3)
        assert readout(figure, f"clean-{name}") == pytest.approx(rms((output - seen)[:, clean]), abs=2e-3)

    assert not any("signal-repair-dae" in path for path in tab.loaded)
    figure.locator("select").select_option("dae")
    settle(tab.page)
    assert any("signal-repair-dae" in path for path in tab.loaded)
    output = site.repair["dae"](seen.float()).double()
    assert readout(figure, "change-model") == pytest.approx(rms(output - seen), abs=2e-3)


def test_signals_are_painted_with_pointer_and_keys(tab: Tab) -> None:
    figure = tab.open(TOYS[1], TOYS[1])
    figure.get_by_role("button", name="Erase").click()
    settle(tab.page)
    assert readout(figure, "painted") == 0
    assert readout(figure, "change-exact") == pytest.approx(0, abs=1e-3)
    plot = figure.locator(".sr-plot").first
    box = plot.bounding_box()
    tab.page.mouse.move(box["x"] + 10.5 * box["width"] / 64, box["y"] + 5)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 19.5 * box["width"] / 64, box["y"] + 5)
    tab.page.mouse.up()
    settle(tab.page)
    assert readout(figure, "painted") == 10
    plot.press("ArrowRight")
    plot.press("ArrowUp")
    settle(tab.page)
    assert readout(figure, "painted") == 11


def test_a_drag_that_the_browser_breaks_off_ends_where_it_was(tab: Tab) -> None:
    figure = tab.open(TOYS[1], TOYS[1])
    figure.get_by_role("button", name="Erase").click()
    plot = figure.locator(".sr-plot").first
    box = plot.bounding_box()
    tab.page.mouse.move(box["x"] + 40.5 * box["width"] / 64, box["y"] + 5)
    tab.page.mouse.down()
    cancel = "plot => plot.dispatchEvent(new PointerEvent('pointercancel', {pointerId: 1, bubbles: true}))"
    plot.evaluate(cancel)
    tab.page.mouse.move(box["x"] + 60.5 * box["width"] / 64, box["y"] + 5)
    tab.page.mouse.up()
    settle(tab.page)
    assert readout(figure, "painted") == 1


def test_a_setting_is_chosen_by_drawn_defects_and_then_judged_by_the_test_split(tab: Tab, site: Site) -> None:
    figure = tab.open("setting-chooser", "setting-chooser")
    for title, metric in (("one", "pixel_auroc"), ("two", "au_pro")):
        figure.get_by_label("Runs").select_option(label=title)
        figure.get_by_label("Judged by").select_option(metric)
        runs = site.choices[title]
        means = {
            ground: {
                change: np.mean([receipt[ground][metric] for other, receipt in runs if other == change])
                for change, _ in runs
            }
            for ground in ("validation", "metrics")
        }
        test = means["metrics"]
        assert figure.locator(".sc-test").count() == 0, "covered until something is chosen"
        assert figure.locator("[data-readout=test]").inner_text() == "–"
        for change in test:
            figure.get_by_role("radio", name=change).check()
            assert readout(figure, "drawn") == pytest.approx(100 * means["validation"][change], abs=0.06)
            assert readout(figure, "test") == pytest.approx(100 * test[change], abs=0.06)
            assert readout(figure, "cost") == pytest.approx(
                100 * (max(test.values()) - test[change]), abs=0.06
            )
            assert readout(figure, "place") == 1 + sum(other > test[change] for other in test.values())
        marks = len(runs) + (len(test) if len(runs) > len(test) else 0)
        assert figure.locator(".sc-test").count() == figure.locator(".sc-drawn").count() == marks
        figure.get_by_role("button", name="Take the best").click()
        best = max(means["validation"], key=means["validation"].get)
        assert figure.get_by_role("radio", name=best).is_checked()
        figure.get_by_role("button", name="Cover").click()
        assert figure.locator(".sc-test").count() == 0
        assert figure.get_by_role("radio", checked=True).count() == 0
    first, second = list(test)[:2]
    figure.get_by_role("radio", name=first).focus()
    tab.page.keyboard.press("ArrowDown")
    assert figure.locator(".sc-test").count() == 0, "one may look before choosing"
    assert figure.get_by_role("radio", name=second).evaluate("input => input === document.activeElement")
    tab.page.keyboard.press("Space")
    assert figure.get_by_role("radio", name=second).is_checked()
    assert figure.locator(".sc-test").count() > 0
    figure.get_by_role("radio", name=first).check()
    figure.get_by_role("radio", name=first).press("ArrowDown")
    assert figure.get_by_role("radio", name=second).is_checked()
    with pytest.raises(ValueError, match="nothing to choose among"):
        live.chooser_settings({"one": runs[:1]})


def test_the_score_explorer_measures_as_the_package_does(tab: Tab, site: Site) -> None:
    figure = tab.open(TOYS[2], TOYS[2])
    settings = json.loads((site.payloads / "score-explorer.json").read_text())["settings"]
    side = settings["side"]
    strip = np.asarray(Image.open(site.payloads / "score-explorer.maps.png")).reshape(-1, side, side, 3)
    maps = settings["largest"] * (torch.from_numpy(strip[..., 0].copy()).float() / 255).square()
    masks = strip[..., 1] > 127
    for kernel, passes in ((settings["kernel"], settings["passes"]), (9, 2)):
        figure.get_by_role("slider", name="Filter width").fill(str(kernel))
        figure.get_by_role("slider", name="Passes").fill(str(passes))
        settle(tab.page)
        heat = box_filter(maps, kernel, passes)
        assert readout(figure, "auroc") == pytest.approx(pixel_auroc(heat, masks), abs=3e-3)
        assert readout(figure, "aupro") == pytest.approx(au_pro(heat, masks, 0.3), abs=3e-3)
    found = readout(figure, "tpr")
    figure.get_by_role("slider", name="Threshold").fill("0")
    settle(tab.page)
    assert readout(figure, "tpr") == pytest.approx(100, abs=0.1)
    assert readout(figure, "tpr") >= found


def pixels(figure, which: int) -> torch.Tensor:
    """A canvas as ``(1, 3, S, S)`` in [0, 1]."""
    canvas = figure.locator("canvas").nth(which)
    data = canvas.evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
    side = int(len(data) ** 0.5 / 2)
    return (torch.tensor(data).reshape(side, side, 4)[..., :3].permute(2, 0, 1)[None] / 255).float()


def test_painting_is_judged_as_torch_judges_it(tab: Tab, site: Site) -> None:
    name = "paint-a-defect"
    tab.page.goto(f"{tab.address}/{name}.html")
    figure = tab.page.locator(f"[data-live-figure={name}]")
    settle(tab.page)
    assert figure.get_attribute("data-state") == "idle"
    assert not any(path.endswith((".onnx", ".wasm", ".json")) for path in tab.loaded)
    figure = tab.open(name, name)
    settings = json.loads((site.payloads / f"{name}.json").read_text())["settings"]
    scoring = site.runs["brick"].settings.scoring

    def judged() -> float:
        seen = pixels(figure, 0)
        heat = heat_map(seen, site.runs["brick"].reconstruct(seen), scoring)
        return float(image_scores(heat, scoring)) / settings["image_limit"]

    settle(tab.page)
    first = readout(figure, "score")
    assert first == pytest.approx(judged(), rel=0.03)
    repaired = site.runs["brick"].reconstruct(pixels(figure, 0)).clamp(0, 1)
    assert float((pixels(figure, 1) - repaired).abs().max()) < 0.02

    figure.get_by_role("button", name="Erase all").click()
    tab.page.wait_for_timeout(800)
    original = pixels(figure, 0)
    assert readout(figure, "score") == pytest.approx(judged(), rel=0.03)
    figure.locator("canvas").first.focus()
    for key in ("Shift+ArrowRight", "ArrowDown", " "):
        tab.page.keyboard.press(key)
    tab.page.wait_for_timeout(800)
    painted = pixels(figure, 0)
    changed = ((painted - original).abs().amax((0, 1)) > 0.02).sum()
    assert 20 <= int(changed) <= 250, "one dab of the brush"
    figure.get_by_role("slider", name="Threshold").fill("0")
    settle(tab.page)
    wide = readout(figure, "area")
    figure.get_by_role("slider", name="Threshold").fill("100")
    settle(tab.page)
    assert readout(figure, "area") < wide


def test_the_budget_is_charged_as_torch_charges_it(tab: Tab, site: Site) -> None:
    figure = tab.open("budget", TOYS[0])
    handle = figure.locator(".pp-handle")
    for key in ["ArrowLeft"] * 5 + ["Shift+ArrowUp"]:
        handle.press(key)
    settle(tab.page)
    shown = figure.locator("[data-readout=position]").inner_text().replace("−", "-").split(",")
    point = torch.tensor([[float(value) for value in shown]], dtype=torch.float64)
    source = (1 - point[0, 0] ** 2).sqrt()  # the nearer of two crossings of the circle, above the axis
    assert readout(figure, "energy") == pytest.approx(float((point[0, 1] - source) ** 2), abs=0.02)
    ends = {"exact": live.SCENES["circle"].manifold.project(point)}
    ends |= {
        name: model(point.float()).detach().double() for name, model in site.playground["circle"].items()
    }
    for name, end in ends.items():
        clean, inside = (end - point)[0].square().tolist()
        assert readout(figure, f"clean-{name}") == pytest.approx(clean, abs=0.02)
        assert readout(figure, f"inside-{name}") == pytest.approx(inside, abs=0.02)
        share = figure.locator(f"[data-readout=budget-{name}]")
        over = (clean + inside) / float((point[0, 1] - source) ** 2)
        assert readout(figure, f"budget-{name}") == pytest.approx(100 * over, rel=0.1, abs=3)
        if abs(over - 1) > 0.1:
            assert share.get_attribute("data-over") == str(over > 1).lower()
    assert figure.locator("[data-readout=budget-exact]").get_attribute("data-over") == "false"
    # The clean coordinate stays one that a normal sample has.
    for _ in range(12):
        handle.press("Shift+ArrowRight")
    settle(tab.page)
    assert float(figure.locator("[data-readout=position]").inner_text().split(",")[0]) == pytest.approx(
        1, abs=0.02
    )
    assert readout(figure, "budget-exact") <= 100


def test_the_bench_corrupts_and_asks_the_network(tab: Tab, site: Site) -> None:
    name = "corruption-bench"
    figure = tab.open(name, name)
    side = site.bench.side
    assert not any(path.endswith((".onnx", ".wasm")) for path in tab.loaded)

    def mask() -> torch.Tensor:
        return pixels(figure, 1)[0, 0]

    before = mask()
    assert readout(figure, "area") == pytest.approx(100 * float(before.mean()), abs=0.3)
    figure.get_by_role("slider", name="Side").fill("0.6")
    settle(tab.page)
    assert float(mask().mean()) > float(before.mean())
    figure.get_by_role("slider", name="Opacity").fill("0")
    settle(tab.page)
    assert readout(figure, "damage") == 0
    figure.get_by_role("slider", name="Opacity").fill("1")
    for fill in ("elastic", "elsewhere", "stain", "texture"):
        figure.get_by_label("Fill", exact=True).select_option(fill)
        settle(tab.page)
        corrupted, whole, under = pixels(figure, 0), pixels(figure, 2), mask()
        inside = under > 0.999
        assert float((corrupted - whole)[0, :, inside].abs().max()) < 0.01, (
            "the fill shows where the mask is 1"
        )
    canvas = figure.locator("canvas").first
    box = canvas.bounding_box()
    tab.page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
    settle(tab.page)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    weight = mask() / mask().sum()
    centre = torch.stack([(weight * rows).sum(), (weight * columns).sum()]) / side
    assert float((centre - torch.tensor([0.75, 0.25])).abs().max()) < 0.15
    canvas.press("Shift+ArrowRight")
    settle(tab.page)
    moved = mask() / mask().sum()
    assert float((moved * columns).sum() / side) > float(centre[1]) + 0.03
    figure.get_by_label("Network (").select_option("own")
    tab.page.wait_for_function("document.querySelector('[data-readout=outside]').textContent !== '–'")
    settle(tab.page)
    (_, model), corrupted = site.bench.models["own"], pixels(figure, 0)
    with torch.no_grad():
        repaired = model(corrupted).clamp(0, 1)
    assert float((pixels(figure, 3) - repaired).abs().max()) < 0.02
    before = mask()
    figure.get_by_role("button", name="Draw again").click()
    settle(tab.page)
    assert float((mask() - before).abs().mean()) > 0.01


def test_the_blind_spot_grows_as_torch_says(tab: Tab, site: Site) -> None:
    name = "blind-spot"
    figure = tab.open(name, name)
    for hole in (8, 20):
        figure.get_by_role("slider", name="Side of the defect").fill(str(hole))
        settle(tab.page)
        first = replace(
            site.blind_spot,
            **{key: getattr(site.blind_spot, key)[:1] for key in ("sources", "inputs", "fills")},
        )
        for key, error in first.errors(hole).items():
            assert readout(figure, f"error-{key}") == pytest.approx(error, rel=0.02, abs=0.02)
        assert float((pixels(figure, 0) - first.holed(hole)).abs().max()) < 0.005
    # The field of 14 x 14 pixels lies within the hole, 20 x 20, that of 24 x 24 does not.
    assert readout(figure, "clean-plain") == 0
    assert readout(figure, "clean-dilated") == pytest.approx(100 * (1 - 20**2 / 24**2), abs=0.51)
    box = figure.locator(".bs-picture").bounding_box()
    tab.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.6 * box["height"], steps=3)
    tab.page.mouse.up()
    settle(tab.page)
    assert readout(figure, "side") == 16
    for fill in ("dark", "turned"):
        before = pixels(figure, 0)
        figure.locator("select").select_option(fill)
        settle(tab.page)
        changed = (pixels(figure, 0) - before).abs().amax((0, 1)) > 0.02
        assert changed[8:24, 8:24].float().mean() > 0.9
        assert not changed[:8].any()
    figure.get_by_role("button", name="Next cloth").click()
    settle(tab.page)
    assert float((pixels(figure, 0) - before).abs().mean()) > 0.05


#: All that a figure shows, and how the control that has the focus looks.
SHOWN = """(figure) => {
  const own = document.activeElement.closest(".lf-slider, select");
  return [...figure.querySelectorAll("[data-readout], path, circle, rect, canvas, .pp-handle")]
    .filter((element) => !own?.contains(element))
    .map((e) => e.toDataURL?.() ?? (e.tagName === "g" ? e.getAttribute("transform") : e.outerHTML))
    .join();
}"""
LOOK = """(element) => JSON.stringify(
  [element, element.nextElementSibling, ...element.children].filter(Boolean).map((part) => {
    const style = getComputedStyle(part);
    return [style.outline, style.boxShadow, style.stroke, style.strokeWidth, style.opacity];
  }))"""
# Of radio buttons Tab reaches the chosen one, or else the first.
REACHED = """(element) => {
  if (element.type !== "radio" || element.checked) return true;
  const group = [...document.querySelectorAll(`input[name="${element.name}"]`)];
  return group[0] === element && !group.some((other) => other.checked);
}"""
KIND = "element => element.type?.replace('select-one', 'select') ?? element.getAttribute('role')"
KEYS = {
    "button": ["Enter", " "],
    "checkbox": [" "],
    "radio": ["ArrowRight"],
    "slider": ["ArrowUp", "ArrowRight", "ArrowLeft", "ArrowDown", "Shift+ArrowUp"],
    "application": ["ArrowUp", "ArrowRight", "ArrowLeft", "ArrowDown", "Shift+ArrowUp"],
}
# Pressed again, these have nothing left to do.
ONCE = ("Start over", "Erase", "Erase all", "Flat piece", "Shift", "Burst", "Spike")
ONCE += ("Take the best on drawn defects", "Cover the test split")


def keys_for(control, kind: str) -> list[str]:
    """Keys each of which has to change what the figure shows."""
    if kind == "range":
        return ["Home" if control.evaluate("input => input.value === input.max") else "End"]
    if kind == "select":
        last = control.evaluate("select => select.selectedIndex === select.length - 1")
        return ["ArrowUp" if last else "ArrowDown"]
    if kind == "button" and control.inner_text() in ONCE:
        return ["Enter"]
    if control.evaluate("element => element.matches('.sc-choice input')"):
        return [" ", "ArrowRight"]  # arrows choose once something is chosen; before, one may look
    if control.evaluate("element => element.matches('.pd-canvas:not(.cb-canvas)')"):
        return [*KEYS[kind], " ", "ArrowUp", "Enter"]
    return KEYS[kind]


@pytest.mark.parametrize("name", FIGURES)
def test_keys_do_all_that_the_pointer_does(tab: Tab, name: str) -> None:
    tab.page.goto(f"{tab.address}/{name}.html")
    figure = tab.page.locator(f"[data-live-figure={name}]")
    figure.scroll_into_view_if_needed()
    if name not in TOYS:
        figure.locator(".lf-start").press("Enter")
    wait_for_state(figure, "ready")
    stage = figure.locator(".lf-stage")
    if name not in TOYS:
        assert stage.evaluate("stage => stage.contains(document.activeElement)"), "the focus is lost"
    spoken = stage.locator("[role=status]")
    tab.page.wait_for_function("region => region.textContent", arg=spoken.element_handle())
    first = spoken.text_content()
    assert not stage.locator("output:not([aria-live=off])").count(), "a slider says its value by itself"

    # Tab goes to each control in the order of the page, shows which one it is, and leaves the figure again.
    figure.evaluate("figure => { figure.tabIndex = -1; figure.focus(); }")
    controls = [c for c in stage.locator("button, select, input, [tabindex]").all() if c.evaluate(REACHED)]
    for control in controls:
        blurred = control.evaluate(LOOK)
        tab.page.keyboard.press("Tab")
        where = control.evaluate("element => element.outerHTML.slice(0, 90)")
        assert control.evaluate("element => element === document.activeElement"), where
        assert control.evaluate(LOOK) != blurred, f"nothing shows the focus: {where}"
    tab.page.keyboard.press("Tab")
    assert not figure.evaluate("figure => figure.contains(document.activeElement)")

    # First what starts the figure anew, and what the choices after it would make void.
    kinds = [control.evaluate(KIND) for control in controls]
    first_kinds = {"radio": 0, "checkbox": 1}
    for control, kind in sorted(
        zip(controls, kinds, strict=True), key=lambda pair: first_kinds.get(pair[1], 2)
    ):
        control.focus()
        for key in keys_for(control, kind):
            before, value = figure.evaluate(SHOWN), control.evaluate("control => control.value")
            tab.page.keyboard.press(key)
            if control.evaluate("control => control.labels?.[0]?.textContent.startsWith('Brush')"):
                assert control.evaluate("control => control.value") != value, "shows in the next stroke only"
                continue
            where = f"{key!r} on {control.evaluate('element => element.outerHTML.slice(0, 90)')}"
            try:
                tab.page.wait_for_function(
                    f"([figure, before]) => ({SHOWN})(figure) !== before",
                    arg=[figure.element_handle(), before],
                    timeout=20_000,
                )
            except Exception as error:
                raise AssertionError(f"changes nothing: {where}") from error
    tab.page.wait_for_function(
        "([region, first]) => region.textContent && region.textContent !== first",
        arg=[spoken.element_handle(), first],
    )


@pytest.mark.parametrize(
    ("name", "surface", "key"),
    [
        ("projection-playground", ".pp-handle", "ArrowLeft"),
        ("signal-repair", ".sr-plot", "Backspace"),
        ("corruption-bench", ".cb-canvas", "ArrowLeft"),
        ("paint-a-defect", ".pd-canvas", "ArrowLeft"),
    ],
)
def test_keys_of_the_browser_are_left_to_it(tab: Tab, name: str, surface: str, key: str) -> None:
    """Alt with an arrow goes back a page; a key that a figure takes is one whose default it prevents."""
    figure = tab.open(name, name)
    taken = figure.locator(surface).first.evaluate(
        """(element, key) => ["", "shiftKey", "ctrlKey", "metaKey", "altKey"].map((held) => {
          const init = { key, bubbles: true, cancelable: true, [held]: true };
          return !element.dispatchEvent(new KeyboardEvent("keydown", init));
        })""",
        key,
    )
    assert taken == [True, True, False, False, False]


def choose(figure, key: str) -> None:
    """Make the choice ``key`` of a switch or a drop-down."""
    option = figure.locator(f"[value='{key}']").first
    if option.get_attribute("type") == "radio":
        option.click()
    else:
        figure.locator(f"select:has([value='{key}'])").first.select_option(key)


def is_chosen(figure, key: str) -> bool:
    option = figure.locator(f"[value='{key}']").first
    return option.evaluate("option => option.checked ?? option.selected")


@pytest.mark.parametrize(
    ("name", "first", "slow", "fast", "answer"),
    [
        (TOYS[0], *list(live.SCENES)[:3], ".pp-curve"),
        (TOYS[1], "masked", "dae", "ae", ".sr-repaired"),
    ],
)
def test_the_last_of_two_quick_choices_is_shown(
    tab: Tab, name: str, first: str, slow: str, fast: str, answer: str
) -> None:
    figure = tab.open(name, name)

    def shown() -> str:
        settle(tab.page)
        return figure.locator(answer).get_attribute("d")

    choose(figure, fast)
    wanted = shown()
    choose(figure, first)
    assert shown() != wanted
    held: list = []
    tab.page.route(f"**/payloads/{name}-{slow}.json", lambda route: held.append(route))
    for key in (slow, first, slow, fast):
        choose(figure, key)
        settle(tab.page)
    assert len(held) == 1, "loaded once, though chosen twice"
    assert shown() == wanted
    held[0].continue_()
    assert shown() == wanted
    assert is_chosen(figure, fast)
    choose(figure, slow)
    assert shown() != wanted
    assert len(held) == 1


def test_a_network_chosen_twice_while_it_loads_has_one_worker(tab: Tab) -> None:
    name = "corruption-bench"
    figure = tab.open(name, name)
    held: list = []
    tab.page.route(f"**/payloads/{name}-own.json", lambda route: held.append(route))
    for key in ("own", "none", "own"):
        choose(figure, key)
        settle(tab.page)
    (route,) = held
    route.continue_()
    tab.page.wait_for_function("document.querySelector('[data-readout=outside]').textContent !== '–'")
    assert len(tab.page.workers) == 1
    choose(figure, "none")
    settle(tab.page)
    assert figure.locator("[data-readout=outside]").inner_text() == "–"


@pytest.mark.parametrize(
    ("name", "first", "other"),
    [(TOYS[0], *list(live.SCENES)[:2]), (TOYS[1], "masked", "dae"), ("corruption-bench", "none", "own")],
)
def test_a_choice_that_cannot_be_loaded_is_told_and_may_be_made_again(
    browser, address: str, name: str, first: str, other: str
) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = Tab(context, address)
    uncaught: list[str] = []
    tab.page.on("pageerror", lambda error: uncaught.append(str(error)))
    figure = tab.open(name, name)
    alarm = figure.get_by_role("alert")
    assert not alarm.is_visible()
    missing = f"**/payloads/{name}-{other}.json"
    tab.page.route(missing, lambda route: route.fulfill(status=404))
    choose(figure, other)
    alarm.wait_for()
    assert re.search(r"^Could not be loaded: .*404", alarm.inner_text())
    assert is_chosen(figure, first), "the control says what the figure shows"
    tab.page.unroute(missing)
    before = figure.evaluate(SHOWN)
    choose(figure, other)
    tab.page.wait_for_function(
        f"([figure, before]) => ({SHOWN})(figure) !== before", arg=[figure.element_handle(), before]
    )
    assert is_chosen(figure, other)
    assert not alarm.is_visible()
    assert not uncaught
    context.close()


#: The figure with a network that changes nothing and answers when told to, and a texture that does not load.
PAINT = """async () => {
  const { mount } = await import("/_static/live/paint-a-defect.js");
  const { loadPayload } = await import("/_static/live/payload.js");
  const folder = "/_static/live/payloads/";
  const payload = await loadPayload(new URL(`${folder}paint-a-defect.json`, location.href));
  payload.settings.textures = { [payload.settings.texture]: "first", other: "other" };
  const waiting = [];
  const predict = (_name, inputs) => {
    const given = Float32Array.from(inputs);
    return new Promise((resolve) => waiting.push(() => resolve(given)));
  };
  const root = document.createElement("div");
  document.body.append(root);
  const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
  const asked = async () => {
    while (!waiting.length) await pause();
  };
  const answer = async () => {
    await asked();
    waiting.shift()();
    await pause();
  };
  const buttons = () => [...root.querySelectorAll("button")];
  const press = (name) => buttons().find((button) => button.textContent === name).click();
  const score = () => root.querySelector("[data-readout=score]").textContent;
  const picture = (which) => root.querySelectorAll("canvas")[which].toDataURL();
  const file = (role) => folder + payload.files[role];
  const part = async () => {
    throw new Error("no such texture");
  };
  const mounted = mount(root, { payload, predict, part, file, options: {} });
  await answer();
  await mounted;
  await pause();

  press("Scratch");
  await asked();
  press("Stain");
  await answer();
  const whilePainting = score();
  const before = picture(1);
  await asked();
  press("Next image");
  await answer();
  const dropped = picture(1) === before;
  await answer();
  const next = picture(1) === picture(0) && picture(1) !== before;

  root.querySelector("[value=other]").click();
  await pause();
  const told = root.querySelector("[role=alert]").textContent;
  const back = root.querySelector("[value=other]").checked === false && picture(1) === picture(0);
  root.remove();
  return { whilePainting, dropped, next, told, back };
}"""


def test_an_answer_is_to_what_was_asked(tab: Tab) -> None:
    """Strokes and the next photograph come while the network works."""
    tab.page.goto(f"{tab.address}/paint-a-defect.html")
    assert tab.page.evaluate(PAINT) == {
        "whilePainting": "0.00",
        "dropped": True,
        "next": True,
        "told": "Could not be loaded: no such texture",
        "back": True,
    }


def test_forced_colours_show_the_choice_and_the_legend(browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, forced_colors="active")
    tab = Tab(context, address)
    figure = tab.open(TOYS[0], TOYS[0])
    settle(tab.page)

    def colour(element, column: int) -> tuple[int, ...]:
        picture = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
        return picture.getpixel((column, picture.height // 2))

    # Between the border and the text.
    ground = colour(figure.locator(".lf-segments input:not(:checked) + span").first, 5)
    assert colour(figure.locator(".lf-segments input:checked + span"), 5) != ground
    swatches = [colour(swatch, 8) for swatch in figure.locator(".lf-swatch").all()]
    assert len({ground, *swatches}) == 1 + len(swatches)
    context.close()
    assert not tab.complaints


def test_keys_move_a_noisy_sample_by_one_step(tab: Tab) -> None:
    figure = tab.open(TOYS[1], TOYS[1])
    figure.get_by_role("slider", name="Noise").fill("0.4")
    plot = figure.locator(".sr-plot").first
    settle(tab.page)
    for key, change in (("ArrowUp", 0.1), ("ArrowUp", 0.1), ("Shift+ArrowDown", -0.4)):
        before = float(plot.get_attribute("aria-valuenow"))
        plot.press(key)
        settle(tab.page)
        assert float(plot.get_attribute("aria-valuenow")) - before == pytest.approx(change, abs=0.011)


@pytest.mark.parametrize(
    ("name", "surface"),
    [
        ("projection-playground", ".pp-plot"),
        ("signal-repair", ".sr-plot"),
        ("blind-spot", ".bs-picture"),
        ("corruption-bench", ".cb-canvas"),
        ("paint-a-defect", ".pd-canvas"),
        ("score-explorer", "input[type=range]"),
    ],
)
def test_a_finger_does_what_the_pointer_does(browser, address: str, name: str, surface: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab = Tab(context, address)
    figure = tab.open(name, name)
    drawing = figure.locator(surface).first
    drawing.evaluate("element => element.scrollIntoView({ block: 'center' })")
    settle(tab.page)
    before = figure.evaluate(SHOWN)
    place = tab.page.evaluate("scrollY")
    box = drawing.bounding_box()
    fingers = context.new_cdp_session(tab.page)
    for i in range(8):
        point = {
            "x": box["x"] + (0.3 + 0.06 * i) * box["width"],
            "y": box["y"] + (0.6 - 0.04 * i) * box["height"],
        }
        event = {"type": "touchMove" if i else "touchStart", "touchPoints": [point]}
        fingers.send("Input.dispatchTouchEvent", event)
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.page.wait_for_function(
        f"([figure, before]) => ({SHOWN})(figure) !== before", arg=[figure.element_handle(), before]
    )
    assert tab.page.evaluate("scrollY") == place, "the finger draws, it does not scroll"
    if name == "signal-repair":
        assert readout(figure, "painted") > 20, "all samples under the finger"
    context.close()
    assert not tab.complaints


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_whole_figure(browser, address: str, name: str, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = Tab(context, address)
    figure = tab.open(name, name)
    wide = figure.evaluate(
        """(figure) => [...figure.querySelectorAll("button, select, input, svg, canvas, table, dd")]
          .filter((element) => element.getBoundingClientRect().right > innerWidth)
          .map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert not wide
    small = figure.evaluate(
        """(figure) => [...figure.querySelectorAll(".lf-stage button, .lf-stage select")]
          .map((element) => element.getBoundingClientRect().height)
          .filter((height) => height < 24).length"""
    )
    assert small == 0, "targets for a finger are at least 24 pixels high"
    moving = figure.evaluate(
        """(figure) => [...figure.querySelectorAll("*")].filter((element) => {
          const style = getComputedStyle(element);
          const longest = Math.max(...style.transitionDuration.split(",").map(parseFloat));
          return longest > 0 || style.animationName !== "none";
        }).length"""
    )
    assert moving == 0, "the reader has asked for less motion"
    context.close()
    assert not tab.complaints


@pytest.mark.parametrize("name", FIGURES)
def test_without_scripts_there_is_a_described_picture(browser, address: str, name: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/{name}.html")
    figure = page.locator(f"[data-live-figure={name}]")
    picture = figure.get_by_role("img", name=f"A still picture of {name}.")
    assert picture.is_visible()
    assert picture.bounding_box()["width"] > 100
    assert figure.locator(".lf-start").is_hidden()
    assert "With scripts on" in page.content()
    context.close()


def test_a_missing_payload_fails_with_a_message(browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/payloads/signal-repair.json", lambda route: route.fulfill(status=404))
    page.goto(f"{address}/signal-repair.html")
    figure = page.locator("[data-live-figure]")
    figure.scroll_into_view_if_needed()
    wait_for_state(figure, "failed")
    assert "404" in figure.locator(".lf-status").inner_text()
    assert figure.get_by_role("img").is_visible(), "the still picture stays"
    context.close()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("signal-repair", "payloads/signal-repair.json"),
        ("signal-repair", "signal-repair.js"),
        ("blind-spot", "payloads/blind-spot.images.png"),
    ],
)
def test_a_figure_that_could_not_start_starts_at_another_try(
    browser, address: str, site: Site, name: str, missing: str
) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    assert (site.html / "_static" / "live" / missing).exists()
    lost = re.compile(re.escape(missing) + r"$")
    page.route(lost, lambda route: route.abort())
    page.goto(f"{address}/{name}.html")
    figure = page.locator("[data-live-figure]")
    figure.scroll_into_view_if_needed()
    if name not in TOYS:
        figure.locator(".lf-start").click()
    wait_for_state(figure, "failed")
    page.unroute(lost)
    again = figure.locator(".lf-start")
    assert again.is_visible()
    assert again.inner_text() == ("Try again" if name in TOYS else "Start it")
    workers = len(page.workers)
    again.click()
    figure.locator(".lf-stage").wait_for()
    wait_for_state(figure, "ready")
    assert len(page.workers) == max(workers, name not in TOYS), "the network that was loaded serves again"
    context.close()


def test_pixels_that_the_browser_alters_are_not_measured(browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.add_init_script(
        """const read = CanvasRenderingContext2D.prototype.getImageData;
        CanvasRenderingContext2D.prototype.getImageData = function (...place) {
          const image = read.apply(this, place);
          for (let i = 0; i < image.data.length; i += 401) image.data[i] ^= 1;
          return image;
        };"""
    )
    page.goto(f"{address}/score-explorer.html")
    figure = page.locator("[data-live-figure]")
    figure.scroll_into_view_if_needed()
    wait_for_state(figure, "failed")
    assert "fingerprinting" in figure.locator(".lf-status").inner_text()
    assert figure.get_by_role("img").first.is_visible(), "the still picture stays"
    context.close()


def test_maps_without_a_defect_that_is_left_are_refused() -> None:
    masks = torch.zeros(2, 256, 256, dtype=torch.bool)
    masks[1, 100] = True  # one pixel wide, which no block of four is mostly of
    images, maps = torch.rand(2, 3, 256, 256), torch.rand(2, 256, 256)
    with pytest.raises(ValueError, match="no pixel is mostly defective"):
        live.explorer_strips(images, maps, masks)
    with pytest.raises(ValueError, match="no pixel is mostly normal"):
        live.explorer_strips(images, maps, torch.ones_like(masks))


def test_the_bench_shows_the_side_that_it_is_given(tab: Tab) -> None:
    tab.page.goto(f"{tab.address}/corruption-bench.html")
    shown = tab.page.evaluate(
        """async (side) => {
          const { mount } = await import("/_static/live/corruption-bench.js");
          const { loadPayload } = await import("/_static/live/payload.js");
          const folder = "/_static/live/payloads/";
          const payload = await loadPayload(new URL(`${folder}corruption-bench.json`, location.href));
          payload.settings.dials.side = side;
          const root = document.createElement("div");
          await mount(root, { payload, options: {}, file: (role) => folder + payload.files[role] });
          const said = root.querySelector("[data-readout=side]");
          return [Number(root.querySelector(`#${said.htmlFor}`).value), said.textContent];
        }""",
        CorruptionSettings().side[1],
    )
    assert shown == [1.5, "150 %"]


def test_perceptrons_in_the_page_agree_with_torch(tab: Tab, site: Site) -> None:
    """100 random inputs for every perceptron of every payload, through the page's own modules."""
    tab.page.goto(f"{tab.address}/{TOYS[0]}.html")
    models = {
        f"{TOYS[0]}{'' if scene == 'circle' else f'-{scene}'}": family
        for scene, family in site.playground.items()
    }
    models |= {
        f"{TOYS[1]}{'' if key == 'masked' else f'-{key}'}": {key: model} for key, model in site.repair.items()
    }
    payloads = {path.stem: read_payload(path)["models"] for path in site.payloads.glob("*.json")}
    assert {name: {*family} for name, family in payloads.items() if family} == {
        name: {*family} for name, family in models.items()
    }
    for name, family in models.items():
        inputs = 2 * torch.randn(100, 2 if name.startswith(TOYS[0]) else 64, generator=seeded(4))
        answers = tab.page.evaluate(
            """async ({ name, inputs }) => {
              const { loadPayload } = await import("/_static/live/payload.js");
              const { mlpPredict } = await import("/_static/live/mlp.js");
              const { models } = await loadPayload(`/_static/live/payloads/${name}.json`);
              const answer = async (key) => [key, [...await mlpPredict(models)(key, inputs)]];
              return Object.fromEntries(await Promise.all(Object.keys(models).map(answer)));
            }""",
            {"name": name, "inputs": inputs.flatten().tolist()},
        )
        for key, model in family.items():
            here = torch.tensor(answers[key]).reshape(inputs.shape)
            torch.testing.assert_close(here, model(inputs).detach(), atol=1e-4, rtol=0, msg=f"{name}: {key}")


def test_networks_in_the_page_agree_with_torch(tab: Tab, site: Site) -> None:
    """100 random inputs for every ONNX payload, through the page's own worker."""
    tab.page.goto(f"{tab.address}/blind-spot.html")
    networks = {
        "blind-spot": site.blind_spot.network(),
        "corruption-bench-own": site.bench.models["own"][1],
        "paint-a-defect": portable(site.runs["brick"].applied),
    }
    assert {*networks} == {path.stem for path in site.payloads.glob("*.onnx")}
    for name, model in networks.items():
        side = json.loads((site.payloads / f"{name}.json").read_text())["settings"].get(
            "side", site.bench.side
        )
        images = torch.rand(100, 3, side, side, generator=seeded(3)).mul(255).round() / 255
        worst = 0.0
        for batch in images.split(10):
            answer = tab.page.evaluate(
                """async ({url, bytes, shape}) => {
                  const { onnxPredict } = await import("/_static/live/onnx.js");
                  window.networks ??= {};
                  window.networks[url] ??= await onnxPredict(new URL(url, location.href));
                  const inputs = Float32Array.from(atob(bytes), (c) => c.charCodeAt(0) / 255);
                  const answer = Float32Array.from(await window.networks[url]("", inputs, shape));
                  const outputs = new Uint8Array(answer.buffer);
                  let text = "";
                  for (let at = 0; at < outputs.length; at += 8192) {
                    text += String.fromCharCode(...outputs.subarray(at, at + 8192));
                  }
                  return btoa(text);
                }""",
                {
                    "url": f"/_static/live/payloads/{name}.onnx",
                    "bytes": base64.b64encode(batch.mul(255).byte().numpy().tobytes()).decode("ascii"),
                    "shape": list(batch.shape),
                },
            )
            with torch.no_grad():
                there = model(batch.contiguous())
            # As text, because playwright takes seconds to hand over a list of half a million numbers.
            here = torch.frombuffer(bytearray(base64.b64decode(answer)), dtype=torch.float32)
            worst = max(worst, float((here.reshape(there.shape) - there).abs().max()))
        assert worst < 1e-4, name


#: A notebook's output as strict as they come: of no origin, with no network, the widget inside a shadow root.
WIDGET = """
<!doctype html><html lang="en"><title>widget</title>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data:">
<div id="cell"></div>
<script type="module">
  // The browser's driver may come after the frame.
  while (!window.kernelState || !window.kernelAnswer) await new Promise((resolve) => setTimeout(resolve, 10));
  const state = await kernelState();
  const listeners = new Set();
  const model = {
    get: (name) => state[name],
    on: (_, listener) => listeners.add(listener),
    off: (_, listener) => listeners.delete(listener),
    send: async (question, _callbacks, buffers) => {
      const reply = await kernelAnswer(question, [...new Float32Array(buffers[0])]);
      const floats = Float32Array.from(reply.values ?? []);
      for (const listener of listeners) listener(reply.message, [new DataView(floats.buffer)]);
    },
  };
  window.heard = [];
  document.addEventListener("keydown", ({ key }) => heard.push(key));
  const shadow = document.querySelector("#cell").attachShadow({ mode: "open" });
  const style = document.createElement("style");
  style.textContent = state._css;
  const el = document.createElement("div");
  shadow.append(style, el);
  const source = new Blob([state._esm], { type: "text/javascript" });
  const { default: widget } = await import(URL.createObjectURL(source));
  const destroy = await widget.render({ model, el });
  window.destroy = () => (destroy(), listeners.size);
</script></html>
"""


class Output:
    """A widget in a sandboxed frame, answered by its own ``_answer``; ``silent`` answers get lost."""

    def __init__(self, context, widget, address: str) -> None:
        self.silent = False
        sent: list[tuple[dict, list[bytes]]] = []
        widget.send = lambda content, buffers=(): sent.append((content, list(buffers)))

        def answer(question: dict, values: list[float]) -> dict:
            if self.silent:
                return {"message": {"id": "of nobody"}}
            widget._answer(widget, question, [np.array(values, dtype="<f4").tobytes()])
            message, buffers = sent.pop()
            return {
                "message": message,
                "values": np.frombuffer(buffers[0], "<f4").tolist() if buffers else None,
            }

        names = ("_esm", "_css", "figure", "payload", "part_payloads", "options", "file_urls")
        frame = (
            f'<iframe sandbox="allow-scripts" width="900" height="800" srcdoc="{escape(WIDGET)}"></iframe>'
        )
        self.page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.expose_function("kernelState", lambda: {name: getattr(widget, name) for name in names})
        self.page.expose_function("kernelAnswer", answer)
        self.page.route("**/output.html", lambda route: route.fulfill(body=frame, content_type="text/html"))
        self.page.goto(f"{address}/output.html")
        self.figure = self.page.frame_locator("iframe").locator("[data-live-figure]")
        self.figure.wait_for()
        wait_for_state(self.figure, "ready")
        self.frame = self.page.frames[1]

    def wait_for_text(self, element, pattern: str) -> str:
        """Wait until the text of ``element`` matches; gives it."""
        self.frame.wait_for_function(
            "([element, pattern]) => new RegExp(pattern).test(element.textContent)",
            arg=[element.element_handle(), pattern],
        )
        return element.text_content()


def test_the_widget_is_answered_by_the_kernel(browser, site: Site, address: str) -> None:
    models = dict(site.playground["circle"])
    context = browser.new_context()
    output = Output(context, widgets.playground(models), address)
    figure, page = output.figure, output.page
    output.wait_for_text(figure.locator("[data-readout=moved-ae]"), "^[0-9]")
    point = torch.tensor([live.SCENES["circle"].start])
    for name, model in models.items():
        moved = float((model(point) - point).detach().norm())
        assert readout(figure, f"moved-{name}") == pytest.approx(moved, abs=2e-3)

    # Keys belong to the figure, not to the notebook around it, which would delete the cell at "d d".
    figure.locator(".pp-handle").press("ArrowRight")
    page.keyboard.press("d")
    page.keyboard.press("Control+s")
    assert output.frame.evaluate("heard") == ["Control", "s"]
    output.wait_for_text(figure.locator("[data-readout=position]"), "^0.98")

    # A kernel that is busy, one that fails, and one that is back.
    status = figure.locator("> .lf-status")
    output.silent = True
    page.keyboard.press("ArrowRight")
    output.wait_for_text(status, "Waiting for the kernel")
    assert not output.errors
    context.close()


def test_the_widget_says_what_went_wrong_in_the_kernel(browser, site: Site, address: str) -> None:
    trouble: list[str] = []

    def model(points: torch.Tensor) -> torch.Tensor:
        if trouble:
            raise ValueError(trouble[0])
        return points

    context = browser.new_context()
    output = Output(context, widgets.playground({"ae": model}), address)
    cell = output.figure.locator("[data-readout=moved-ae]")
    status = output.figure.locator("> .lf-status")
    output.wait_for_text(cell, "^0.000")
    trouble.append("no such luck")
    output.figure.locator(".pp-handle").press("ArrowRight")
    assert "no such luck" in output.wait_for_text(status, "could not answer")
    trouble.clear()
    output.page.keyboard.press("ArrowRight")
    output.wait_for_text(status, "^$")
    output.wait_for_text(output.figure.locator("[data-readout=position]"), "^1.01")
    assert output.frame.evaluate("destroy()") == 0, "still listens to the kernel"
    context.close()


def test_every_widget_works_in_a_frame_of_no_origin(browser, site: Site, address: str) -> None:
    images = site.blind_spot.sources
    (run,) = site.runs.values()
    own = {"own": ("own", run.model)}
    masks = torch.zeros(len(images), *images.shape[2:])
    masks[1:, 20:40, 10:30] = 1
    maps = masks * 0.3 + images.mean(1) * 0.5
    context = browser.new_context()
    for widget, answer, control, key in (
        (widgets.signal_repair({"own": ("own", torch.tanh)}), "change-model", "Noise", "End"),
        (widgets.blind_spot(site.blind_spot), "error-plain", "Side of the defect", "Home"),
        (
            widgets.corruption_bench(live.CorruptionBench(images, images.flip(3), own)),
            "left",
            "Side",
            "Home",
        ),
        (widgets.paint_a_defect(run.model, images, limit=0.05, image_limit=0.05), "area", "Threshold", "End"),
        (widgets.score_explorer(images, maps, masks, ["a wall"] * len(images)), "tpr", "Threshold", "Home"),
    ):
        output = Output(context, widget, address)
        cell = output.figure.locator(f"[data-readout={answer}]")
        if answer == "left":
            output.figure.get_by_label("Network (").select_option("own")
        before = output.wait_for_text(cell, "^[0-9]")
        output.figure.get_by_role("slider", name=control).press(key)
        output.wait_for_text(cell, f"^(?!{re.escape(before)}$)")
        assert not output.errors, widget.figure
        output.page.close()
    context.close()


def test_the_built_book_keeps_the_style_of_its_figures(html: Path) -> None:
    """Its one style sheet leaves out what no page uses; scripts put together some of the figures' classes."""
    without_comments = re.sub(
        r"/\*.*?\*/", "", (ROOT / "web/src/live.css").read_text("utf-8"), flags=re.DOTALL
    )
    selectors = " ".join(re.findall(r"([^{}]*)\{", without_comments))
    ours = set(re.findall(r"\.([a-z][\w-]*)", selectors))
    kept = set(re.findall(r"\.([a-z][\w-]*)", (html / "_static" / "pages.css").read_text("utf-8")))
    assert len(ours) > 50
    assert ours - kept <= {"vscode-dark"}, "which is of notebooks only"


def test_every_figure_of_the_built_book_starts(html: Path, browser, serve) -> None:
    address = serve(html)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    started = []
    for page in sorted(html.glob("*.html")):
        text = page.read_text(encoding="utf-8")
        if "data-live-figure=" not in text:
            continue
        tab = Tab(context, address)
        tab.page.goto(f"{address}/{page.name}")
        for figure in tab.page.locator("[data-live-figure]").all():
            figure.scroll_into_view_if_needed()
            if figure.get_attribute("data-start") == "button":
                figure.locator(".lf-start").click()
            wait_for_state(figure, "ready")
            if promised := re.search(r"loads (\d+) MB", figure.locator(".lf-start").text_content()):
                settle(tab.page)
                megabytes = sum((html / path.lstrip("/")).stat().st_size for path in tab.loaded) / 1e6
                assert megabytes == pytest.approx(int(promised[1]), abs=1.5), page.name
            elif figure.get_attribute("data-start") == "visible":
                settle(tab.page)
                size = sum(len(gzip.compress((html / path.lstrip("/")).read_bytes())) for path in tab.loaded)
                assert size < 100_000, f"{page.name}: {size} bytes of {sorted(tab.loaded)}"
            started.append(f"{page.stem}: {figure.get_attribute('data-live-figure')}")
        assert not tab.complaints, page.name
        tab.page.close()
    context.close()
    assert started, "the book has no live figure"
    for payload in (html / "_static" / "live" / "payloads").glob("*.json"):
        files = [payload.with_name(file) for file in read_payload(payload)["files"].values()]
        assert sum(path.stat().st_size for path in (payload, *files)) < 2_500_000, payload.name
