"""What a run prints of layers and networks, and their tables on docs/benchmarks.md."""

from __future__ import annotations

from bench_cases import MB
from benchmarks.goals import Results, Row, ratio
from benchmarks.layer_targets import PRICE, QUANTITY_NAMES, SLOWER, kept_share, over_nn, price
from benchmarks.tables import MISSING, NOTHING, number, table, times, times_and_spread

VARIANTS = {
    "network": "torch.nn",
    "swapped": "normkit's layers",
    "accelerated": "accelerated",
    "lean": "accelerated, lean memory",
}

# Lines of a run


def layer_line(row: Row) -> str:
    return (
        f"{row['id']:42} {row['bytes'] / MB:6.1f} MB: torch.nn {times(row, 'nn')} ms, compiled "
        f"{times(row, 'nn-compiled')}, normkit {times(row, 'normkit-layer')}; "
        f"normkit / torch.nn {number(over_nn(row))}"
    )


def price_line(row: Row) -> str:
    parts = [
        f"{text} {number(price(row, quantity), 1)} µs" for quantity, text in QUANTITY_NAMES.items()
    ]
    return f"{row['id']:42} beyond torch.nn: {', '.join(parts)}"


def network_line(row: Row) -> str:
    parts = [
        f"{peer} {times(row, peer)} ms ({number(ratio(row, peer, 'network', 'step'))})"
        for peer in VARIANTS
    ]
    return f"{row['id']:42} {', '.join(parts)}"


def saved_line(row: Row) -> str:
    parts = [f"{peer} {_megabytes(row, peer)} MB" for peer in VARIANTS]
    return f"{row['id']:42} kept: {', '.join(parts)}"


def _megabytes(row: Row, peer: str) -> str:
    found = row["saved"].get(peer)
    return f"{found['kept'] / MB:.1f}" if found else MISSING


# Tables of the page, each with a sentence on what missed its target


def layers_table(results: Results) -> str:
    rows = results.get("layers", [])
    if not rows:
        return NOTHING
    cells = [
        [
            f"`{row['id']}`",
            f"{row['bytes'] / MB:.3g}",
            times_and_spread(row, "nn"),
            times(row, "nn-compiled"),
            times_and_spread(row, "normkit-layer"),
            number(ratio(row, "nn", "normkit-layer", "step")),
            number(ratio(row, "nn-compiled", "normkit-layer", "step")),
        ]
        for row in rows
    ]
    head = [
        "layer and case",
        "x, MB",
        "torch.nn, ms (spread)",
        "compiled, ms",
        "normkit, ms (spread)",
        "torch.nn / normkit",
        "compiled / normkit",
    ]
    slower = {row["id"]: value for row in rows if (value := over_nn(row) or 0) > SLOWER}
    named = ", ".join(f"`{name}` ({value:.2f}×)" for name, value in slower.items())
    words = f"Slower than torch.nn's eager layer by more than {SLOWER - 1:.0%}: {named or 'none'}."
    return f"{table(head, cells)}\n\n{words}"


def price_table(results: Results) -> str:
    rows = results.get("price", [])
    if not rows:
        return NOTHING
    cells = [[row["id"], *_prices(row)] for row in rows]
    head = ["layer, input, mode"]
    for text in QUANTITY_NAMES.values():
        head += [f"{text}: torch.nn, µs", "normkit, µs", "beyond, µs (range)"]
    dear = [
        f"{row['id']}, {text} ({value:.1f} µs)"
        for row in rows
        for quantity, text in QUANTITY_NAMES.items()
        if (value := price(row, quantity) or 0) > PRICE
    ]
    words = f"More than {PRICE:g} µs beyond torch.nn's: {'; '.join(dear) or 'none'}."
    return f"{table(head, cells)}\n\n{words}"


def _prices(row: Row) -> list[str]:
    cells = []
    for quantity in QUANTITY_NAMES:
        found = row["price"].get(quantity)
        if not found:
            cells += [MISSING] * 3
            continue
        low, high = (found["over"][end] * 1e6 for end in ("min", "max"))
        cells += [f"{found[name]['median'] * 1e6:.1f}" for name in ("nn", "normkit")]
        cells.append(f"{found['over']['median'] * 1e6:.1f} ({low:.1f} to {high:.1f})")
    return cells


def networks_table(results: Results) -> str:
    rows = results.get("networks", [])
    if not rows:
        return NOTHING
    cells = [
        [
            f"channels {row['layout']}",
            name,
            times_and_spread(row, peer),
            times(row, peer, "forward"),
            times(row, peer, "backward"),
            number(ratio(row, "network", peer, "step")),
        ]
        for row in rows
        for peer, name in VARIANTS.items()
    ]
    head = [
        "layout",
        "layers",
        "step, ms (spread)",
        "forward, ms",
        "backward and update, ms",
        "torch.nn / this",
    ]
    return table(head, cells, left=2)


def saved_table(results: Results) -> str:
    rows = results.get("saved", [])
    if not rows:
        return NOTHING
    cells = [
        [f"`{row['id']}`", name, _megabytes(row, peer), number(kept_share(row, peer))]
        for row in rows
        for peer, name in VARIANTS.items()
    ]
    return table(["network", "layers", "kept, MB", "of torch.nn's"], cells, left=2)


LAYER_PARTS = {
    "layers": layers_table,
    "price": price_table,
    "networks": networks_table,
    "saved": saved_table,
}
