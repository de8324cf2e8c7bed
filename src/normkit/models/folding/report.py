"""What folding did and what it left: as lines for people, and as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from normkit.models.folding.planning import Plan
from normkit.plain import plain
from normkit.words import counted, listed

__all__ = ["FoldReport", "Folded", "Verification", "report_of"]


_REASONS = 12  # lines of them that people read; FoldReport.refused has them all


@dataclass(frozen=True)
class Folded:
    """One norm that was folded.

    Args:
        norm: its name.
        kind: of its NormSite.
        into: names of the layers that took it.
        direction: where they are, seen from the norm: ``"before"`` or ``"after"``.
        through: what stands between and stays.
        left: what is left at the norm's place, in words; "" for nothing.
    """

    norm: str
    kind: str
    into: tuple[str, ...]
    direction: str
    through: tuple[str, ...] = ()
    left: str = ""


@dataclass(frozen=True)
class Verification:
    """The comparison of a model with its folded self on one input.

    Args:
        difference: the worst relative difference of outputs where both were computed in
            ``dtype``; None where nothing was compared.
        dtype: ``"float64"`` wherever the model runs in it.
        own_difference, own_dtype: the same for the model as it is handed out.
        input: what they were given, in words.
        seconds_before, seconds_after: of a forward, undisturbed; None where not measured.
        seconds_differ: whether by more than chance.
        why_not: why nothing was compared; "" where it was.
    """

    difference: float | None = None
    dtype: str = "float64"
    own_difference: float | None = None
    own_dtype: str = ""
    input: str = ""
    seconds_before: float | None = None
    seconds_after: float | None = None
    seconds_differ: bool = False
    why_not: str = ""

    def timed(self, before: float, after: float, differ: bool) -> Verification:
        """With what a forward of each takes."""
        return replace(self, seconds_before=before, seconds_after=after, seconds_differ=differ)

    @property
    def speedup(self) -> float | None:
        """How many times faster the folded model is."""
        if not self.seconds_before or not self.seconds_after:
            return None
        return self.seconds_before / self.seconds_after


@dataclass(frozen=True)
class FoldReport:
    """The result of folding, or of planning to.

    Args:
        folded: the norms that were taken into layers, in the order in which they were.
        refused: for each other norm, why it stays.
        parameters_before, parameters_after: of the model.
        verification: what was compared.
    """

    folded: tuple[Folded, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    parameters_before: int = 0
    parameters_after: int = 0
    verification: Verification = Verification(why_not="nothing was folded yet")

    def lines(self) -> list[str]:
        """The report for people, a line a thing."""
        return [self._summary(), *self._what_stays(), *self._comparison()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; no NaN or infinity among them."""
        values = asdict(self)
        values["refused"] = [{"norm": norm, "reason": reason} for norm, reason in self.refused]
        values["verification"]["speedup"] = self.verification.speedup
        return dict(plain(values))

    def _summary(self) -> str:
        layers = {name for fold in self.folded for name in fold.into}
        saved = self.parameters_before - self.parameters_after
        share = saved / self.parameters_before if self.parameters_before else 0.0
        norms = len(self.folded) + len(self.refused)
        if not norms:
            return "fold: the model has no norms"
        if not self.folded:
            return f"fold: none of {counted(norms, 'norm')} folded"
        return (
            f"fold: {len(self.folded)} of {counted(norms, 'norm')} folded into "
            f"{counted(len(layers), 'layer')}; {saved:,} parameters fewer ({share:.1%})"
        )

    def _what_stays(self) -> list[str]:
        left: dict[str, list[str]] = {}
        for fold in self.folded:
            if fold.left:
                left.setdefault(fold.left, []).append(fold.norm)
        reasons: dict[str, list[str]] = {}
        for norm, reason in self.refused:
            reasons.setdefault(reason, []).append(norm or "the model itself")
        shown = list(reasons.items())
        hidden = sum(len(names) for _, names in shown[_REASONS:])
        return [
            *(f"fold: left of {listed(names, 4)}: {what}" for what, names in left.items()),
            *(f"fold: not {listed(names, 4)}: {why}" for why, names in shown[:_REASONS]),
            *([f"fold: not {counted(hidden, 'other norm')}, for reasons alike"] if hidden else []),
        ]

    def _comparison(self) -> list[str]:
        found = self.verification
        if found.difference is None:
            return [f"fold: not verified: {found.why_not}"] if self.folded else []
        own = ""
        if found.own_difference is not None and found.own_dtype != found.dtype:
            own = f", {found.own_difference:.1e} in {found.own_dtype}"
        verified = (
            f"fold: verified on {found.input}: outputs differ by at most "
            f"{found.difference:.1e} of the largest in {found.dtype}{own}"
        )
        lines = [verified]
        if found.speedup is not None and found.seconds_differ:
            assert found.seconds_before is not None
            assert found.seconds_after is not None
            lines.append(
                f"fold: {found.speedup:.2f} times as fast on it: "
                f"{_time(found.seconds_before)} before, {_time(found.seconds_after)} after"
            )
        return lines


def report_of(
    plan: Plan,
    parameters: tuple[int, int],
    verification: Verification | None = None,
    left: dict[str, str] | None = None,
) -> FoldReport:
    """The report on a plan.

    Args:
        parameters: of the model, before and after.
        left: by the norm's name what is left in its place, where that differs from the plan.
    """
    folded = []
    for fold in plan.folds:
        stays = fold.tail if fold.whole else "the normalization without gamma and beta"
        stays = (left or {}).get(fold.site.name, stays)
        into = tuple(node.target or node.name for node in fold.into)
        through = tuple(node.target or node.function or node.name for node in fold.through)
        kind = fold.site.kind
        folded.append(Folded(fold.site.name, kind, into, fold.direction, through, stays))
    refused = tuple(plan.refused.items())
    return FoldReport(
        tuple(folded),
        refused,
        *parameters,
        verification or Verification(why_not="nothing was folded yet"),
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
