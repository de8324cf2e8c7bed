"""``python benchmarks/run.py`` is ``python -m benchmarks``: see command.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the package, not its folder

from benchmarks.command import main  # noqa: E402  (the path is set first)

main()
