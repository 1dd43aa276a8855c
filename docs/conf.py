import re

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


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape, priority=400)
