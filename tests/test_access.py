"""Every way through memory, forced on inputs small enough for the oracle."""

import pytest

import bounds
import cases
from normkit.kernels.cpu import access, launch
from normkit.layout import layout_of

#: What makes a large input take another way than a small one.
FORCED = {
    "halves": {"FUSE_BYTES": 0, "THREAD_BYTES": 0},
    "many tasks": {"TASK_BYTES": 512, "THREAD_BYTES": 0},
    "past the cache": {"STREAM_BYTES": 0},
    "all of it": {"FUSE_BYTES": 0, "THREAD_BYTES": 0, "TASK_BYTES": 512, "STREAM_BYTES": 0},
}
SHAPES = (((16, 6, 7, 7), 1), ((3, 6, 20, 15), 1), ((4, 8, 9, 6), -1), ((40, 6), 1))
NORMS = ("batch", "ghost", "group", "layer", "tokens")


@pytest.fixture
def force(monkeypatch):
    def use(constants):
        for name, value in constants.items():
            monkeypatch.setattr(access, name, value)
        access.access_for.cache_clear()
        launch.launcher.cache_clear()

    yield use
    monkeypatch.undo()
    use({})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("way", FORCED)
def test_the_result_does_not_depend_on_the_way(force, way, name, shape):
    force(FORCED[way])
    row = cases.Row(name, shape, "float32", "offset", gamma="channel", beta="same")
    problem = cases.Problem(row)
    y, saved = problem.forward()
    assert saved.backend.name == "compiled"
    bounds.check_forward(problem.truth, y, saved.statistics, problem.x.dtype)
    grads = problem.norm.backward(problem.dy, saved)
    bounds.check_backward(problem.truth, problem.dy, grads, bounds.likes(problem))


def strides(shape):
    result, step = [], 1
    for size in reversed(shape):
        result.insert(0, step)
        step *= size
    return tuple(result)


@pytest.mark.parametrize(
    ("name", "shape", "axis", "lines", "folded"),
    [
        ("batch", (64, 64, 7, 7), 1, "flat", False),
        ("batch", (32, 8, 112, 112), 1, "cube", False),
        ("batch", (8, 56, 56, 64), -1, "joined", True),
        ("batch", (256, 1024), 1, "joined", False),
        ("tokens", (512, 768), 1, "sets", False),
    ],
)
def test_the_way_that_is_taken(name, shape, axis, lines, folded):
    layout = layout_of(cases.NORMS[name][0](shape[axis]), shape, axis)
    dense = strides(shape)
    found = access.access_for(access.Request(layout, 4, "channel", dense, dense))
    assert isinstance(found, access.Access)
    assert (found.lines, found.folded > 1) == (lines, folded)
