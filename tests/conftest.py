"""Hypothesis without deadlines: the first call of a kernel compiles it."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "normkit", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("normkit")
