"""What mkdocs needs to know of this repository: README.md is the home page, and links leave docs/ as on the disk.

mkdocs reads docs/ alone. The pages and files that lie elsewhere are added where they are linked, under their path in
the repository, so that nothing is kept twice.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
HOME = {"README.md": "index.md"}
ALSO = ("src/lrlora/ops/README.md",)
"""Pages outside docs/ that mkdocs.yml lists and no page links to."""
SHOWN = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".ipynb": "notebook"}
"""Files that become a page with their text, by their ending; others are handed out as they are."""
WITH_LINKS = (".md", ".ipynb")
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
# page of the site: file of the repository
_came_from: dict[str, str] = {}
_log = get_plugin_logger("lrlora")


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site: docs/ is its root."""
    at = HOME.get(path, path.removeprefix("docs/"))
    return f"{at}.md" if Path(path).suffix in SHOWN else at


def text_of(path: str) -> str:
    """The Markdown of a page; of a notebook its cells, with code and outputs as blocks, and figures as images."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return text
    parts, drawn = [], figures(path)
    for number, cell in enumerate(json.loads(text)["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"````text\n{''.join(output['text'])}````")
        # as HTML: in Markdown it would be a link to a file of the repository
        if f"{number}.png" in drawn:
            parts.append(f'<img alt="a figure" src="{Path(path).name}.{number}.png">')
    return "\n\n".join(parts)


def figures(path: str) -> dict[str, bytes]:
    """The figures of a notebook, by the number of their cell."""
    cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
    return {
        f"{number}.png": base64.b64decode(output["data"]["image/png"])
        for number, cell in enumerate(cells)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }


def targets(path: str) -> set[str]:
    """Files of the repository that a page links to."""
    text = text_of(path)
    found = {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for _, link, _, _ in LINK.findall(text)}
    return {target for target in found if (ROOT / target).is_file()}


def on_files(files: Any, config: Any) -> Any:
    """Add the home page, and all that it and the pages of docs/ lead to outside docs/."""
    waiting = {"README.md", *ALSO, *(f"docs/{file.src_uri}" for file in files.documentation_pages())}
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        _came_from[in_site(path)] = path
        if files.get_file_from_path(in_site(path)) is None:
            files.append(_added(path, config))
        if path.endswith(".ipynb"):
            for name, image in figures(path).items():
                files.append(File.generated(config, f"{in_site(path)[:-3]}.{name}", content=image))
        if path.endswith(WITH_LINKS):
            waiting |= targets(path) - seen
    return files


def _added(path: str, config: Any) -> File:
    language = SHOWN.get(Path(path).suffix)
    if language is None:
        return File.generated(config, in_site(path), abs_src_path=str(ROOT / path))
    text = text_of(path)
    page = text if language == "notebook" else f"# {path}\n\n````{language}\n{text}````\n"
    return File.generated(config, in_site(path), content=page, inclusion=InclusionLevel.NOT_IN_NAV)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    here = _came_from[page.file.src_uri]
    if not here.endswith(WITH_LINKS):
        return markdown

    def moved(found: re.Match[str]) -> str:
        link = found[2]
        if re.match(r"[a-z]+:", link):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        if not (ROOT / target).is_file():
            _log.warning("%s links to %s, which is not a file of the repository", here, link)
            return found[0]
        at = posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{at}{found[3] or ''}{found[4]}"

    return LINK.sub(moved, markdown)
