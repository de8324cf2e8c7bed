"""Every claim of the lab: its form, and a quick look at it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import normkit.lab.claims
from normkit.errors import OptionError
from normkit.lab.claims import TOPICS, all_claims, find, topic_of
from normkit.lab.running import Task, measure

NAMES = [name for names in TOPICS.values() for name in names]


def test_every_file_is_listed_once_and_every_entry_has_its_file():
    folder = Path(normkit.lab.claims.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert sorted(NAMES) == sorted(files)
    assert [claim.name for claim in all_claims()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_says_what_it_is(name):
    (claim,) = find([name])
    for words in (claim.title, claim.sentence, claim.source, claim.experiment):
        assert words.strip() == words
        assert len(words) > 3
    assert claim.sentence.endswith(".")
    assert claim.experiment.endswith(".")
    assert not claim.title.endswith(".")
    assert claim.seconds > 0
    assert len({axes.heading for axes in claim.charts}) == len(claim.charts)
    assert topic_of(name) in TOPICS


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_look_gives_what_is_announced(name):
    measured, _ = measure(Task(name, 0, quick=True))  # it checks the names
    assert all(isinstance(value, (int, float)) for value in measured.numbers.values())
    for series in measured.series:
        assert series.x, series.name
        assert all(map(math.isfinite, series.x))
    for field in measured.fields:
        assert np.shape(field.z) == (len(field.y), len(field.x))


def test_an_unknown_claim_is_refused_with_its_neighbours():
    with pytest.raises(OptionError, match="perhaps faster"):
        find(["fastr"])
    assert find(["small_batches", "faster", "faster"]) == find(["faster", "small_batches"])


def test_all_claims_take_minutes():
    """What is promised: twenty minutes for three seeds of each, on two cores."""
    assert 3 * sum(claim.seconds for claim in all_claims()) / 2 < 15 * 60
