"""The public surface, name by name: a name comes or goes only with this list."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest

import normkit as nk

PUBLIC = {
    "norms": (
        "ALL BatchGroupNorm BatchNorm ChannelLayerNorm GhostBatchNorm GroupNorm InstanceNorm "
        "LayerNorm MeanOnlyBatchNorm Norm RMSNorm Split TokenLayerNorm"
    ),
    "values": (
        "CumulativeAverage ExponentialAverage GradientSums Gradients Moments PopulationAverage "
        "Renorm Saved Trace"
    ),
    "activations": "Activation activation_names register_activation",
    "running": (
        "cache_size empty_cache explain_backend get_num_threads set_cache_limit set_num_threads "
        "warm_up"
    ),
    "modules": "errors",
    "about": "__version__",
}
NAMES = sorted(" ".join(PUBLIC.values()).split())


def test_all():
    assert sorted(nk.__all__) == NAMES
    assert len(set(nk.__all__)) == len(nk.__all__)


def test_nothing_else_is_in_sight():
    seen = {name for name in vars(nk) if not name.startswith("_")}
    modules = {name for name in seen if inspect.ismodule(getattr(nk, name))}
    assert seen - modules == {name for name in NAMES if not name.startswith("_")} - {"errors"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented(name):
    value = getattr(nk, name)
    if callable(value) or inspect.ismodule(value):
        assert inspect.getdoc(value), name


def parameters(function):
    return " ".join(inspect.signature(function).parameters)


SIGNATURES = {
    "forward": "self x gamma beta axis mask lengths residual activation statistics renorm out "
    "input_activation",
    "backward": "self dy saved",
    "gradient_sums": "self dy saved",
    "gradient_apply": "self dy saved sums",
    "trace": "self x gamma beta dy axis",
    "moments": "self x axis mask lengths input_activation",
}


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_signatures(name):
    assert parameters(getattr(nk.Norm, name)) == SIGNATURES[name]


SETS = {
    "BatchNorm": ((), ("all", 1, "all", True, True, 1e-5)),
    "GhostBatchNorm": ((32,), (32, 1, "all", True, True, 1e-5)),
    "LayerNorm": ((), (1, "all", "all", True, True, 1e-5)),
    "TokenLayerNorm": ((), (1, "all", 1, True, True, 1e-5)),
    "ChannelLayerNorm": ((), (1, "all", 1, True, True, 1e-5)),
    "RMSNorm": ((), (1, "all", 1, False, True, 1e-6)),
    "InstanceNorm": ((), (1, 1, "all", True, True, 1e-5)),
    "GroupNorm": ((8,), (1, nk.Split(8), "all", True, True, 1e-5)),
    "BatchGroupNorm": ((4, 8), (4, nk.Split(8), "all", True, True, 1e-5)),
    "MeanOnlyBatchNorm": ((), ("all", 1, "all", True, False, 1e-5)),
}


@pytest.mark.parametrize("name", list(SETS))
def test_the_table_of_sets(name):
    arguments, fields = SETS[name]
    norm = getattr(nk, name)(*arguments)
    assert isinstance(norm, nk.Norm)
    assert dataclasses.astuple(norm)[:1] == fields[:1]
    got = (norm.samples, norm.channels, norm.positions, norm.center, norm.scale, norm.eps)
    assert got == fields
    assert norm == nk.Norm(*fields)
    assert hash(norm) == hash(nk.Norm(*fields))
    assert pickle.loads(pickle.dumps(norm)) == norm == copy.deepcopy(norm)
    with pytest.raises(dataclasses.FrozenInstanceError):
        norm.eps = 1.0
    if name != "MeanOnlyBatchNorm":
        assert getattr(nk, name)(*arguments, eps=0.25).eps == 0.25


STATISTICS = {
    "BatchNorm": (), "GhostBatchNorm": (2,), "LayerNorm": (), "ChannelLayerNorm": (),
    "RMSNorm": (), "InstanceNorm": (), "GroupNorm": (2,), "BatchGroupNorm": (2, 3),
}  # fmt: skip
SHAPES = {
    "BatchNorm": (6,),
    "GhostBatchNorm": (3, 6),
    "LayerNorm": (5,),
    "ChannelLayerNorm": (5, 3, 4),
    "RMSNorm": (5, 3, 4),
    "InstanceNorm": (5, 6),
    "GroupNorm": (5, 2),
    "BatchGroupNorm": (3, 3),
}


@pytest.mark.parametrize("name", list(STATISTICS))
def test_shapes_of_the_statistics(name):
    norm = getattr(nk, name)(*STATISTICS[name])
    x = np.zeros((5, 6, 3, 4), np.float32)
    statistics = norm.forward(x)[1].statistics
    for value in (statistics.mean, statistics.var, statistics.m2, statistics.population_var):
        assert value.shape == SHAPES[name]
        assert value.dtype == np.float64


def test_memory_pool_and_threads_are_settings():
    nk.set_cache_limit(64 << 20)
    x = np.ones((64, 16, 64, 64), np.float32)
    y, saved = nk.BatchNorm().forward(x)
    del y, saved
    assert 0 <= nk.cache_size() <= 64 << 20
    nk.empty_cache()
    assert nk.cache_size() == 0
    assert nk.get_num_threads() >= 1


def test_explain_backend_is_text():
    text = nk.explain_backend(np.ones((4, 3), np.float32), nk.BatchNorm())
    assert isinstance(text, str)
    assert "cpu" in text.lower()
    assert "portable" in text.lower()
