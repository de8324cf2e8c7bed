"""Large batches, and what ghost batches give back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from normkit.lab.claim import Axes, Claim, Measured, Number, Series
from normkit.lab.kit.networks import Dense
from normkit.lab.kit.sizes import falling
from normkit.lab.kit.training import Run, train
from normkit.lab.setup import Setup

NETWORK = Dense((60, 60, 60), norm="batch")
SMALL, LARGE, RATE = 32, 512, 0.05
TIMES = LARGE // SMALL
CURVES = Axes(
    "Test error while learning", "training steps", "test images wrong (share)",
    log_x=True, y_range=(0, 0.5),
)  # fmt: skip


@dataclass(frozen=True)
class _Way:
    """Of training: size of the batch, factor on the rate, size of ghost batches, on the steps."""

    words: str
    size: int = LARGE
    rate: float = 1.0
    ghost: int | None = None
    steps: int = 1


WAYS = {
    "small": _Way(f"batches of {SMALL}", SMALL, steps=TIMES),
    "large": _Way(f"batches of {LARGE}"),
    "rate": _Way("… and the rate × 4", rate=TIMES**0.5),
    "ghosts": _Way(f"… and ghost batches of {SMALL}", rate=TIMES**0.5, ghost=SMALL),
    "longer": _Way("… and as many steps as small batches", rate=TIMES**0.5, ghost=SMALL,
                   steps=TIMES),
}  # fmt: skip


def measure(setup: Setup) -> Measured:
    steps = setup.pick(32, 8)
    runs = {name: _run(setup, way, steps * way.steps) for name, way in WAYS.items()}
    return Measured(
        {name: 1 - run.accuracy for name, run in runs.items()},
        [
            Series(CURVES.heading, WAYS[name].words, run.steps[1:], [1 - a for a in
                                                                     run.accuracies[1:]])
            for name, run in runs.items()
        ],
    )  # fmt: skip


def _run(setup: Setup, way: _Way, steps: int) -> Run:
    options = {} if way.ghost is None else {"ghost": way.ghost}
    network = replace(NETWORK, norm_options=options).build(setup.data, setup.seed)
    return train(
        network, setup.data, rate=falling(RATE * way.rate, steps), steps=steps, seed=setup.seed,
        batch=way.size, momentum=0.9, every=steps // 8,
    )  # fmt: skip


CLAIM = Claim(
    name="ghost",
    title="Large batches, their steps and ghost batches",
    sentence="Trained for as many passes, large batches end with a larger test error; a higher "
    "rate, batch norm over small ghost batches, and as many steps as small batches take win it "
    "back.",
    source="Hoffer et al. 2017, section 4 and table 1",
    paper="ResNet-44 on CIFAR-10, batches of 128 and 4096: 92.83 % right with small batches, "
    "86.10 with large ones, 89.30 with a higher rate, 90.50 with ghost batches too, 93.07 with the "
    "steps adapted (as remembered, not checked in the paper)",
    experiment="A perceptron of 3×60 ReLU units, batches of 32 and of 512, rate 0.05 falling "
    "linearly to zero, momentum 0.9: 512 steps of 32, as many images in 32 steps of 512; the rate "
    "× √16; ghost batches of 32; then 512 steps of 512.",
    numbers=(
        Number("small", "wrong, batches of 32", "%", paper="7.17 %"),
        Number("large", "wrong, batches of 512", "%", paper="13.9 %"),
        Number("rate", "wrong, the rate × 4 too", "%", paper="10.7 %"),
        Number("ghosts", "wrong, ghost batches of 32 too", "%", paper="9.5 %"),
        Number("longer", "wrong, as many steps as small batches too", "%", paper="6.93 %"),
    ),
    charts=(CURVES,),
    measure=measure,
    caveat="With 32 steps large batches have not finished learning: 5 to 7 % of the training "
    "images are still wrong too, so this is less about generalizing than about steps. The rate "
    "alone wins most of it back, ghost batches add nothing that 500 test images could tell, and "
    "as many steps as small batches win all of it. The paper's percentages are as remembered.",
    seconds=6,
)
