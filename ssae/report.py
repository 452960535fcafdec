"""The report of an inspection: one HTML file that needs nothing else, to be opened, sorted and passed on.

Explained in chapter 14.
"""

from __future__ import annotations

import base64
import heapq
import html
import io
import threading
from pathlib import Path

from PIL import Image

from ssae.files import write_atomically


class Report:
    """Collects findings from any thread and writes the page; keeps the pictures of the highest scores only.

    Parameters
    ----------
    path
        File to write.
    decision
        What the threshold is and how far to trust it, in words.
    """

    #: Photographs shown, so that neither the page nor the memory grows with their number.
    ROWS = 300
    #: Longest side of a picture in pixels.
    PICTURE = 256

    def __init__(self, path: Path, decision: str) -> None:
        self.path, self.decision = path, decision
        self.rows: list[tuple[float, int, str]] = []
        self.failures: list[tuple[str, str]] = []
        self.count = self.anomalous = self.failed = 0
        self.lock = threading.Lock()

    def finding(
        self,
        file: str,
        score: float,
        anomalous: bool,
        marked: float,
        picture: Image.Image,
        drawn: Image.Image,
    ) -> None:
        """Note one photograph, its score, the share of marked pixels, and the two pictures of it."""
        with self.lock:
            self.count += 1
            self.anomalous += anomalous
            number = self.count
            if len(self.rows) >= self.ROWS and score <= self.rows[0][0]:
                return
        verdict = "anomalous" if anomalous else "normal"
        row = (
            f'<tr class="{verdict}"><td>{_picture(picture, self.PICTURE)}{_picture(drawn, self.PICTURE)}</td>'
            f'<td class="name">{_text(file)}</td><td data-value="{score!r}">{score:.6f}</td>'
            f'<td>{verdict}</td><td data-value="{marked!r}">{100 * marked:.2f} %</td></tr>'
        )
        with self.lock:
            keep = heapq.heappush if len(self.rows) < self.ROWS else heapq.heappushpop
            keep(self.rows, (score, -number, row))

    def failure(self, file: str, message: str) -> None:
        """Note a file that could not be read."""
        with self.lock:
            self.failed += 1
            if len(self.failures) < self.ROWS:
                self.failures.append((file, message))

    def write(self) -> None:
        """Write the page."""
        rows = [row for _, _, row in sorted(self.rows, reverse=True)]
        hidden = self.count - len(rows)
        more = f"<p>The {len(rows)} highest scores are shown; scores.csv holds all.</p>" if hidden else ""
        failures = "".join(f"<li>{_text(file)}: {_text(message)}</li>" for file, message in self.failures)
        unread = f"<h2>{self.failed} files could not be read</h2><ul>{failures}</ul>" if failures else ""
        page = _PAGE.format(
            count=self.count,
            anomalous=self.anomalous,
            decision=_text(self.decision),
            more=more,
            rows="\n".join(rows),
            unread=unread,
        )
        write_atomically(self.path, page.encode("utf-8"))


def _text(text: str) -> str:
    # A file name may hold bytes that are no text.
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _picture(image: Image.Image, side: int) -> str:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode("ascii")}">'


# The policy forbids the page to fetch anything at all.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Inspection: {anomalous} of {count} anomalous</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .4rem .6rem; text-align: left; border-bottom: 1px solid #8C959F; }}
td.name {{ overflow-wrap: anywhere; }}
th button {{ font: inherit; font-weight: bold; background: none; border: 0; padding: 0; cursor: pointer;
  color: inherit; }}
th[aria-sort=ascending] button::after {{ content: " \\25B2"; }}
th[aria-sort=descending] button::after {{ content: " \\25BC"; }}
tr.anomalous td:nth-child(4) {{ font-weight: bold; }}
tr.anomalous td:first-child {{ border-left: .4rem solid #D55E00; }}
tr.normal td:first-child {{ border-left: .4rem solid transparent; }}
img {{ max-width: 14rem; max-height: 14rem; margin-right: .4rem; vertical-align: middle; }}
</style>
</head>
<body>
<h1>{anomalous} of {count} photographs are anomalous</h1>
<p>Decision: {decision}.</p>
{more}
<table>
<thead><tr><th>photograph and heat map</th><th><button>file</button></th>
<th aria-sort="descending"><button>score</button></th><th><button>verdict</button></th>
<th><button>marked</button></th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
{unread}
<script>
const body = document.querySelector("tbody");
const value = (row, column) => {{
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
}};
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {{
  const head = button.parentElement;
  const up = head.getAttribute("aria-sort") !== "ascending";
  document.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const column = head.cellIndex;
  const before = (a, b) => value(a, column) < value(b, column);
  const order = (a, b) => before(b, a) - before(a, b);
  [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))).forEach((row) => body.append(row));
}}));
</script>
</body>
</html>
"""
