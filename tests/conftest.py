"""What all tests share: settings of Hypothesis and of threads, and a browser.

Hypothesis has no deadlines, as the first call of a kernel compiles it. A process has one thread:

PyTorch's threads wait by spinning. Where several test processes have as many of them as there are
cores, they wait for one another: two files that take 36 s with one thread each took 316 s.
"""

from __future__ import annotations

import os
import sys

import hypothesis
import pytest

from browser import Browser

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports PyTorch

os.environ.setdefault("KERAS_BACKEND", "torch")  # test_keras_backends.py sees to the others

hypothesis.settings.register_profile(
    "normkit", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("normkit")


#: Fixtures that take long: the tests of a file that share one run in one process where pytest-xdist
#: has ``--dist loadgroup``. (pytest 9.2 with pytest-xdist 3.8 takes no notice of groups:
#: pytest-dev/pytest-xdist#1386.)
SET_UP_ONCE = {
    "test_demo": "runs",
    "test_models_recalibrate": "ranks",
    "test_site": "site",
    "test_torch_distributed": "results",
}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.stem
        if SET_UP_ONCE.get(file) in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(file))


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    """No test may leave a process with more threads than it had, as all that follow would wait."""
    before = _threads_of_pytorch()
    yield
    after = _threads_of_pytorch()
    if before is not None and after != before:
        sys.modules["torch"].set_num_threads(before)
        pytest.fail(f"PyTorch had {before} threads before this test, and {after} after it")


def _threads_of_pytorch() -> int | None:
    known = getattr(sys.modules.get("torch"), "get_num_threads", None)  # half imported, or none
    return None if known is None else known()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium for the tests of a file, all in one tab."""
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
