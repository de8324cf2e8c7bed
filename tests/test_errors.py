"""Bad input: a ValueError or TypeError that says what came, what was expected and what to do.

Each row is a call and the error it must raise; nothing may be written before it is raised.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import normkit as nk

X = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
GAMMA = np.ones(6, np.float32)
NAN = float("nan")
BATCH = nk.BatchNorm()


def like(shape, dtype=np.float32):
    return np.zeros(shape, dtype)


# what the message must name; the error; the arguments of forward that differ from (X, GAMMA)
FORWARD = {
    "one dimension": (r"1 dimension", ValueError, {"x": like(5), "gamma": None}),
    "no dimension": (r"0 dimensions", ValueError, {"x": np.float32(1), "gamma": None}),
    "six dimensions": (r"6 dimensions", ValueError, {"x": like((1,) * 6), "gamma": None}),
    "integers": (r"int64", TypeError, {"x": like((4, 6), np.int64)}),
    "booleans": (r"bool", TypeError, {"x": like((4, 6), bool)}),
    "complex": (r"complex64", TypeError, {"x": like((4, 6), np.complex64)}),
    "objects": (r"object", TypeError, {"x": like((4, 6), object)}),
    "text": (r"str", TypeError, {"x": "x", "gamma": None}),
    "nothing": (r"NoneType", TypeError, {"x": None, "gamma": None}),
    "axis out of range": (r"axis=3", ValueError, {"axis": 3}),
    "axis no number": (r"axis", TypeError, {"axis": "channels"}),
    "gamma too short": (r"gamma.*\(5,\).*\(6,\)", ValueError, {"gamma": like(5)}),
    "gamma of another batch": (r"gamma.*\(3, 6\)", ValueError, {"gamma": like((3, 6))}),
    "gamma of integers": (r"gamma.*int32", TypeError, {"gamma": like(6, np.int32)}),
    "gamma complex": (r"gamma.*complex", TypeError, {"gamma": like(6, np.complex64)}),
    "beta too long": (r"beta.*\(7,\).*\(6,\)", ValueError, {"beta": like(7)}),
    "beta scalar": (r"beta.*\(\)", ValueError, {"beta": like(())}),
    "residual of another shape": (r"residual.*\(4, 6, 1\)", ValueError, {"residual": X[:, :, :1]}),
    "residual of another dtype": (r"residual.*float64", TypeError, {"residual": X.astype(float)}),
    "mask of another shape": (r"mask.*\(4, 4\)", ValueError, {"mask": like((4, 4), bool)}),
    "mask of another rank": (r"mask.*\(5,\)", ValueError, {"mask": like(5, bool)}),
    "mask that does not broadcast": (
        r"mask.*\(4, 2, 5\)",
        ValueError,
        {"mask": like((4, 2, 5), bool)},
    ),
    "mask of numbers": (r"mask.*float32", TypeError, {"mask": like((4, 5))}),
    "lengths of another batch": (r"lengths.*\(3,\)", ValueError, {"lengths": like(3, np.int64)}),
    "lengths not whole": (r"lengths.*float", TypeError, {"lengths": like(4)}),
    "lengths too long": (r"lengths.*9", ValueError, {"lengths": np.array([1, 2, 9, 1])}),
    "lengths negative": (r"lengths.*-1", ValueError, {"lengths": np.array([1, -1, 2, 1])}),
    "lengths without positions": (
        r"lengths",
        ValueError,
        {"x": X[:, :, 0], "lengths": np.array([1, 1, 1, 1])},
    ),
    "unknown activation": (r"reul.*relu", ValueError, {"activation": "reul"}),
    "activation no name": (r"activation", TypeError, {"activation": np.tanh}),
    "statistics of another shape": (
        r"statistics.*\(5,\).*\(6,\)",
        ValueError,
        {"statistics": (like(5), like(5))},
    ),
    "statistics without variance": (
        r"statistics",
        (ValueError, TypeError),
        {"statistics": like(6)},
    ),
    "renorm of another shape": (
        r"(?i)renorm.*\(5,\).*\(6,\)",
        ValueError,
        {"renorm": nk.Renorm(like(5), like(5))},
    ),
    "renorm no Renorm": (r"renorm", TypeError, {"renorm": 3}),
    "renorm and statistics": (
        r"renorm.*statistics|statistics.*renorm",
        ValueError,
        {"renorm": nk.Renorm(like(6), like(6)), "statistics": (like(6), like(6))},
    ),
}
OUT = {
    "out of another shape": (r"out.*\(4, 6, 4\)", ValueError, like((4, 6, 4))),
    "out of another dtype": (r"out.*float64", TypeError, like((4, 6, 5), np.float64)),
    "out no array": (r"out.*list", TypeError, [0.0]),
}


def call(changes, **more):
    given = {"x": X, "gamma": GAMMA} | changes | more
    return BATCH.forward(given.pop("x"), given.pop("gamma"), **given)


def says_enough(error):
    text = str(error.value)
    assert "received" in text, text
    assert "expected" in text, text
    assert text.rstrip().endswith((".", "?")), text
    assert len(text.split("expected", 1)[1]) > 10


@pytest.mark.parametrize("name", list(FORWARD))
def test_forward(name):
    match, kind, changes = FORWARD[name]
    x = changes.get("x", X)
    out = np.full(np.shape(x) or (1,), 7, np.float32)
    with pytest.raises(kind, match=f"(?s){match}") as error:
        call(changes, out=out)
    says_enough(error)
    assert np.all(out == 7), "written before the error"
    with pytest.raises(kind, match=f"(?s){match}"):
        call(changes)


@pytest.mark.parametrize("name", list(OUT))
def test_out(name):
    match, kind, out = OUT[name]
    before = np.array(out, copy=True)
    with pytest.raises(kind, match=f"(?s){match}") as error:
        call({}, out=out)
    says_enough(error)
    assert np.array_equal(out, before)


def test_read_only_out():
    out = like(X.shape)
    out.setflags(write=False)
    with pytest.raises(ValueError, match=r"read-only|writ") as error:
        call({}, out=out)
    says_enough(error)


@pytest.mark.parametrize("half", ["moments", "apply"])
@pytest.mark.parametrize("name", ["one dimension", "integers", "axis out of range"])
def test_halves_check_too(name, half):
    match, kind, changes = FORWARD[name]
    given = {"x": X} | {k: v for k, v in changes.items() if k != "gamma"}
    x = given.pop("x")
    given_moments = () if half == "moments" else (nk.Moments(np.ones(6), np.zeros(6), np.ones(6)),)
    with pytest.raises(kind, match=match):
        getattr(BATCH, half)(x, *given_moments, **given)


def test_apply_with_moments_of_another_norm():
    with pytest.raises(ValueError, match=r"(?s)\(4, 6\).*\(6,\)") as error:
        BATCH.apply(X, nk.InstanceNorm().moments(X))
    says_enough(error)


BACKWARD = {
    "dy of another shape": (r"dy.*\(4, 6\)", ValueError, X[:, :, 0]),
    "dy that would broadcast": (r"dy.*\(1, 6, 5\)", ValueError, X[:1]),
    "dy of another dtype": (r"dy.*float64", TypeError, X.astype(np.float64)),
    "dy of integers": (r"dy.*int64", TypeError, np.ones(X.shape, np.int64)),
    "no dy": (r"dy", TypeError, None),
}


@pytest.mark.parametrize("half", ["backward", "gradient_sums"])
@pytest.mark.parametrize("name", list(BACKWARD))
def test_backward(name, half):
    match, kind, dy = BACKWARD[name]
    _, saved = call({})
    with pytest.raises(kind, match=f"(?s){match}") as error:
        getattr(BATCH, half)(dy, saved)
    says_enough(error)


@pytest.mark.parametrize(
    "other", [nk.InstanceNorm(), nk.BatchNorm(eps=1e-3), nk.MeanOnlyBatchNorm()], ids=repr
)
def test_saved_of_another_norm(other):
    _, saved = call({})
    for method in (other.backward, other.gradient_sums):
        with pytest.raises(ValueError, match="norm") as error:
            method(X, saved)
        says_enough(error)


@pytest.mark.parametrize("saved", [None, {}, "saved"])
def test_saved_that_is_none_of_ours(saved):
    with pytest.raises((TypeError, ValueError), match="saved"):
        BATCH.backward(X, saved)


def test_backward_after_x_was_overwritten_in_place():
    x = X.copy()
    _, saved = BATCH.forward(x, GAMMA, out=x)
    with pytest.raises(ValueError, match=r"in place|overwr") as error:
        BATCH.backward(X, saved)
    says_enough(error)


NORMS = {
    "negative eps": ("eps", lambda: nk.BatchNorm(eps=-1e-5)),
    "NaN eps": ("eps", lambda: nk.BatchNorm(eps=NAN)),
    "infinite eps": ("eps", lambda: nk.RMSNorm(eps=float("inf"))),
    "eps no number": ("eps", lambda: nk.LayerNorm(eps="small")),
    "no groups": ("0", lambda: nk.GroupNorm(0)),
    "groups not whole": ("2.5", lambda: nk.GroupNorm(2.5)),
    "ghost of no samples": ("samples", lambda: nk.GhostBatchNorm(0)),
    "ghost not whole": ("samples", lambda: nk.GhostBatchNorm(1.5)),
    "positions": ("positions", lambda: nk.Norm(positions=3)),
    "channels": ("channels", lambda: nk.Norm(channels="every")),
    "samples": ("samples", lambda: nk.Norm(samples=-1)),
    "center": ("center", lambda: nk.Norm(center="yes")),
    "r_max": ("r_max", lambda: nk.Renorm(like(6), like(6), r_max=0.5)),
    "NaN r_max": ("r_max", lambda: nk.Renorm(like(6), like(6), r_max=NAN)),
    "d_max": ("d_max", lambda: nk.Renorm(like(6), like(6), d_max=-1.0)),
    "NaN momentum": ("momentum", lambda: nk.ExponentialAverage.torch(3, momentum=NAN)),
    "momentum over 1": ("momentum", lambda: nk.ExponentialAverage.keras(3, momentum=1.5)),
    "NaN rate": ("rate", lambda: nk.ExponentialAverage(like(3), like(3), rate=NAN)),
    "no channels": ("channel", lambda: nk.ExponentialAverage.torch(0)),
}


@pytest.mark.parametrize("name", list(NORMS))
def test_values_say_what_is_wrong_when_made(name):
    field, make = NORMS[name]
    with pytest.raises((ValueError, TypeError), match=field) as error:
        make()
    says_enough(error)


@pytest.mark.parametrize("norm", [nk.GroupNorm(4), nk.BatchGroupNorm(2, 4), nk.Norm(channels=4)])
def test_groups_that_do_not_divide(norm):
    out = np.full_like(X, 7)
    with pytest.raises(ValueError, match=r"4.*6 channels.*1, 2, 3, 6") as error:
        norm.forward(X, out=out)
    says_enough(error)
    assert np.all(out == 7)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "all"])
def test_number_of_threads(threads):
    before = nk.get_num_threads()
    with pytest.raises((ValueError, TypeError), match="thread") as error:
        nk.set_num_threads(threads)
    says_enough(error)
    assert nk.get_num_threads() == before


def test_errors_survive_pickling():
    with pytest.raises(nk.errors.ShapeError) as error:
        call({"gamma": like(5)})
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is nk.errors.ShapeError
    assert str(again) == str(error.value)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize(
    "name",
    [
        "one dimension",
        "integers",
        "gamma too short",
        "mask of another shape",
        "residual of another shape",
    ],
)
def test_the_portable_engine_checks_the_same(name, library):
    module = {"torch": "torch", "jax": "jax.numpy"}[library]
    xp = pytest.importorskip(module, reason=f"{library} is not installed")
    match, kind, changes = FORWARD[name]
    given = {
        k: xp.asarray(np.asarray(v)) if isinstance(v, np.ndarray) else v
        for k, v in ({"x": X, "gamma": GAMMA} | changes).items()
    }
    match = match.replace("int64", "int(64|32)")
    with pytest.raises(kind, match=f"(?s){match}"):
        BATCH.forward(given.pop("x"), given.pop("gamma"), **given)


def test_mixed_libraries_are_refused():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(TypeError, match="gamma"):
        BATCH.forward(X, torch.ones(6))
