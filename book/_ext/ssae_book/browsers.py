"""Where this machine's Chromium is, for printing, for Lighthouse and for the tests."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowserError(RuntimeError):
    """There is no Chromium; the message says what was looked for."""


def browser_path() -> str:
    """The Chromium of this machine.

    Raises
    ------
    NoBrowserError
        If there is none.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise NoBrowserError(f"no browser found: looked for {', '.join(NAMES)}; install Chromium")
    return found
