"""README's examples, run one after the other as a reader would paste them; outputs compared."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```\n(.*?)```", re.DOTALL)


def test_the_examples_print_what_the_readme_says():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = EXAMPLE.findall(README.read_text())
    assert len(found) >= 3
    mark = "print('-- next --')\n"
    program = mark.join(code for code, _ in found)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    same = doctest.OutputChecker().check_output
    for (_, printed), got in zip(found, run.stdout.split("-- next --\n"), strict=True):
        assert same(printed, got, doctest.ELLIPSIS), f"README says\n{printed}\nnot\n{got}"


def test_the_table_names_every_norm():
    import normkit as nk
    from normkit import norms

    text = README.read_text()
    for name in norms.__all__:
        assert f"{name}(" in text, name
        assert hasattr(nk, name)
