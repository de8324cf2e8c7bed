"""Targets of layers and networks: never much slower than torch.nn, and half the bytes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import figures
from benchmarks.goals import Measured, Results, Row, Target, ratio

SLOWER = 1.1  # our time over torch.nn's that no layer should exceed
PRICE = 15.0  # microseconds
SHARE = 0.55  # of the bytes that PyTorch keeps

LAYERS = ("BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "RMSNorm")
QUANTITY_NAMES = {"forward": "forward", "step": "forward + backward"}


def over_nn(row: Row) -> float | None:
    """Our step's time over that of torch.nn's eager layer."""
    return ratio(row, "normkit-layer", "nn", "step")


def _slowest(layer: str) -> Callable[[Results], Measured | None]:
    def measure(results: Results) -> Measured | None:
        rows = [row for row in results.get("layers", ()) if row["norm"] == layer]
        found = {row["id"]: value for row in rows if (value := over_nn(row)) is not None}
        if not found:
            return None
        name = max(found, key=lambda case: found[case])
        mean = figures.geometric_mean(found.values())
        slower = sum(value > SLOWER for value in found.values())
        note = f"worst of {len(found)}, {slower} above: {name}; geometric mean {mean:.2f}"
        return Measured(found[name], note)

    return measure


def price(row: Row, quantity: str) -> float | None:
    """Microseconds of a call beyond torch.nn's own; None where it was not measured."""
    found = row["price"].get(quantity)
    return found and found["over"]["median"] * 1e6


def _dearest(quantity: str) -> Callable[[Results], Measured | None]:
    def measure(results: Results) -> Measured | None:
        rows = results.get("price", ())
        found = {row["id"]: value for row in rows if (value := price(row, quantity)) is not None}
        if not found:
            return None
        name = max(found, key=lambda case: found[case])
        return Measured(found[name], f"worst of {len(found)}: {name}")

    return measure


def kept_share(row: Row, peer: str) -> float | None:
    """The bytes that a variant keeps, as a share of what torch.nn's layers keep."""
    saved = row["saved"]
    if peer not in saved or "network" not in saved:
        return None
    return saved[peer]["kept"] / saved["network"]["kept"]


def _lean_share(results: Results) -> Measured | None:
    rows = [row for row in results.get("saved", ()) if row["norm"] == "Chain8"]
    found = {row["id"]: value for row in rows if (value := kept_share(row, "lean")) is not None}
    if not found:
        return None
    name = max(found, key=lambda case: found[case])
    return Measured(found[name], f"worst of {len(found)}: {name}")


LAYER_TARGETS: tuple[Target, ...] = (
    *(
        Target(
            "Layers, forward + backward",
            f"every case of {layer}: our time against torch.nn's",
            SLOWER,
            _slowest(layer),
            at_most=True,
        )
        for layer in LAYERS
    ),
    *(
        Target(
            "The price of a call",
            f"{text}, beyond torch.nn's, every layer",
            PRICE,
            _dearest(quantity),
            at_most=True,
            unit=" µs",
        )
        for quantity, text in QUANTITY_NAMES.items()
    ),
    Target(
        "Kept for backward",
        "eight times convolution, batch norm, ReLU: lean memory against PyTorch",
        SHARE,
        _lean_share,
        at_most=True,
    ),
)
