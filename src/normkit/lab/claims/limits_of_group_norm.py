"""Group norm contains layer norm and instance norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit import torch as nkt
from normkit.lab.claim import Claim, Measured, Number
from normkit.lab.kit.residuals import apart, draw, equal, kernels, largest, least, through
from normkit.lab.kit.residuals import with_random_affine as randomized
from normkit.lab.setup import Setup

CHANNELS, HEIGHT, WIDTH = 6, 3, 4
SHAPE = (CHANNELS, HEIGHT, WIDTH)


@kernels()
def measure(setup: Setup) -> Measured:
    generator = setup.generator()
    x, g = 2 + 1.5 * draw(generator, 5, *SHAPE), draw(generator, 5, *SHAPE)
    groups = {
        count: randomized(nkt.GroupNorm(count, CHANNELS), setup.generator(1))
        for count in (1, 2, CHANNELS)
    }
    found = {count: through(layer, x, g) for count, layer in groups.items()}
    layer = nkt.LayerNorm(SHAPE).double()
    with torch.no_grad():
        for parameter, values in zip(layer.parameters(), groups[1].parameters(), strict=True):
            parameter.copy_(values[:, None, None].expand(SHAPE))
    like_layer = _by_channel(through(layer, x, g))
    like_instance = through(_with(groups[1], nkt.InstanceNorm2d(CHANNELS, affine=True)), x, g)
    one = x[:1], g[:1]
    like_batch = through(_with(groups[1], nkt.BatchNorm2d(CHANNELS)), *one)
    return Measured(
        {
            "layer": largest(found[1], like_layer),
            "instance": largest(found[CHANNELS], like_instance),
            "batch": largest(through(groups[CHANNELS], *one), like_batch),
            "between": least(largest(found[2], other) for other in (like_layer, like_instance)),
            "affine": layer.weight.numel() / groups[1].weight.numel(),
        }
    )


def _with(other: nn.Module, layer: nn.Module) -> nn.Module:
    """The layer with the other's gamma and beta."""
    layer.double().load_state_dict(other.state_dict(), strict=False)
    return layer


def _by_channel(passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of one gamma and beta a channel, from those of one an element."""
    y, dx, *parameters = passed
    return y, dx, *(values.sum((1, 2)) for values in parameters)


CLAIM = Claim(
    name="limits_of_group_norm",
    title="Group norm contains layer and instance norm",
    sentence="Group norm with one group is layer norm over channels and positions, with a group a "
    "channel it is instance norm, which is batch norm of a single sample.",
    source="Wu & He 2018, section 3; batch norm of one sample: folklore",
    paper="exact",
    experiment="The layers in training mode on 5×6×3×4 random numbers, the same random γ and β for "
    "each channel, float64: output, gradient by the input, gradients of γ and β.",
    numbers=(
        equal("layer", "one group against layer norm over C×H×W"),
        equal("instance", "a group a channel against instance norm"),
        equal("batch", "the same against batch norm, one sample"),
        apart("between", "two groups against the nearer of layer and instance norm"),
        Number("affine", "values in layer norm's γ for each of group norm's"),
    ),
    measure=measure,
    caveat="Layer norm has a γ and a β for each element of C×H×W, group norm for each channel: the "
    "functions are the same as long as layer norm's are constant over positions, which training "
    "would not keep so.",
    seconds=0.1,
)
