"""The documentation site: it builds without a warning, is complete, and fetches nothing.

And what its pages say is so: their links lead somewhere, their examples run, their figures are
those of the kept results.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pages import carry_out, examples, require

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GALLERY = DOCS / "gallery.md"  # its programs stand in examples/, and are tested there
#: Without these there is no site: tools, and libraries whose layers the reference asks.
BUILDS_WITH = ("mkdocs", "material", "mkdocstrings", "latex2mathml")
DOCUMENTS = ("torch", "flax", "equinox", "keras", "sklearn")
#: Whose public names the reference has.
PACKAGES = (
    "normkit", "normkit.torch", "normkit.torch.beyond", "normkit.torch.functional", "normkit.jax",
    "normkit.jax.nnx", "normkit.jax.equinox", "normkit.keras", "normkit.scaling", "normkit.models",
    "normkit.report", "normkit.errors",
)  # fmt: skip


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run MkDocs; warnings are errors, as mkdocs.yml says."""
    for name in (*BUILDS_WITH, *DOCUMENTS):
        require(name, "which the site is built with")
    options = ["-f", str(config), "-d", str(site)]
    return run([sys.executable, "-m", "mkdocs", "build", *options])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A process of its own, in which Keras runs on PyTorch."""
    environment = {"KERAS_BACKEND": "torch"} | os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Seen(HTMLParser):
    """What a page has to link to, links to, and loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note an element's address and name."""
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href") is not None:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(found["href"])
        if tag != "a" and found.get("src"):
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def seen(site):
    """Every page of the site, read."""
    return {page: Seen(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}


def test_every_page_is_built(site, seen):
    built = {str(page.relative_to(site).with_suffix("")) for page in seen}
    written = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES}
    assert written <= built


def test_no_link_leads_nowhere(site, seen):
    """A second look at what MkDocs looks at, and at links that were written as HTML."""
    lost = []
    for page, found in seen.items():
        if page.name == "404.html":
            continue  # its links start at the host's root, which nobody knows
        for link in (*found.links, *found.loads):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            target = target / "index.html" if target.is_dir() else target
            anchors = seen[target].anchors if target in seen else set()
            if not target.exists() or (
                address.fragment and unquote(address.fragment) not in anchors
            ):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost


def test_nothing_is_fetched_from_elsewhere(site, seen):
    for page, found in seen.items():
        assert not [one for one in found.loads if urlsplit(one).netloc], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_reference_has_every_public_name(seen):
    anchors = set().union(*(found.anchors for page, found in seen.items() if "api" in page.parts))
    names = (
        "import importlib, sys\n"
        "for package in sys.argv[1:]:\n"
        "    for name in importlib.import_module(package).__all__: print(f'{package}.{name}')"
    )
    done = run([sys.executable, "-c", names, *PACKAGES])
    assert done.returncode == 0, done.stderr
    public = set(done.stdout.split()) - {*PACKAGES, "normkit.__version__"}
    assert len(public) > 150
    assert sorted(public - anchors) == []


def test_what_is_made_at_run_time_is_in_the_reference(site):
    """Arguments that layers take over from torch.nn, and docstrings that are assigned."""
    text = (site / "api" / "torch.html").read_text(encoding="utf-8")
    layer = text[text.index('id="normkit.torch.AdaptiveBatchNorm2d"') :]
    layer = layer[: layer.index('id="normkit.torch.AdaptiveBatchNorm3d"')]
    for word in ("num_features", "track_running_stats", "ghost", "prior", "AdaBN"):
        assert word in layer


def test_the_reference_shows_docstrings_as_meant(site):
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(?:class|meth|func|mod|attr|data):", text), page
        assert "<blockquote>" not in text, page  # what Markdown takes >>> for


def test_formulas_are_drawn(site):
    text = (site / "derivation.html").read_text(encoding="utf-8")
    assert text.count("<math") > 100
    for page in site.rglob("*.html"):
        assert "arithmatex" not in page.read_text(encoding="utf-8"), page


BROKEN_LINKS = ("[there](nowhere.md)", "[there](#nowhere)", "[there][normkit.nowhere]")


def test_what_is_broken_stops_the_build(tmp_path):
    config = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    config = config.replace("docs_dir: docs", "docs_dir: pages").replace("docs/", f"{DOCS}/")
    config = config.replace("paths: [src]", f"paths: [{ROOT / 'src'}]")
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("\n\n".join(("# A page", *BROKEN_LINKS)))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    for line in BROKEN_LINKS:
        assert re.search(r"[\w.#]*nowhere[\w.]*", line)[0] in done.stderr


# --- what the pages say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    sorted({*PAGES} - {GALLERY}),
    ids=lambda page: str(page.relative_to(DOCS).with_suffix("")),
)
def test_examples_print_what_the_page_says(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    if examples(text):
        carry_out(text, tmp_path)


def test_no_example_is_overlooked():
    """Each block of Python or of commands with a prompt is found, whatever its indentation."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^ *```(?:python|console)", text, re.MULTILINE)
        assert len(examples(text)) == len(fences), page


def test_examples_can_fail(tmp_path):
    for text in (
        "```python\nprint(1)\n```\n\n```\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\nimport nowhere\n```\n",
        "```console\n$ echo 1\n2\n```\n",
    ):
        with pytest.raises(AssertionError):
            carry_out(text, tmp_path)


def test_figures_are_those_of_the_kept_results():
    pytest.importorskip("torch", reason="the lab's claims are written for PyTorch")
    sys.path.insert(0, str(DOCS))
    try:
        evidence = importlib.import_module("evidence")
    finally:
        sys.path.remove(str(DOCS))
    records = evidence.Results(evidence.KEPT).records
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.evidence(records)
    text = evidence.CHOOSING.read_text(encoding="utf-8")
    assert text == evidence.with_figures(text, records)
    assert len(evidence.FIGURE.findall(text)) > 20
    assert not re.search(r"^<!--", text, re.MULTILINE)  # would end the paragraph in front


def test_the_commands_on_the_pages_exist():
    """Commands that are not run here, such as those that take long, name real options."""
    typer = pytest.importorskip("typer", reason="typer, for the command line, is not installed")
    from normkit.cli.app import app

    root = typer.main.get_command(app)
    checked = 0
    for page in (*PAGES, ROOT / "README.md"):
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in re.findall(r"^(?:\$ )?normkit (.*)$", block, re.MULTILINE):
                check_command(root, re.split(r"[;|>#]", line)[0].split(), f"{page.name}: {line}")
                checked += 1
    assert checked > 15


def check_command(command, words, where):
    """The words name a command, and options that it has."""
    while words and getattr(command, "commands", None):
        assert words[0] in command.commands, where
        command = command.commands[words.pop(0)]
    known = {
        name for parameter in command.params for name in parameter.opts + parameter.secondary_opts
    }
    assert {word for word in words if word.startswith("-")} <= known | {"--help"}, where
