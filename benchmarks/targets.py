"""The targets that the project has set itself, and what a result says about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench_cases import MB, SHORT
from benchmarks import figures
from benchmarks.goals import Measured, Results, Row, Target, ratio
from benchmarks.layer_targets import LAYER_TARGETS
from benchmarks.peers import LARGE

Choice = Callable[[Row], bool]


def _ratios(
    results: Results, chosen: Choice, over: str, under: str, quantity: str
) -> dict[str, float]:
    found = {
        row["id"]: ratio(row, over, under, quantity) for row in results["cases"] if chosen(row)
    }
    return {name: value for name, value in found.items() if value is not None}


def speedup(chosen: Choice, peer: str = "eager") -> Callable[[Results], Measured | None]:
    """Geometric mean of the peer's step time over ours."""

    def measure(results: Results) -> Measured | None:
        found = _ratios(results, chosen, peer, "normkit", "step")
        if not found:
            return None
        low, high = min(found.values()), max(found.values())
        note = f"{len(found)} cases, {low:.2f} to {high:.2f}"
        return Measured(figures.geometric_mean(found.values()), note)

    return measure


def worst(
    chosen: Choice, over: str, under: str, quantity: str = "step", lowest: bool = False
) -> Callable[[Results], Measured | None]:
    """The worst case of a ratio: the highest, or the lowest where more is better."""

    def measure(results: Results) -> Measured | None:
        found = _ratios(results, chosen, over, under, quantity)
        if not found:
            return None
        name = (min if lowest else max)(found, key=lambda case: found[case])
        mean = figures.geometric_mean(found.values())
        note = f"worst of {len(found)}: {name}; geometric mean {mean:.2f}"
        return Measured(found[name], note)

    return measure


def batch(layout: str | None = None, dtype: str | None = None, least: int = MB) -> Choice:
    """Plain batch norm cases of at least so many bytes, in one layout or dtype, or in all."""

    def chosen(row: Row) -> bool:
        return (
            row["norm"] == "batch"
            and not row["options"]
            and row["bytes"] >= least
            and layout in (None, row["layout"])
            and dtype in (None, row["dtype"])
        )

    return chosen


def fused(row: Row) -> bool:
    return bool(row["options"].get("residual"))


def others(norms: Iterable[str]) -> Choice:
    wanted = frozenset(norms)
    return lambda row: row["norm"] in wanted


def startup(name: str) -> Callable[[Results], Measured | None]:
    def measure(results: Results) -> Measured | None:
        found = results["startup"]["seconds"].get(name)
        if found is None:
            return None
        note = f"{found['n']} runs, {found['min']:.2f} to {found['max']:.2f}"
        return Measured(found["median"], note if found["n"] > 1 else "one run")

    return measure


def memory_beyond(peer: str) -> Callable[[Results], Measured | None]:
    """Peak beyond inputs and results of the largest case, as a share of x in per cent."""

    def measure(results: Results) -> Measured | None:
        rows = [row for row in results["memory"] if peer in row["memory"]]
        if not rows:
            return None
        rows.sort(key=lambda row: row["bytes"])
        parts = []
        for row in rows:
            beyond, size = row["memory"][peer]["beyond"], row["bytes"]
            parts.append(f"{beyond / MB:.1f} MB for x of {size / MB:.0f} MB")
        return Measured(100 * beyond / size, ", ".join(parts))

    return measure


def _batch_targets() -> list[Target]:
    group = "Batch norm, forward + backward"
    found = [
        Target(
            group,
            f"geometric mean over eager, channels {layout}, {SHORT[dtype]}",
            goal,
            speedup(batch(layout, dtype)),
        )
        for layout, goal in (("first", 3.0), ("last", 1.5))
        for dtype in ("float32", "bfloat16")
    ]
    found += [
        Target(
            group,
            f"geometric mean over torch.compile, channels {layout}, f32",
            2.0,
            speedup(batch(layout, "float32"), "compile"),
        )
        for layout in ("first", "last")
    ]
    return [
        *found,
        Target(
            group,
            "geometric mean over JAX jit, channels first, f32",
            2.0,
            speedup(batch("first", "float32"), "jax"),
        ),
        Target(
            group,
            "every case of 1 MB and more, over eager",
            1.2,
            worst(batch(), "eager", "normkit", lowest=True),
        ),
    ]


def _memory_speed_targets() -> list[Target]:
    return [
        Target(
            "Batch norm against memory, 25 MB and more",
            f"{quantity} against {against}, channels {layout}, {SHORT[dtype]}",
            1.4,
            worst(batch(layout, dtype, LARGE), "normkit", "memory", quantity),
            at_most=True,
        )
        for quantity, against in (
            ("forward", "a copy of x"),
            ("backward", "a stream (two read, one written)"),
        )
        for layout in ("first", "last")
        for dtype in ("float32", "bfloat16")
    ]


def _other_targets() -> list[Target]:
    norms = {
        "layer": ("layer", "token_layer"),
        "RMS": ("rms",),
        "group": ("group",),
        "instance": ("instance",),
    }
    every = [name for names in norms.values() for name in names]
    group = "Other norms, forward + backward"
    return [
        Target(
            "Fused",
            "batch norm + residual + relu over the unfused eager chain, every case",
            4.0,
            worst(fused, "eager", "normkit", lowest=True),
        ),
        Target(
            group,
            "geometric mean over eager, layer, RMS, group and instance norm",
            1.5,
            speedup(others(every)),
        ),
        *(
            Target(group, f"geometric mean over eager, {name} norm", 1.5, speedup(others(names)))
            for name, names in norms.items()
        ),
        Target(
            group,
            "every case of every norm: our time against eager's",
            1.1,
            worst(lambda _row: True, "normkit", "eager"),
            at_most=True,
        ),
    ]


def _cost_targets() -> list[Target]:
    memory = [
        Target(
            "Memory beyond inputs, output and gradients",
            f"{name}: peak as a share of x ({via})",
            5.0,
            memory_beyond(peer),
            at_most=True,
            unit=" %",
        )
        for peer, name, via in (
            ("normkit", "normkit", "PyTorch layer"),
            ("numpy", "normkit", "NumPy"),
        )
    ]
    seconds = [
        Target("Waiting", text, goal, startup(name), at_most=True, unit=" s")
        for text, goal, name in (
            ("import normkit", 0.6, "import"),
            ("first step of a process, kernels cached, NumPy", 0.5, "warm step, NumPy"),
            ("first step of a process, kernels cached, PyTorch", 0.5, "warm step, PyTorch"),
            ("first step, nothing compiled yet, NumPy", 20.0, "cold step, NumPy"),
            ("first step, nothing compiled yet, PyTorch", 20.0, "cold step, PyTorch"),
        )
    ]
    return memory + seconds


TARGETS: tuple[Target, ...] = (
    *_batch_targets(),
    *_memory_speed_targets(),
    *_other_targets(),
    *LAYER_TARGETS,
    *_cost_targets(),
)


def judge(results: Results) -> list[tuple[Target, Measured | None, str]]:
    """Every target, what was measured for it, and the verdict."""
    judged = []
    for target in TARGETS:
        measured = target.measure(results)
        judged.append((target, measured, target.verdict(measured)))
    return judged
