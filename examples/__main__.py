"""Make docs/gallery.md: python -m examples runs every example and keeps its output and picture."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from normkit.writing import write_whole

__all__ = ["EXAMPLES", "PAGE", "PICTURES", "Example", "Ran", "page"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
OPENING = """# Gallery

Short programs to copy, each ending in a number or a picture. `python examples/NAME.py` runs one as
it stands here, `python examples/NAME.py FILE` keeps its picture too, and `python -m examples` makes
this page. Those that draw import `examples/drawing.py`, which goes with them; those in Keras run on
the backend that the environment variable `KERAS_BACKEND` names. The test suite runs all of them
and holds each to what its text says. Figures of trained networks differ a little from machine to
machine.
"""


@dataclass(frozen=True)
class Example:
    """A program of this folder; its docstring is its title and its text."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / "examples" / f"{self.name}.py"

    @property
    def code(self) -> str:
        return self.path.read_text()

    @property
    def title(self) -> str:
        return self._words[0].rstrip(".")

    @property
    def text(self) -> str:
        return self._words[1].strip()

    @property
    def _words(self) -> tuple[str, str]:
        words = ast.get_docstring(ast.parse(self.code)) or ""
        title, _, text = words.partition("\n")
        if not (title and text):
            raise ValueError(f"{self.path.name} has no title or no text in its docstring")
        return title, text

    def run(self, timeout: float = 600, **environment: str) -> Ran:
        """Run it in a process of its own, as a user does.

        Keras takes the backend that the user has chosen, and PyTorch's where none is.

        Raises:
            RuntimeError: it failed; with what it wrote.
        """
        variables = {"KERAS_BACKEND": "torch", **os.environ, "OMP_NUM_THREADS": "1", **environment}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "picture"
            done = subprocess.run(
                [sys.executable, str(self.path), str(file)],
                env=variables, capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{self.path.name} failed\n{done.stdout}\n{done.stderr}")
            return Ran(self, done.stdout, file.read_bytes() if file.exists() else b"", done.stderr)


@dataclass(frozen=True)
class Ran:
    """What came of an example: what it printed, its picture if it draws one, and its warnings."""

    example: Example
    output: str
    picture: bytes
    warnings: str = ""

    @property
    def picture_name(self) -> str:
        """The picture's file, with the suffix of its kind; empty where there is none."""
        if not self.picture:
            return ""
        return self.example.name + (".svg" if self.picture.startswith(b"<svg") else ".jpg")

    @property
    def section(self) -> str:
        """The example's part of the page."""
        parts = [f"## {self.example.title}", self.example.text, f"```text\n{self.output}```"]
        if self.picture:
            parts.append(f"![{self.example.title}]({PICTURES.name}/{self.picture_name})")
        parts += [f"`examples/{self.example.name}.py`:", f"```python\n{self.example.code}```"]
        return "\n\n".join(parts) + "\n"


#: In the order of the page.
EXAMPLES = tuple(
    map(
        Example,
        (
            "dense_keras",
            "convolutional_keras",
            "car_rental",
            "staged_backward",
            "recurrent_layer_norm",
            "style_statistics",
            "resnet_ddp",
            "folding",
            "jax_statistics",
        ),
    )
)


def page(ran: list[Ran]) -> str:
    """The gallery as Markdown."""
    return "\n".join([OPENING, *(one.section for one in ran)])


def main() -> None:
    """Run all examples, and only then replace the page and its pictures."""
    ran = []
    for example in EXAMPLES:
        print(f"{example.name} ...", flush=True)
        ran.append(example.run())
    for one in ran:
        if one.picture:
            write_whole(PICTURES / one.picture_name, one.picture)
    kept = {one.picture_name for one in ran}
    for file in PICTURES.iterdir():
        if file.name not in kept:
            file.unlink()
    write_whole(PAGE, page(ran))
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
