"""Benchmarks of normkit against its peers; see docs/benchmarks.md for what is measured and how."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# The case table is shared with the tests and lives beside them.
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))
