"""axe-core finds nothing wrong with any page of the built book, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ssae_book import pdf, repository
from ssae_book.accessible import mend
from test_book import PAGES


def start_figures(page) -> None:
    """Bring every live figure to life: what a reader operates is what has to be accessible."""
    for figure in page.locator("[data-live-figure]").all():
        figure.scroll_into_view_if_needed()
        if figure.get_attribute("data-start") == "button":
            figure.locator(".lf-start").click()
        page.wait_for_function(
            "figure => ['ready', 'failed'].includes(figure.dataset.state)",
            arg=figure.element_handle(),
            timeout=90_000,
        )


def violations(axe, page, options: dict) -> list[str]:
    """What axe-core finds: rule, and for each element where and why."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    for rule in found:
        if rule["id"] == "empty-table-header":
            # axe-core does not read MathML; screen readers do.
            rule["nodes"] = [
                node
                for node in rule["nodes"]
                if not page.locator(node["target"][0]).locator("math mi").count()
            ]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: "
        + "; ".join(check["message"] for check in node["any"] + node["all"] + node["none"])
        for rule in found
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">',
            '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar" role="region" '
            'aria-label="Book">',
        ),
        (
            '<a class="reference internal" href="api.html">API</a><details><summary><span></span></summary>',
            '<a class="reference internal" href="api.html">API</a><details>'
            '<summary aria-label="Pages of API"><span></span></summary>',
        ),
        (
            '<dl>\n<dd><em class="sig-param">a</em>,</dd>\n<dd><em class="sig-param">b</em>,</dd>\n</dl>',
            '<span class="sig-lines"><span class="sig-line"><em class="sig-param">a</em>,</span>\n'
            '<span class="sig-line"><em class="sig-param">b</em>,</span>\n</span>',
        ),
        (
            '<table><thead>\n<tr class="row-odd"><th class="head"><p></p></th>\n'
            '<th class="head"><p></p></th>\n'
            "</tr>\n</thead>\n<tbody></tbody></table>",
            "<table>\n<tbody></tbody></table>",
        ),
        (
            '<thead><tr><th class="head"><p></p></th><th class="head"><p>a</p></th></tr></thead>',
            '<thead><tr><td class="head"></td><th class="head"><p>a</p></th></tr></thead>',
        ),
        (
            '<div role="list" class="citation-list">\n<div class="citation" id="id2" role="doc-biblioentry">',
            '<div class="citation-list">\n<div class="citation" id="id2">',
        ),
        ("<dl><dt>term</dt><dd>meaning</dd></dl>", None),
    ],
)
def test_mends(before: str, after: str | None) -> None:
    assert mend(before) == (after or before)
    assert mend(mend(before)) == mend(before)


# The pages of the API come from one template: these stand for all of them.
API = ("api/models", "api/training", "api/cli")
LOOKED_AT = [name for name in PAGES if not name.startswith("api/") or name in API]


@pytest.fixture(scope="module")
def context(html: Path, browser) -> Iterator:
    """A browser window for which the published address is the book on this machine."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    published = repository.pages_url()
    context.route(f"{published}**", lambda route: pdf.answer(route, html, published))
    yield context
    context.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", LOOKED_AT)
def test_every_page_is_accessible(name: str, context) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = context.new_page()
    try:
        page.goto(f"{repository.pages_url()}{name}.html", wait_until="load")
        start_figures(page)
        complaints = [f"light: {text}" for text in violations(axe, page, {})]
        # Colours are all that changes in the dark; they are to be judged when they have changed.
        page.add_style_tag(content="*, ::before, ::after { transition: none !important; }")
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        only = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
        complaints += [f"dark: {text}" for text in violations(axe, page, only)]
    finally:
        page.close()
    assert not complaints, "\n".join(complaints)
