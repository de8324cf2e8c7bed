"""How the sets of a layout lie in memory, and how the work is cut into tasks.

Nothing here depends on the number of threads: tasks and the order of merging are fixed by shapes
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from normkit.kernels.cpu.geometry import Geometry, Strides
from normkit.layout import Layout

#: Bytes of x that a task should touch: half of a common second-level cache.
TASK_BYTES = 1 << 20
#: Largest block of sets that is read twice by one task: it must survive in the last-level cache.
FUSE_BYTES = 6 << 20
#: Results from this size on go past the cache, since they would push everything else out of it.
STREAM_BYTES = 24 << 20
#: Work below this stays on one thread.
THREAD_BYTES = 2 << 20
#: Elements up to which short rows are taken together.
_FOLDED_RUN = 512
#: Positions up to which a row is too short for loops of its own. Reading whole samples instead
#: pays where there are more samples than positions (measured: up to 2x at 7 x 7, 64 samples).
_SHORT = 49
#: Most tasks that carry a whole gamma gradient each, and the least part of x that these may take.
_CROSSED_TASKS, _CROSSED_SHARE = 32, 4


class Request(NamedTuple):
    """What decides how a call is run; equal requests share one access."""

    layout: Layout
    itemsize: int
    affine: str | None  # "channel", "sample", "element" or None
    x: tuple[int, ...]  # strides in elements
    y: tuple[int, ...]
    dy: tuple[int, ...] | None = None
    residual: tuple[int, ...] | None = None
    overwrites: bool = False


@dataclass(frozen=True)
class Access:
    """A call's way through memory.

    ``lines`` says what the lines' statistics are: ``"cube"``: of (sample, channel); ``"flat"``: of
    (sample set, channel), once for each position; ``"sets"``: of
    one set each; ``"joined"``: of (sample set, channel), where samples follow each other without
    a gap, and a run may hold ``folded`` rows of channels, one after the other.
    """

    path: str  # "along" or "across"
    crossed: bool
    lines: str
    fused: bool
    tasks: int  # of the fused kernels
    half_tasks: int
    shares: int  # partial gradients of a crossed gamma, a task each
    half_shares: int
    threaded: bool
    geometry: Geometry
    folded: int = 1


@dataclass(frozen=True)
class Refusal:
    """Why the compiled kernels do not take a call, and whether a contiguous copy would help."""

    reason: str
    copy_helps: bool = False


@dataclass(frozen=True)
class _Reduced:
    kind: str  # "rows": positions are contiguous; "columns": channels are
    sample: int
    channel: int
    position: int


def reduce_strides(layout: Layout, strides: tuple[int, ...]) -> _Reduced | None:
    """Three strides for the cube, if positions fold into one axis and something is contiguous."""
    positions = [(layout.shape[a], strides[a]) for a in layout.position_axes if layout.shape[a] > 1]
    for (_, outer), (size, inner) in pairwise(positions):
        if outer != size * inner:
            return None
    sample = strides[layout.samples_axis] if layout.n > 1 else 0
    channel = strides[layout.axis] if layout.c > 1 else 1
    position = positions[-1][1] if positions else 0
    if positions and position == 1:
        return _Reduced("rows", sample, channel if layout.c > 1 else 0, 1)
    if channel == 1 and not (positions and layout.c == 1):
        return _Reduced("columns", sample, 1, position)
    return None


@lru_cache(maxsize=1024)
def access_for(request: Request) -> Access | Refusal:
    """Choose the way for a request, or say why there is none."""
    layout = request.layout
    if request.affine == "mixed":
        return Refusal("gamma and beta have different shapes")
    arrays = [request.x, request.y]
    arrays += [s for s in (request.dy, request.residual) if s is not None]
    found = [reduce_strides(layout, strides) for strides in arrays]
    reduced = [r for r in found if r is not None]
    if len(reduced) < len(found) or len({r.kind for r in reduced}) > 1:
        return Refusal("neither the positions nor the channels are contiguous in memory", True)
    whole_sample = layout.set_channels == layout.c and layout.set_samples == 1
    if not layout.whole_positions and not (whole_sample and not layout.all_samples):
        return Refusal("sets of one position hold all channels of one sample in compiled kernels")
    if request.affine == "element":
        return _element_wise(request, reduced)
    if reduced[0].kind == "rows":
        return _rows(request, reduced)
    return _columns(request, reduced)


def _element_wise(request: Request, reduced: list[_Reduced]) -> Access | Refusal:
    """gamma for every element of a sample, as in torch.nn.LayerNorm((C, H, W))."""
    layout = request.layout
    whole = layout.set_channels == layout.c and layout.set_samples == 1 and layout.whole_positions
    if not whole or (layout.all_samples and layout.n > 1):
        return Refusal("an element-wise gamma is compiled for sets that are whole samples")
    dense = all(
        (r.channel == layout.l or layout.c == 1) if r.kind == "rows" else r.position == layout.c
        for r in reduced
    )
    channel_first = layout.axis < min(layout.position_axes)
    channel_last = layout.axis > max(layout.position_axes)
    if not dense or not (channel_first if reduced[0].kind == "rows" else channel_last):
        return Refusal("x does not lie in memory in the order of its element-wise gamma", True)
    strides = [Strides(r.sample, 0) for r in reduced]
    return _assemble(
        request, "along", True, "sets", (layout.n, 1, layout.c * layout.l), (1, 1), (0, 0), strides
    )


def _gamma_strides(request: Request) -> tuple[int, int]:
    return {None: (0, 0), "channel": (0, 1), "sample": (request.layout.c, 1)}[request.affine]


def _rows(request: Request, reduced: list[_Reduced]) -> Access:
    layout = request.layout
    strides = [Strides(r.sample, r.channel) for r in reduced]
    shape = (layout.n, layout.c, layout.l)
    gamma = _gamma_strides(request)
    if layout.whole_positions:
        if _is_flat(request, reduced):
            flat = _flat(request, reduced)
            if flat.fused:
                return flat
        sets = (layout.set_samples, layout.set_channels)
        return _assemble(request, "along", False, "cube", shape, sets, gamma, strides)
    crossed = request.affine is not None
    return _assemble(request, "across", crossed, "sets", shape, (1, 1), gamma, strides)


def _is_flat(request: Request, reduced: list[_Reduced]) -> bool:
    """Whether many samples of short, adjacent rows are better read sample by sample."""
    layout = request.layout
    return (
        5 * layout.l <= min(5 * _SHORT, 4 * layout.set_samples)
        and layout.even
        and request.affine != "sample"
        and all(r.channel == layout.l for r in reduced)
    )


def _flat(request: Request, reduced: list[_Reduced]) -> Access:
    """A sample as one run and the samples as its rows: sets lie across, a plane of columns each."""
    layout = request.layout
    strides = [Strides(layout.set_samples * r.sample, r.sample) for r in reduced]
    shape = (layout.sample_sets, layout.set_samples, layout.c * layout.l)
    sets = (1, layout.set_channels * layout.l)
    gamma = _gamma_strides(request)
    return _assemble(request, "across", False, "flat", shape, sets, gamma, strides, layout.l)


def _columns(request: Request, reduced: list[_Reduced]) -> Access:
    layout = request.layout
    one_sample = layout.set_samples == 1 and not (layout.all_samples and layout.n > 1)
    tokens = layout.set_channels == layout.c and one_sample
    tokens = tokens and (not layout.whole_positions or layout.l == 1)
    if layout.l == 1:
        seamless = True
        reduced = [_Reduced(r.kind, r.sample, 1, r.sample) for r in reduced]
    else:
        seamless = layout.n == 1 or all(r.sample == layout.l * r.position for r in reduced)
    joined = seamless and request.affine != "sample"
    apart = [Strides(r.sample, r.position) for r in reduced]
    if tokens:
        crossed = request.affine is not None
        gamma = (layout.c if request.affine == "sample" else 0, 0)
        if joined:
            strides = [Strides(0, r.position) for r in reduced]
            shape = (1, layout.n * layout.l, layout.c)
            return _assemble(request, "along", crossed, "sets", shape, (1, 1), gamma, strides)
        shape = (layout.n, layout.l, layout.c)
        return _assemble(request, "along", crossed, "sets", shape, (1, 1), gamma, apart)
    gamma = _gamma_strides(request)
    if joined and layout.even:
        rows = layout.set_samples * layout.l
        strides = [Strides(rows * r.position, r.position) for r in reduced]
        shape = (layout.sample_sets, rows, layout.c)
        sets = (1, layout.set_channels)
        access = _assemble(request, "across", False, "joined", shape, sets, gamma, strides)
        return access if access.fused else _folded(request, access, strides)
    shape = (layout.n, layout.l, layout.c)
    sets = (layout.set_samples, layout.set_channels)
    return _assemble(request, "across", False, "cube", shape, sets, gamma, apart)


def _folded(request: Request, access: Access, strides: list[Strides]) -> Access:
    """Take several short rows of channels as one run: a row of 64 channels is over too soon."""
    _, rows, run = access.geometry.outer, access.geometry.rows, access.geometry.run
    fold = 1
    while rows % (2 * fold) == 0 and run * fold < _FOLDED_RUN:
        fold *= 2
    if fold == 1 or any(s.row != run for s in strides):
        return access
    shape = (access.geometry.outer, rows // fold, run * fold)
    wide = [Strides(s.outer, s.row * fold) for s in strides]
    gamma = (0, access.geometry.gamma_line)
    return replace(
        _assemble(request, "across", False, "joined", shape, (1, 1), gamma, wide),
        fused=False, folded=fold,
    )  # fmt: skip


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _assemble(
    request: Request,
    path: str,
    crossed: bool,
    lines: str,
    shape: tuple[int, int, int],
    sets: tuple[int, int],
    gamma: tuple[int, int],
    strides: list[Strides],
    gamma_span: int = 1,
) -> Access:
    """Cut the work into tasks."""
    outer, rows, run = shape
    total = outer * rows * run * request.itemsize
    threaded = total >= THREAD_BYTES
    task_bytes = min(total // 8, TASK_BYTES) if threaded else TASK_BYTES
    along = path == "along"
    line_sets = (rows if along else run) // sets[1]
    outer_sets = _ceil(outer, sets[0])
    set_bytes = sets[0] * sets[1] * (run if along else rows) * request.itemsize
    wide = _between(1, task_bytes // max(set_bytes, 1), line_sets)
    if not along:
        # Rows of a column block should be long enough for the memory and for the loops.
        least = _ceil(512 // request.itemsize, sets[1])
        wide = min(_ceil(wide, least) * least, line_sets)
    block = 1
    if wide == line_sets:
        block = _between(1, task_bytes // max(set_bytes * line_sets, 1), outer_sets)
    most = total // max(_CROSSED_SHARE * 16 * run, 1)  # float64 gradients of gamma and beta
    most = _between(2, most, _CROSSED_TASKS)
    if crossed and along:
        if gamma[0]:
            block = 1
        elif outer_sets == 1:
            wide = max(wide, _ceil(line_sets, most))
        else:
            wide, block = line_sets, max(block, _ceil(outer_sets, most))
    columns = _ceil(line_sets, wide)
    tasks = _ceil(outer_sets, block) * columns
    # A task sweeps one row of sets after the other, so only that much must stay in the cache.
    fused = set_bytes * wide <= FUSE_BYTES and (tasks >= 4 or not threaded)
    if along and lines == "sets":
        fused = True  # a set is one run
    tile = _between(
        1, TASK_BYTES // max(run * request.itemsize, 1), outer * rows if along else rows
    )
    if crossed and along:
        tile = rows if gamma[0] else max(tile, _ceil(outer * rows, most))
    half_tasks = _ceil(outer * rows, tile) if along else outer * _ceil(rows, tile)
    x, y, *rest = strides
    dy = rest.pop(0) if request.dy is not None else Strides()
    residual = rest.pop(0) if request.residual is not None else Strides()
    streamed = request.overwrites or total >= STREAM_BYTES
    geometry = Geometry(
        outer,
        rows,
        run,
        *sets,
        block,
        wide,
        *gamma,
        gamma_span,
        int(streamed),
        tile,
        x,
        y,
        dy,
        residual,
    )
    shares = (tasks if along else outer * columns) if crossed else 0
    half_shares = (half_tasks if along else outer) if crossed else 0
    return Access(
        path, crossed, lines, fused, tasks, half_tasks, shares, half_shares,
        threaded, geometry,
    )  # fmt: skip
