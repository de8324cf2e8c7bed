"""``python -m benchmarks`` is ``python benchmarks/run.py``: see command.py."""

from benchmarks.command import main

main()
