"""Hypothesis without deadlines: the first call of a kernel compiles it. One thread a test process.

PyTorch's threads wait by spinning. Where several test processes have as many of them as there are
cores, they wait for one another: two files that take 36 s with one thread each took 316 s.
"""

from __future__ import annotations

import os

import hypothesis

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports PyTorch

hypothesis.settings.register_profile(
    "normkit", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("normkit")
