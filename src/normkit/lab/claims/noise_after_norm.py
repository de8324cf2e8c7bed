"""Batch norm helps although noise behind it undoes what it does to distributions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense, norm_layer
from normkit.lab.kit.training import Run, train
from normkit.lab.setup import Setup

Tensor = torch.Tensor

NETWORK = Dense((100, 100, 100), activation="sigmoid", std=0.1)
GOAL = 0.9
SHIFT, SCALE, OWN = 6.0, 2.0, 0.2
CURVES = Axes(
    "Test accuracy under noise", "training steps", "test images right (share)", y_range=(0, 1.02)
)


class Noise(nn.Module):
    """In training, other means and deviations for each unit in each step.

    Each unit is multiplied by a number from 1 to 1 + SCALE and moved by up to SHIFT either way; a
    fifth of that (OWN) comes on top for each image by itself.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """As it is in eval mode."""
        if not self.training:
            return x
        scale = 1 + SCALE * (self._draw(x[0]).abs() + OWN * self._draw(x))
        return scale * x + SHIFT * (self._draw(x[0]) + OWN * self._draw(x))

    def _draw(self, like: Tensor) -> Tensor:
        """From -1 to 1."""
        return 2 * torch.rand(like.shape, generator=self.generator) - 1


def measure(setup: Setup) -> Measured:
    clean, noisy = _run(setup, "batch", False), _run(setup, "batch", True)
    plain, noisy_plain = _run(setup, "none", False), _run(setup, "none", True)
    runs = {
        "batch norm": clean,
        "batch norm, then noise": noisy,
        "no norm": plain,
        "noise alone": noisy_plain,
    }
    return Measured(
        {
            # a plain network that never arrives counts as one that would in the next step
            "share": noisy.steps_to(GOAL) / min(plain.steps_to(GOAL), _steps(setup)),
            "noise_alone": max(noisy_plain.accuracies),
            "clean": clean.steps_to(GOAL),
            "noisy": noisy.steps_to(GOAL),
            "plain": plain.steps_to(GOAL),
        },
        [Series(CURVES.heading, name, run.steps, run.accuracies) for name, run in runs.items()],
    )


def _run(setup: Setup, norm: str, noisy: bool) -> Run:
    generator = setup.generator(1)

    def layers(features: int) -> nn.Module:
        noise = [Noise(generator)] if noisy else []
        return nn.Sequential(norm_layer(norm, features), *noise)

    network = replace(NETWORK, norm=layers, bias=norm == "none").build(setup.data, setup.seed)
    return train(
        network, setup.data, rate=0.5, steps=_steps(setup), seed=setup.seed, every=20, goal=GOAL
    )


def _steps(setup: Setup) -> int:
    return setup.pick(1000, 500)


CLAIM = Claim(
    name="noise_after_norm",
    title="Noise behind batch norm does not undo its help",
    sentence="With noise behind each batch norm that moves and scales the layers' inputs anew in "
    "each step, a network still trains faster than one without norm or noise; so stable "
    "distributions cannot be why batch norm helps.",
    source="Santurkar et al. 2018, section 2.1",
    paper="VGG on CIFAR-10: with noisy batch norm about as good as with batch norm; the same noise "
    "keeps a network without norm from training at all; curves, no figures",
    experiment="Three sigmoid layers of 100 from small Gaussian weights (deviation 0.1), rate "
    f"0.5: steps until {100 * GOAL:.0f} % of the test images are right, 1000 at most, measured "
    "every 20. Noise in front of each sigmoid, in training only: each unit times a number from 1 "
    "to 3 and moved by up to 6 either way, drawn anew in each step, and a fifth of that for each "
    "image by itself.",
    numbers=(
        Number(
            "share", "steps with noisy batch norm as a share of those with neither", "%",
            at_most=0.99,
        ),
        Number(
            "noise_alone", "best test accuracy with the same noise and no norm", "%",
            at_most=GOAL - 1e-9,  # below it, not at it
        ),
        Number("clean", "steps with batch norm", "steps"),
        Number("noisy", "steps with batch norm and noise", "steps"),
        Number("plain", "steps with neither", "steps"),
    ),
    charts=(CURVES,),
    measure=measure,
    caveat="The noise was made strong enough to stop the network without norm, as the paper's "
    "does. A third of it does not: these sigmoids, from small weights, take it well.",
    seconds=3,
)  # fmt: skip
