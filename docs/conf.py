import base64
import html
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from lightning_prune import __version__

project = "lightning_prune"
author = "The lightning_prune developers"
copyright = "2026, the lightning_prune developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = []

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The sections that our docstrings have beside Google's own.
napoleon_custom_sections = ["Changes", "Source", "Formula"]

html_theme = "furo"
html_title = f"lightning_prune {release}"

_LITERAL = re.compile(r"(``.+?``|:\w+:`.+?`|(?<![\w*])\*(?![\s*])[^*]*[^*\s]\*(?!\w))")
_STRAY = re.compile(r"(?<![\\*])(\*(?=[^\s*])|\|(?=\S))")


def _escape(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Shapes such as (out, in, *kernel) and norms such as |w| are no reStructuredText markup."""
    in_doctest = False
    for number, line in enumerate(lines):
        in_doctest = bool(line.strip()) and (
            in_doctest or line.lstrip().startswith(">>>")
        )
        if not in_doctest:
            parts = _LITERAL.split(line)
            lines[number] = "".join(
                part if odd % 2 else _STRAY.sub(r"\\\1", part)
                for odd, part in enumerate(parts)
            )


def _shown(output: dict[str, Any]) -> str:
    """Return what a cell of a notebook shows, as Markdown; a picture keeps its style to itself."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/svg+xml" in data:
        svg = base64.b64encode(data["image/svg+xml"].encode()).decode()
        title = html.escape(re.sub(r"Chart\(title='(.*)'\)", r"\1", data["text/plain"]))
        data["text/html"] = f'<img alt="{title}" src="data:image/svg+xml;base64,{svg}">'
    if "text/html" in data:
        return f"````{{raw}} html\n{data['text/html']}\n````"
    text = data.get("text/plain", "".join(output.get("text", ""))).rstrip()
    # as wide as a page shows, like the code
    lines = (
        textwrap.fill(line, 88, subsequent_indent="    ") if len(line) > 88 else line
        for line in text.splitlines()
    )
    return "````text\n" + "\n".join(lines) + "\n````"


def _notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a notebook of ``examples/`` in the place of a page that begins ``{notebook} first_model.ipynb``.

    What follows on that page is for readers of the repository.
    """
    named = re.fullmatch(r"\{notebook\} (\S+)\s.*", source[0], re.DOTALL)
    if named is None:
        return
    path = Path(app.srcdir).parent / "examples" / named[1]
    app.env.note_dependency(str(path))
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(
            text if cell["cell_type"] == "markdown" else f"````python\n{text}\n````"
        )
        parts += map(_shown, cell.get("outputs", ()))
    source[0] = "\n\n".join(parts)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _notebook)
    app.connect("autodoc-process-docstring", _escape, priority=400)
