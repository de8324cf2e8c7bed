"""Make lab.png: what the report of a few claims looks like in Chromium.

python docs/picture.py carries out the demo's five claims, three seeds each, and takes the picture.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from normkit.demo.lab import CLAIMS
from normkit.lab import session

PICTURE = Path(__file__).parent / "lab.png"
SIZE = (1000, 1480)  # pixels: the scoreboard and the first card
NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Write the picture, or say that there is no browser."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory() as folder:
        page = session.run(CLAIMS, Path(folder) / "lab", seeds=3, jobs=2).page
        options = (
            "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
            f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=8000",
            f"--screenshot={PICTURE}", page.resolve().as_uri(),
        )  # fmt: skip
        subprocess.run((browser, *options), check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
