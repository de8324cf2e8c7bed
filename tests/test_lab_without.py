"""What the claims on doing without batch norm, or with less memory, share."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from normkit.lab.claims.dynamic_tanh import Scaled
from normkit.lab.claims.fixup import mean_squares
from normkit.lab.data import Data
from normkit.lab.kit.branches import Branch, Branches
from normkit.lab.kit.memory import EPS, SLOPE, InPlaceNorm, Kept
from normkit.lab.kit.skips import Block
from normkit.lab.kit.training import clip_by_weights
from normkit.torch.beyond import DynamicTanh

IMAGES = torch.randn(12, 1, 3, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
DATA = Data("twelve", IMAGES, LABELS, IMAGES, LABELS, 3)


def blocks(network):
    return [layer for layer in network if isinstance(layer, Block)]


class TestBranches:
    def build(self, start):
        return Branches(start, width=8, blocks=4).build(DATA, 0)

    def test_of_all_starts_the_weights_are_the_same_draws(self):
        fixup, skip, plain = (self.build(s) for s in ("Fixup", "SkipInit", "neither"))
        for network in (fixup, skip):
            assert torch.equal(network[1].weight, plain[1].weight)
        for one, other in zip(blocks(fixup), blocks(plain), strict=True):
            # L^(-1/(2m - 2)) of 4 blocks with branches of 2 layers is a half
            torch.testing.assert_close(one.branch.first.weight, other.branch.first.weight / 2)
        norms = blocks(self.build("batch norm"))
        assert torch.equal(norms[0].branch[2].weight, blocks(plain)[0].branch.first.weight)

    @pytest.mark.parametrize("start", ["Fixup", "SkipInit"])
    def test_branches_start_at_zero_and_learn(self, start):
        network = self.build(start)
        x = torch.randn(5, 8)
        for block in blocks(network):
            assert torch.equal(block(x), x)
        F.cross_entropy(network(IMAGES), LABELS).backward()
        if start == "SkipInit":  # the head of Fixup is zero too: it learns first
            assert all(float(block.branch.factor.grad.abs()) > 0 for block in blocks(network))
        else:
            assert float(network[-1].weight.grad.abs().max()) > 0

    def test_a_branch_adds_its_scalars_where_it_says(self):
        branch = Branch(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), factor=5.0)
        with torch.no_grad():
            branch.first.weight.fill_(2.0)
            branch.last.weight.fill_(3.0)
            branch.offsets.copy_(torch.tensor([1.0, 10.0, -7.0, 100.0]))
        # relu(4 + 1) = 5; + 10, doubled: 30; relu(30 - 7) = 23; + 100, tripled: 369
        assert float(branch(torch.tensor([[4.0]])).detach()) == 5 * 369

    def test_growth_is_by_what_goes_into_the_first_block(self):
        class Doubling(nn.Module):
            def forward(self, x):
                return x

        network = nn.Sequential(nn.Linear(9, 4), Block(Doubling()), nn.ReLU(), Block(Doubling()))
        with torch.no_grad():
            network[0].weight.fill_(0.0)
            network[0].bias.fill_(3.0)
        assert mean_squares(network, torch.zeros(2, 9)) == [1.0, 4.0, 16.0]


class TestClipping:
    def test_by_rows_of_weights(self):
        weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]))
        weight.grad = torch.tensor([[30.0, 40.0], [3.0, 4.0], [0.003, 0.004]])
        clip_by_weights([weight], 0.1)
        # no longer than a tenth of 5; of 1e-3, where there is no weight; and short as it was
        expected = torch.tensor([[0.3, 0.4], [6e-5, 8e-5], [0.003, 0.004]])
        torch.testing.assert_close(weight.grad, expected)

    def test_of_a_bias_all_at_once(self):
        bias = nn.Parameter(torch.tensor([3.0, 4.0]))
        bias.grad = torch.tensor([0.0, 10.0])
        clip_by_weights([bias], 0.1)
        torch.testing.assert_close(bias.grad, torch.tensor([0.0, 0.5]))

    def test_no_gradient_at_all(self):
        bias = nn.Parameter(torch.ones(2))
        bias.grad = torch.zeros(2)
        clip_by_weights([bias], 0.1)
        assert torch.equal(bias.grad, torch.zeros(2))


class TestMemory:
    def test_in_place_is_batch_norm_and_leaky_relu(self):
        layer = InPlaceNorm(3).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
            layer.bias.copy_(torch.tensor([0.3, -1.0, 0.0]))
        x = torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        wanted = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=EPS)
        torch.testing.assert_close(y, F.leaky_relu(wanted, SLOPE))
        inputs = (x, layer.weight, layer.bias)
        g = torch.randn_like(y)
        found = torch.autograd.grad(y, inputs, g)
        oracle = torch.autograd.grad(F.leaky_relu(wanted, SLOPE), inputs, g)
        for one, other in zip(found, oracle, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)

    def test_each_storage_counts_once_and_parameters_do_not(self):
        network = nn.Linear(4, 4, bias=False)
        x = torch.randn(2, 4, requires_grad=True)
        kept = Kept(network)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            y = network(x)  # keeps x and the weight
            z = y * y  # keeps y, twice
        assert kept.bytes == 4 * (x.numel() + y.numel())
        assert z.shape == y.shape


def test_scaled_is_dynamic_tanh_without_its_tanh():
    x = torch.randn(6, 4)
    small = 1e-3 * x
    scaled, tanh = Scaled(4), DynamicTanh(4, axis=1)
    torch.testing.assert_close(scaled(small), tanh(small), rtol=1e-5, atol=1e-9)
    assert float((scaled(10 * x) - tanh(10 * x)).detach().abs().max()) > 1
