"""The claims, one a file, and the order in which they are told."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from functools import cache

from normkit.errors import OptionError
from normkit.lab.claim import Claim

__all__ = ["TOPICS", "all_claims", "find", "topic_of"]

#: By topic, the modules of this package; each has its ``CLAIM``.
TOPICS: dict[str, tuple[str, ...]] = {
    "Learning with batch norm": (
        "faster",
        "learning_rates",
        "saturating",
        "stable_inputs",
        "initial_scale",
        "inception_columns",
        "less_regularization",
        "dropout_and_decay",
        "before_or_after",
    ),
    "Why it works": (
        "noise_after_norm",
        "gradient_shift",
        "smoothness",
        "shift_or_smoothness",
        "landscape",
        "regularizing_noise",
        "only_gamma_beta",
    ),
    "The batch, and norms that need none": (
        "batch_size_curve",
        "small_batches",
        "renorm",
        "ghost",
        "layer_norm",
        "filter_response",
        "family_in_convnets",
        "batch_composition",
    ),
    "Training against inference": (
        "precise_statistics",
        "dropout_shift",
        "adaptation",
        "adaptation_batches",
        "domains",
        "inference_weighting",
    ),
    "Weights, scale and depth": (
        "weight_decay",
        "weight_norm_start",
        "contrast",
        "explosion",
        "residual_branches",
    ),
    "Without batch norm, or with less memory": (
        "fixup",
        "scaled_weights",
        "dynamic_tanh",
        "in_place",
    ),
    "Exact identities": (
        "gradient_sums",
        "gradient_norm",
        "weight_scale",
        "undo",
        "bounded_outputs",
        "growing_weights",
        "redundant_bias",
        "invariances",
        "limits_of_group_norm",
        "merged_moments",
        "renorm_limits",
        "ghost_limits",
        "running_averages",
        "folding",
        "weight_norm_gradient",
        "precise_limits",
    ),
}


def all_claims() -> list[Claim]:
    """All of them, in order."""
    return [_load(name) for names in TOPICS.values() for name in names]


def topic_of(name: str) -> str:
    """The heading that a claim stands under."""
    return next(topic for topic, names in TOPICS.items() if name in names)


def find(wanted: Sequence[str]) -> list[Claim]:
    """The claims of these names, or all of them where none is named; each once.

    Raises:
        OptionError: there is no such claim; the nearest names are suggested.
    """
    known = [name for names in TOPICS.values() for name in names]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise OptionError(
                "There is no such claim",
                received=repr(name),
                expected=f"perhaps {', '.join(near)}" if near else "one of the claims",
                remedy="normkit lab list shows them all.",
            )
    return [_load(name) for name in known if not wanted or name in wanted]


@cache
def _load(name: str) -> Claim:
    claim: Claim = importlib.import_module(f"normkit.lab.claims.{name}").CLAIM
    if claim.name != name:
        raise ValueError(f"the claim in {name}.py calls itself {claim.name!r}")
    return claim
