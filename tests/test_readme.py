"""README's examples, run one after the other as a reader would paste them; outputs compared."""

from __future__ import annotations

from pathlib import Path

from pages import carry_out

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_print_what_the_readme_says(tmp_path):
    assert carry_out(README.read_text(), tmp_path) >= 3


def test_the_table_names_every_norm():
    import normkit as nk
    from normkit import norms

    text = README.read_text()
    for name in norms.__all__:
        assert f"{name}(" in text, name
        assert hasattr(nk, name)
