"""`normkit lab`: published claims about normalization, tried on this machine."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.cli import options
from normkit.cli.printing import note, print_json, print_table

if TYPE_CHECKING:
    from normkit.lab.session import Session
    from normkit.lab.verdicts import Judged, Outcome

NAME = "lab"
HELP = "Published claims about normalization as experiments: list them, run them, show the report."
DEFAULT_OUT = Path("out/lab")

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

LIST = options.examples(("normkit lab list", "the claims, by topic"))
RUN = options.examples(
    ("normkit lab run faster learning_rates", "two claims, three seeds each"),
    ("normkit lab run --quick --seeds 1", "a first look at all of them, in two minutes"),
    ("normkit lab run --data images/ --out mine", "on your own images, a folder for each class"),
    ("normkit lab run --cluster tcp://10.0.0.1:8786", "on the workers of a Dask cluster"),
)
REPORT = options.examples(("normkit lab report out/lab --open", "the page of a run, once more"))

Show = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]


@app.command("list", epilog=LIST)
def list_claims(as_json: options.Json = False, debug: options.Debug = False) -> None:  # noqa: ARG001
    """Show what there is to be tried."""
    from normkit.lab.claims import all_claims, topic_of

    claims = all_claims()
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "topic": topic_of(one.name),
                    "title": one.title,
                    "sentence": one.sentence,
                    "source": one.source,
                    "criteria": {n.name: n.bound for n in one.criteria},
                    "seconds": one.seconds,
                }
                for one in claims
            ]
        )
        return
    rows = [
        (topic_of(one.name), one.name, one.title, "verdict" if one.criteria else "report")
        for one in claims
    ]
    print_table(("topic", "claim", "what it says", "gives"), rows)


@app.command("run", epilog=RUN)
def run_claims(
    claims: Annotated[
        list[str] | None,
        typer.Argument(help="Names of claims; all of them without.", metavar="[CLAIM]..."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: fewer steps, and no verdict.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Of each claim; three give a verdict.")] = 3,
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, cifar10, or a folder with a folder of images for each class."
        ),
    ] = "digits",
    jobs: Annotated[
        int | None, typer.Option(help="Processes; as many as there are cores by default.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler's address, or local:2 for two workers here.", metavar="ADDRESS"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where results are kept.", metavar="FOLDER")
    ] = DEFAULT_OUT,
    show: Show = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Run experiments; what is done already in the folder is not done again."""
    from normkit.lab.session import run

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    session = run(
        claims or (), out, seeds=seeds, data=data, quick=quick,
        jobs=(cores or 1) if jobs is None else jobs, cluster=cluster,
    )  # fmt: skip
    _show(session, as_json, show)
    if session.problems:
        raise typer.Exit(2)


@app.command("report", epilog=REPORT, no_args_is_help=True)
def write_report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.", metavar="FOLDER")],
    data: Annotated[
        str | None, typer.Option(help="Which data's results; those measured last by default.")
    ] = None,
    quick: Annotated[
        bool | None, typer.Option("--quick/--full", help="Which results, where there are both.")
    ] = None,
    show: Show = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001
) -> None:
    """Write the page of a run again; nothing is measured."""
    from normkit.lab.session import report

    _show(report(folder, data=data, quick=quick), as_json, show)


def _show(session: Session, as_json: bool, show: bool) -> None:
    if as_json:
        print_json([_values(one) for one in session.judged])
    else:
        rows = [
            (one.claim.name, outcome.number.words, outcome.number.paper or "-", outcome.shown,
             outcome.number.bound, one.words)
            for one in session.judged
            for outcome in _first(one)
        ]  # fmt: skip
        print_table(("claim", "number", "paper", "here", "criterion", "verdict"), rows)
    for line in session.damaged:
        note(f"damaged, left out: {line}")
    for words in session.left_out:
        note(f"also in the results: {words}")
    for task, problem in session.problems.items():
        note(f"failed: {task.claim}, seed {task.seed}: {problem}")
    note(f"the page: {session.page.resolve()}")
    if show:
        webbrowser.open(session.page.resolve().as_uri())


def _first(judged: Judged) -> tuple[Outcome, ...]:
    """The numbers that the verdict rests on, or the first where there is none."""
    tests = tuple(one for one in judged.outcomes if one.number.is_criterion)
    return tests or judged.outcomes[:1]


def _values(judged: Judged) -> dict[str, object]:
    return {
        "claim": judged.claim.name,
        "status": judged.status,
        "seeds": [record.seed for record in judged.records],
        "held": judged.held,
        "numbers": {
            one.number.name: {
                "words": one.number.words,
                "paper": one.number.paper,
                "criterion": one.number.bound,
                "median": one.median,
                "values": list(one.values),
            }
            for one in judged.outcomes
        },
    }
