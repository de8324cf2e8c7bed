"""The command: its arguments, the runs, the table, the journey, the page."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from normkit.demo.networks import Init, Network
    from normkit.demo.training import Result, Run
    from normkit.lab.data import Data

DEFAULT_OUT = Path("out/demo.html")
MOST_SEED = 2**32 - 4  # scikit-learn's limit, less the seeds that follow the first


@dataclass(frozen=True)
class Trial:
    network: Network
    steps: int
    rates: tuple[float, float]


TRIALS = (
    Trial("dense", 600, (0.02, 1.0)),
    Trial("convolutional", 200, (0.01, 0.2)),
)
"""Rates at which the two ways differ; the page says what happens at other rates."""

SEEDS = 3
QUICK_SEEDS = 1
QUICK_SHARE = 5  # of the steps, one in so many


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _demo(options)
    except KeyboardInterrupt:
        print("\ninterrupted; no page was written", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("normkit"):
            raise
        print(
            f"normkit.demo: error: {error.name} is not installed; pip install 'normkit[demo]'",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"normkit.demo: error: the page could not be written: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="normkit.demo",
        description=(
            "Two small networks learn handwritten digits with batch norm and without. One of them "
            "is then audited, spoiled, found out, recalibrated and folded, and has to agree. "
            "In the end, five claims of papers about batch norm are tried quickly."
        ),
    )
    parser.add_argument("--quick", action="store_true", help="one seed and a fifth of the steps")
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the split, the weights and the batches (default: 0)",
    )
    parser.add_argument(
        "--init",
        choices=("torch", "he"),
        default="torch",
        help="initial weights: PyTorch's default, or He's",
    )
    parser.add_argument(
        "--out",
        type=_file,
        default=DEFAULT_OUT,
        metavar="FILE",
        help=f"the page (default: {DEFAULT_OUT}, which is replaced)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON only")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed <= MOST_SEED:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {MOST_SEED}, got {text!r}"
        )
    return seed


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.name:
        raise argparse.ArgumentTypeError(f"expected a file to write, got the folder {text!r}")
    if path.suffix.lower() not in {".html", ".htm"}:
        raise argparse.ArgumentTypeError(f"expected a name that ends in .html, got {text!r}")
    return path


def _demo(options: argparse.Namespace) -> int:
    from normkit.plain import plain
    from normkit.writing import check_output, write_whole

    out, init, seed = options.out, options.init, options.seed
    if out == DEFAULT_OUT:  # a folder that the user names is there, or a mistake
        out.parent.mkdir(exist_ok=True)
    # found out before the work rather than after
    check_output(out, overwrite=options.overwrite or out == DEFAULT_OUT)
    # Imported late: --help and wrong arguments are answered at once.
    from normkit.demo import journey, lab, page, summary
    from normkit.torch import use_native_up_to

    seeds = range(seed, seed + (QUICK_SEEDS if options.quick else SEEDS))
    data, runs = _data(seeds), _runs(seeds, options.quick, init)
    traveller = journey.wanted(seed, init)
    results = _train(list(dict.fromkeys([*runs, traveller])), data)
    groups = summary.grouped(results[run] for run in runs)
    found = summary.findings(groups)
    holds, checked = summary.agreement(results.values())
    say: Callable[[str], None] = _silent if options.json else _say
    say("\n".join([summary.table(groups), "", *found, checked]))
    say(f"\nThe journey of the {traveller.network} network, seed {seed}:")
    done = journey.travel(results[traveller], data[seed], say)
    say("\nA quick look into the lab (normkit lab has the rest):")
    use_native_up_to(None)  # its networks are as small as these, and time counts more
    visit = lab.visit(seeds, say)
    write_whole(out, page.render(groups, found, checked, init, done, visit))
    say(f"\nThe page: {out.resolve()}")
    if options.json:
        values = {
            "training": [group.to_dict() for group in groups],
            "findings": [*found, checked],
            "journey": done.to_dict(),
            "lab": visit.to_dict(),
            "page": str(out.resolve()),
        }
        print(json.dumps(plain(values), indent=2))
    if options.open:
        webbrowser.open(out.resolve().as_uri())
    return 0 if holds and done.holds and not visit.problems else 1


def _silent(words: str) -> None:
    pass


def _say(words: str) -> None:
    print(words, flush=True)


def _data(seeds: Sequence[int]) -> dict[int, Data]:
    from normkit.lab.data.loading import digits

    return {one: digits(one) for one in seeds}


def _runs(seeds: Sequence[int], quick: bool, init: Init) -> list[Run]:
    from normkit.demo.training import Run

    share = QUICK_SHARE if quick else 1
    return [
        Run(trial.network, batch_norm, rate, trial.steps // share, one, init)
        for trial in TRIALS
        for rate in trial.rates
        for batch_norm in (True, False)
        for one in seeds
    ]


def _train(runs: Sequence[Run], data: dict[int, Data]) -> dict[Run, Result]:
    import torch

    from normkit.demo.progress import progress
    from normkit.demo.training import prepare, train
    from normkit.torch import use_native_up_to

    use_native_up_to(0)  # every layer through normkit's kernels, also where PyTorch's are as quick
    # Networks so small gain little from a second thread, and lose much where other programs
    # run (380 s, not 47). The sums, and so the figures, are then the same for any number too.
    torch.set_num_threads(1)
    prepare(next(iter(data.values())))
    results = {}
    with progress(len(runs)) as bar:
        for run in runs:
            bar.started(run)
            results[run] = train(run, data[run.seed], bar.measured)
            bar.finished(results[run])
    return results
