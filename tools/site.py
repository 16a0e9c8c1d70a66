"""Hooks of mkdocs.yml: pages from outside of docs/, and links between docstrings.

The site is the repository with ``docs/`` at its root and README.md as its first page, so that a
page's links are right on the site and in the repository alike.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_OUTSIDE = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"),
    *("ancra_jax/pretrained/*.md", "examples/*.py", "notebooks/*.ipynb", "results/**/*.*"),
)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


def _of_site(path: str) -> str:
    """Return where a file of the repository lies on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that belong to the site."""
    for path in sorted(path for pattern in _OUTSIDE for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, _of_site(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links that are right in the repository be right on the site."""
    source = page.file.src_uri
    outside = page.file.generated_by is not None
    repository = ("README.md" if source == "index.md" else source) if outside else f"docs/{source}"

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(repository), match[1]))
        return posixpath.relpath(_of_site(target), posixpath.dirname(source) or ".")

    return _LINK.sub(moved, markdown)


class Links(griffe.Extension):
    """Make `name` in a docstring a link, where a name that the module knows is meant."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is None:
            return

        def link(match: re.Match[str]) -> str:
            try:
                path = obj.resolve(match[1])
            except griffe.NameResolutionError:
                return match[0]
            return f'<autoref optional identifier="{path}"><code>{match[1]}</code></autoref>'

        obj.docstring.value = _NAME.sub(link, obj.docstring.value)
