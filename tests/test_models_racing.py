"""duel(): what a busy machine does to the times of two calls is no difference between them."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from normkit.models import racing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only calls move."""
    now = [0.0]
    monkeypatch.setattr(racing.time, "perf_counter", lambda: now[0])

    def taking(*seconds):
        turns = itertools.cycle(seconds)

        def call():
            now[0] += next(turns)

        return call

    return taking


def test_calls_that_others_delay_keep_their_time(clock):
    # Every second call of the first waits for the machine, a thousand times its own time.
    before, after, differ = racing.duel(clock(0.3, 0.0003), clock(0.0002), seconds=2.0)
    assert before == pytest.approx(0.0003)
    assert after == pytest.approx(0.0002)
    assert differ


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_chance_is_no_difference(clock, seconds):
    assert not racing.duel(clock(1, 3), clock(2), seconds)[2]
    assert not racing.duel(clock(2), clock(1, 3), seconds)[2]
    assert not racing.duel(clock(1), clock(1), seconds)[2]


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_difference_is_one_either_way(clock, seconds):
    assert racing.duel(clock(0.010, 0.011), clock(0.008, 0.009), seconds)[2]
    assert racing.duel(clock(0.008, 0.009), clock(0.010, 0.011), seconds)[2]
