"""The networks of the lab: alike but for what is compared."""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import normkit.torch as nkt  # noqa: E402
from normkit.lab.data import Data  # noqa: E402
from normkit.lab.kit.networks import Conv, Dense, norm_layer, start  # noqa: E402
from normkit.torch import beyond  # noqa: E402

VECTORS = ("none", "batch", "ghost", "renorm", "group", "layer", "rms", "tanh")
MAPS = ("none", "batch", "ghost", "renorm", "group", "layer", "instance", "frn", "tanh")


def images(*shape, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((12, *shape), generator=generator)
    y = torch.arange(12) % classes
    return Data("drawn", x, y, x[:6], y[:6], classes)


SMALL = images(1, 4, 6)
COLOUR = images(3, 32, 32, classes=7)


def weights(network):
    return [m.weight for m in network if isinstance(m, nn.Linear | nn.Conv2d)]


def kinds(network):
    return [type(m) for m in network]


@pytest.mark.parametrize("norm", VECTORS)
def test_one_seed_draws_the_same_dense_weights_whatever_the_norm(norm):
    plain = weights(Dense((8, 8)).build(SMALL, 5))
    for one, other in zip(plain, weights(Dense((8, 8), norm=norm).build(SMALL, 5)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", MAPS)
def test_one_seed_draws_the_same_convolutions_whatever_the_norm(norm):
    plain = weights(Conv((4, 8)).build(SMALL, 5))
    for one, other in zip(plain, weights(Conv((4, 8), norm=norm).build(SMALL, 5)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{"placement": "after"}, {"dropout": 0.5}, {"bias": False}])
def test_nor_do_placement_dropout_and_bias_change_the_weights(options):
    plain = weights(Dense((8, 8), norm="batch").build(SMALL, 5))
    other = weights(Dense((8, 8), norm="batch", **options).build(SMALL, 5))
    assert all(map(torch.equal, plain, other))


def test_another_seed_draws_others_and_the_global_generator_draws_none():
    before = torch.get_rng_state()
    one, other = (weights(Dense((8, 8)).build(SMALL, seed)) for seed in (5, 6))
    assert not any(map(torch.equal, one, other))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("data", [SMALL, COLOUR], ids=["small", "colour"])
@pytest.mark.parametrize("network", [Dense((8,)), Conv((4, 8)), Conv((4, 8, 8), pool=False)])
def test_all_images_go_through(network, data):
    assert network.build(data, 0)(data.test_images).shape == (6, data.classes)


@pytest.mark.parametrize("norm", VECTORS)
def test_every_norm_of_vectors_trains(norm):
    network = Dense((20,), norm=norm).build(SMALL, 0)
    network(SMALL.train_images).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in weights(network))


@pytest.mark.parametrize("norm", MAPS)
def test_every_norm_of_feature_maps_trains(norm):
    network = Conv((20,), norm=norm).build(SMALL, 0)
    network(SMALL.train_images).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in weights(network))


@pytest.mark.parametrize("kind", ["instance", "frn", "bach"])
def test_a_norm_that_vectors_have_not_is_refused(kind):
    with pytest.raises(ValueError, match="for vectors"):
        norm_layer(kind, 8)


def test_norms_are_this_package_s():
    assert isinstance(norm_layer("batch", 8), nkt.BatchNorm1d)
    assert isinstance(norm_layer("batch", 8, dims=2), nkt.BatchNorm2d)
    assert norm_layer("ghost", 8, ghost=4).options.ghost == 4
    assert norm_layer("group", 8, groups=2).num_groups == 2
    assert norm_layer("layer", 8, dims=2).num_groups == 1
    assert isinstance(norm_layer("frn", 8, dims=2), beyond.FilterResponseNorm)
    assert isinstance(norm_layer(lambda features: nn.Linear(features, 3), 8), nn.Linear)


@pytest.mark.parametrize(
    ("placement", "parts"),
    [("before", [nkt.BatchNorm1d, nn.Sigmoid]), ("after", [nn.Sigmoid, nkt.BatchNorm1d])],
)
def test_a_norm_stands_before_the_activation_or_after(placement, parts):
    network = Dense((8,), "sigmoid", "batch", placement, dropout=0.1).build(SMALL, 0)
    assert kinds(network)[1:] == [nn.Linear, *parts, nn.Dropout, nn.Linear]
    network = Conv((4,), "sigmoid", "batch", placement).build(SMALL, 0)
    expected = [nkt.BatchNorm2d if part is nkt.BatchNorm1d else part for part in parts]
    assert kinds(network)[1:3] == expected


@pytest.mark.parametrize(
    ("options", "has_bias"),
    [
        ({"norm": "none"}, True),
        ({"norm": "batch"}, False),
        ({"norm": "ghost"}, False),
        ({"norm": "batch", "placement": "after"}, True),
        ({"norm": "layer"}, True),
    ],
)
def test_a_bias_goes_where_batch_norm_subtracts_it(options, has_bias):
    for network in (Dense((8,), **options), Conv((4,), **options)):
        first, last = (m for m in network.build(SMALL, 0) if isinstance(m, nn.Linear | nn.Conv2d))
        assert (first.bias is not None) == has_bias
        assert last.bias is not None


def test_a_bias_stays_where_it_is_asked_for():
    assert Dense((8,), norm="batch", bias=True).build(SMALL, 0)[1].bias is not None
    assert Dense((8,), bias=False).build(SMALL, 0)[1].bias is None


@pytest.mark.parametrize(
    ("std", "deviation"),
    [(0.3, 0.3), ("he", math.sqrt(2 / 400)), ("torch", 1 / math.sqrt(3 * 400))],
)
def test_weights_are_drawn_with_the_deviation_asked_for(std, deviation):
    layer = start(nn.Linear(400, 500), std, torch.Generator().manual_seed(0))
    assert float(layer.weight.detach().std()) == pytest.approx(deviation, rel=0.01)
    assert not layer.bias.any()


def test_torch_s_own_start_has_the_same_bounds():
    ours = start(nn.Conv2d(4, 64, 3), "torch", torch.Generator().manual_seed(0))
    theirs = nn.Conv2d(4, 64, 3)
    for layer in (ours, theirs):
        assert float(layer.weight.detach().abs().max()) == pytest.approx(1 / 6, rel=0.01)


def test_a_mean_over_all_positions_or_all_of_them():
    assert Conv((4, 8)).build(SMALL, 0)[-1].in_features == 8
    assert Conv((4, 8), pool=False).build(SMALL, 0)[-1].in_features == 8 * 2 * 3
