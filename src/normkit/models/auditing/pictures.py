"""What is known of one norm, as plots and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from normkit.models.auditing.findings import LayerRecord
from normkit.report import Bars, Curve, Dots, Plot, Plots, Section, Table, Text
from normkit.words import counted

__all__ = ["number", "pictures"]

MOST = 512  # channels that are all drawn; of more, a sample of as many
ALONG = 200  # points of a curve, one a pixel, where there are more channels than that
APART = 128  # of them, those that lie furthest apart, where there are more channels
ROWS = 5  # channels in the table of those
KEEPERS = ("batch", "instance")  # kinds with running statistics


def number(count: int | None, what: str) -> str:
    """A count in words; "?" for None."""
    return f"? {what}s" if count is None else counted(count, what)


def pictures(layer: LayerRecord) -> list[Section]:
    """Running against fresh statistics, the distribution of the output, γ, and values in tables."""
    plots = [*_statistics(layer), *_distribution(layer), *_spectrum(layer)]
    sections: list[Section] = [Plots("", plots)] if plots else []
    sections.append(_values(layer))
    if _compared(layer):
        sections.append(_furthest(layer))
    missing = _missing(layer)
    return [*sections, Text("", [" ".join(missing)])] if missing else sections


def _missing(layer: LayerRecord) -> list[str]:
    words = []
    if not layer.fresh_mean and not layer.counts:
        words.append(
            "Without data there are no fresh statistics and no distribution of the output."
            if not layer.samples
            else "What went through it could not be told apart by channel."
        )
    elif not layer.counts:
        words.append("The distribution of the output was not measured.")
    elif not layer.fresh_mean:
        words.append("Its input could not be told apart by channel: no fresh statistics.")
    if not layer.running_var:
        keeps = layer.kind in KEEPERS
        words.append(
            "It has no running statistics by channel to compare with."
            if keeps
            else f"A {layer.kind} norm keeps no running statistics."
            if layer.kind != "other"
            else "It keeps no running statistics."
        )
    if not layer.gamma:
        words.append("It has no γ.")
    return words


# --- plots ----------------------------------------------------------------------------------------


def _compared(layer: LayerRecord) -> bool:
    rows = (layer.running_mean, layer.running_var, layer.fresh_mean, layer.fresh_var)
    return bool(rows[0]) and len({len(row) for row in rows}) == 1


def _statistics(layer: LayerRecord) -> list[Plot]:
    if not _compared(layer):
        return []
    kept, note = _sample(layer)
    mean = Dots([layer.running_mean[i] for i in kept], [layer.fresh_mean[i] for i in kept])
    var = Dots([layer.running_var[i] for i in kept], [layer.fresh_var[i] for i in kept])
    line = "A dot a channel; on the dashed line the two agree."
    words = f"{line} {note}".strip()
    return [
        Plot("Mean, running and fresh", "running mean", "fresh mean", mean,
             diagonal=True, note=words),
        Plot("Variance, running and fresh", "running variance", "fresh variance", var,
             log_x=True, log_y=True, diagonal=True, note=words),
    ]  # fmt: skip


def _sample(layer: LayerRecord) -> tuple[list[int], str]:
    """The channels to draw, and what to say of those that are not."""
    count = len(layer.running_mean)
    if count <= MOST:
        return list(range(count)), ""
    ranked = _ranked(layer)
    rest = sorted(ranked[APART:])
    step = len(rest) / (MOST - APART)
    even = [rest[int(i * step)] for i in range(MOST - APART)]
    note = (
        f"{MOST} of {count:,} channels are drawn: the {APART} furthest from it, and of the others "
        "an even sample."
    )
    return ranked[:APART] + even, note


def _ranked(layer: LayerRecord) -> list[int]:
    """Channels, those first whose fresh statistics lie furthest from the running ones."""
    gap = _divergence(layer)
    return sorted(range(len(gap)), key=lambda i: -gap[i])


def _divergence(layer: LayerRecord) -> list[float]:
    """KL of the fresh normal distribution from the running one, eps in both as in the norm."""
    eps = layer.eps or 0.0
    rows = zip(
        layer.running_mean, layer.running_var, layer.fresh_mean, layer.fresh_var, strict=True
    )
    return [_kl(m0, v0 + eps, m1, v1 + eps) for m0, v0, m1, v1 in rows]


def _kl(mean: float, var: float, new_mean: float, new_var: float) -> float:
    if not all(map(math.isfinite, (mean, var, new_mean, new_var))):
        return math.inf
    if var <= 0 or new_var <= 0:
        return 0.0 if (mean, var) == (new_mean, new_var) else math.inf
    ratio, shift = new_var / var, new_mean - mean
    if not 0 < ratio < math.inf:
        return math.inf
    return 0.5 * (ratio - 1 - math.log(ratio) + shift / var * shift)


def _distribution(layer: LayerRecord) -> list[Plot]:
    """The histogram, without the empty bins at its ends."""
    full = [i for i, count in enumerate(layer.counts) if count]
    if not full:
        return []
    first, last = full[0], full[-1] + 1
    edges, counts = layer.edges[first : last + 1], layer.counts[first:last]
    total = sum(counts)
    density = [
        count / total / (right - left)
        for count, left, right in zip(counts, edges, edges[1:], strict=False)
    ]
    return [
        Plot("Distribution of the output", "output", "density", Bars(edges, density),
             note=f"{number(total, 'value')} of all channels.")
    ]  # fmt: skip


def _spectrum(layer: LayerRecord) -> list[Plot]:
    if not layer.gamma:
        return []
    sizes = sorted((abs(value) for value in layer.gamma if not math.isnan(value)), reverse=True)
    lost = len(layer.gamma) - len(sizes)
    ranks = list(range(len(sizes)))
    note = "From the largest to the smallest."
    if len(sizes) > MOST:
        ranks = [round(i * (len(sizes) - 1) / (ALONG - 1)) for i in range(ALONG)]
        note += f" {ALONG} of {len(sizes):,}, evenly along the curve, its ends among them."
    note += f" NaN: {lost}." if lost else ""
    marks = Curve([rank + 1 for rank in ranks], [sizes[rank] for rank in ranks])
    if len(sizes) == 1:
        marks_of_one = Dots(marks.x, marks.y)
        return [Plot("Spectrum of γ", "rank", "|γ|", marks_of_one, log_y=True, note=note)]
    return [Plot("Spectrum of γ", "rank", "|γ|", marks, log_y=True, note=note)]


# --- tables ---------------------------------------------------------------------------------------


def _values(layer: LayerRecord) -> Table:
    rows = {
        "γ": layer.gamma,
        "β": layer.beta,
        "running mean": layer.running_mean,
        "fresh mean": layer.fresh_mean,
        "running variance": layer.running_var,
        "fresh variance": layer.fresh_var,
    }
    note = [f"eps {layer.eps:g}." if layer.eps is not None else ""]
    if layer.elements:
        note.append(
            f"The fresh statistics rest on {number(layer.elements, 'element')} a channel, of "
            f"{number(layer.samples, 'sample')}."
        )
    columns: tuple[str, ...] = ("by channel", "least", "median", "largest", "not finite")
    cells = [(name, *_summary(values)) for name, values in rows.items() if values]
    if all(row[-1] == "0" for row in cells):
        columns, cells = columns[:-1], [row[:-1] for row in cells]
    return Table("", columns, cells, frozenset(columns[1:]), " ".join(filter(None, note)))


def _summary(values: Sequence[float]) -> tuple[str, ...]:
    """Least, median and largest of the finite ones, and how many are not."""
    kept = [value for value in values if math.isfinite(value)]
    known = [_short(of(kept)) for of in (min, median, max)] if kept else ["–"] * 3
    return (*known, str(len(values) - len(kept)))


def _furthest(layer: LayerRecord) -> Table:
    gap = _divergence(layer)
    columns = ("channel", "running mean", "fresh mean", "running variance", "fresh variance", "KL")
    rows = [
        (str(i), _short(layer.running_mean[i]), _short(layer.fresh_mean[i]),
         _short(layer.running_var[i]), _short(layer.fresh_var[i]), _short(gap[i]))
        for i in _ranked(layer)[:ROWS]
    ]  # fmt: skip
    note = "KL: how far the fresh normal distribution is from the running one, eps in both."
    return Table("Channels that lie furthest apart", columns, rows, frozenset(columns), note)


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
