"""Run the code of a notebook from top to bottom, in one namespace, and write what each cell shows into it.

Jupyter does the same and more; this needs none of it, so the tests run notebooks with what is installed anyway.

    python scripts/run_notebook.py examples/first_model.ipynb
"""

import argparse
import ast
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

KINDS = {"text/html": "_repr_html_", "image/svg+xml": "_repr_svg_"}
"""What a notebook can show -> the method that gives it."""


def run(notebook: dict[str, Any]) -> None:
    """Run the code cells and replace their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        body, last = ast.parse("".join(cell["source"])).body, None
        if body and isinstance(body[-1], ast.Expr):
            last = ast.Expression(body.pop().value)  # type: ignore[attr-defined]
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
            value = None if last is None else eval(compile(last, f"cell {number}", "eval"), names)
        cell["execution_count"], cell["outputs"] = number, []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines(text)})
        if value is not None:
            shown = {kind: lines(getattr(value, way)()) for kind, way in KINDS.items() if hasattr(value, way)}
            shown["text/plain"] = lines(str(value))
            result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown}
            cell["outputs"].append(result)


def lines(text: str) -> list[str]:
    """Return a text as notebooks keep it."""
    return text.splitlines(keepends=True)


def main() -> None:
    """Run the notebooks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    for path in parser.parse_args().paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        run(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
