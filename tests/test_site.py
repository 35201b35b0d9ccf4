"""The documentation as a site: built without a warning, every link leads somewhere, and no network is needed."""

import html
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; make docs installs them")


def build(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a tree with the command of `make docs`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^docs:.*\n\tNO_MKDOCS_2_WARNING=1 \$\(BIN\)/mkdocs (.*)$", makefile, flags=re.MULTILINE)
    assert recipe
    command = [sys.executable, "-m", "mkdocs", *recipe[1].split(), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built in another place."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    tree = tmp_path / "tree"
    skipped = shutil.ignore_patterns(".*", "site", "runs", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=skipped)
    with (tree / "docs" / "method.md").open("a", encoding="utf-8") as page:
        page.write("\n[an anchor](theory.md#nowhere), [a page](../nowhere.md)\n")
    built = build(tree, tmp_path / "site")
    assert built.returncode != 0
    assert "#nowhere" in built.stderr and "nowhere.md, which is not a file of the repository" in built.stderr


def test_the_home_page_is_the_readme(site):
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "index.html").read_text(encoding="utf-8")))
    headings = re.findall(r"^##+ (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings and [heading for heading in headings if heading not in text] == []
    assert "model = peft.get_peft_model(base, config)" in text


def test_every_page_of_the_documentation_is_there(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), page
    assert not list(site.rglob("site_hook*")) and not list(site.rglob("make_cli*"))


def test_every_public_name_has_its_place(site):
    for page in (ROOT / "docs" / "api").glob("*.md"):
        if page.stem == "method":
            continue  # a room without __all__, below
        room = "lrlora" if page.stem == "lrlora" else f"lrlora.{page.stem}"
        text = (site / "api" / f"{page.stem}.html").read_text(encoding="utf-8")
        public = importlib.import_module(room).__all__
        assert public and [name for name in public if f'id="{room}.{name}"' not in text] == [], room
    text = (site / "api" / "method.html").read_text(encoding="utf-8")
    for name in (
        "nonlinearity.phi",
        "update.delta_weight",
        "carrier.slopes",
        "rank.stable_rank",
        "fast.phi_and_gradients",
    ):
        assert f'id="lrlora.method.{name}"' in text, name
    # an example is code, its result is under it
    assert "&gt;&gt;&gt; " in text or '<span class="gp">&gt;&gt;&gt; </span>' in text


def test_every_link_leads_somewhere_and_none_needs_a_network(site):
    found = {file: file.read_text(encoding="utf-8") for file in site.rglob("*.html") if file.name != "404.html"}
    assert len(found) > 30
    places = {file: set(re.findall(r'\b(?:id|name)="([^"]*)"', text)) for file, text in found.items()}
    count = 0
    for file, text in found.items():
        for tag, link in set(re.findall(r'<(\w+)[^>]*?\b(?:href|src)="([^"]*)"', text)):
            parts = urlsplit(html.unescape(link))
            if parts.scheme:
                # a reader may go elsewhere; what a page is made of may not come from there
                assert tag == "a", (file, link)
                continue
            count += 1
            target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            assert target.exists(), (file, link)
            if parts.fragment and target in places and parts.fragment != "__skip":
                assert unquote(parts.fragment) in places[target], (file, link)
    assert count > 1000


def test_it_is_light_and_dark_as_the_reader_s_machine_is(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    for scheme, media in (("default", "light"), ("slate", "dark")):
        assert re.search(
            rf'data-md-color-media="\(prefers-color-scheme: {media}\)" data-md-color-scheme="{scheme}"', text
        )
