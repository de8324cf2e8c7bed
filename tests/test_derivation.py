"""The numbers on the page docs/derivation.md are what the code beside them prints."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "derivation.md"


def test_the_examples_on_the_page_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert tried > 40
    assert failed == 0


def test_the_page_names_every_step_of_a_trace() -> None:
    text = PAGE.read_text(encoding="utf-8")
    steps = ["mean", "centered", "squared", "var", "std", "inverse", "normalized", "scaled", "out"]
    for number, name in enumerate(steps, start=1):
        assert f"| {number} | `{name}` |" in text  # in the table of the forward pass
        assert f"**{number}. `{name}`**" in text  # and in the walk back
