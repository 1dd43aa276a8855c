"""What `make projects` wrote to ``projects/.rows``, as docs/projects.md.

python -m projects.table
"""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
PAGE = ROOT.parent / "docs" / "projects.md"
HEAD = """# Real projects

Each project fits as its own documentation writes it, on data that it ships or that are synthesised, with one callback
more: `PruningCallback(Recipe(schedule=Polynomial(0.5, ...)))`, once with `Element()` and once with `Channel()`. The
scripts are in `projects/`, one small file a project with its pinned versions beside it; `make projects` sets up an
environment for each, runs them and writes this page. Networks and data are tiny: nothing here speaks of accuracy.

- **Plugs in**: *yes* where nothing but the callback was added to what the project's documentation writes.
- **Zeros**: share of all parameters that are zero after the fit with `Element`, whose recipe asks for half of the
  weights that it targets.
- **Parameters**, **MACs**: before, and what is left after the fit with `Channel`; MACs of one sample, as torch counts
  them (of a whole call where its batch is not known).
- **Compact**: max|masked − compact| / max|masked| of the outputs in eval mode, for `Element` and for `Channel`, at
  float64 unless it says otherwise.
- **Reloaded**: largest relative difference of the project's own predictions after saving and loading by its own calls;
  *adopting* where the loading stands inside of `with lightning_prune.adopting():`.
- **`.pte`**: largest absolute difference in the ExecuTorch runtime from the model, at float32; verified with a
  tolerance of 1e-4, or of 2e-6 of the largest output where that is more.

A dash stands where nothing could be measured.

"""
COLUMNS = ("Model", "Plugs in", "Zeros", "Parameters", "MACs", "Compact", "Reloaded", "`.pte`")
STAGES = {
    "fit": "the fit",
    "kept": "after the fit",
    "example": "the example",
    "macs": "counting MACs",
    "compact": "compact against masked",
    "groups": "channel groups",
    "reload": "saving and loading",
    "adopting": "saving and loading inside of `adopting()`",
    "pte": "the `.pte`",
}
NEEDED = ("fit", "kept")


def main() -> None:
    """Write the page."""
    rows = [row for path in sorted((ROOT / ".rows").glob("*.json")) for row in json.loads(path.read_text())]
    projects = sorted({row["project"] for row in rows})
    tables = [part for name in projects for part in project([row for row in rows if row["project"] == name])]
    stays = list(staying(rows)) or ["Nothing stays but the inputs and outputs of the networks."]
    fails = list(failing(rows)) or ["Nothing."]
    missing = unmeasured({(row["project"].replace("-", "_"), row["model"]) for row in rows})
    tables += [f"Set up, and not measured for this page: {'; '.join(missing)}.", ""] if missing else []
    parts = [overview(rows), "", *tables, "## What stays, and why", "", STAYS, "", *stays]
    parts += ["", "## What fails", "", *fails]
    PAGE.write_text(HEAD + "\n".join(parts) + "\n", encoding="utf-8")


def overview(rows: list[dict[str, Any]]) -> str:
    """Return a paragraph of how many fits went through which stage."""
    runs = [run for row in rows for run in row["runs"].values()]
    fitted = [run for run in runs if not any(stage in run["failures"] for stage in NEEDED)]
    again = sum(run.get("reloaded") is not None for run in runs)
    verified = sum(run.get("pte") is not None for run in runs)
    exact = sum(run.get("error") is not None and run["error"][0] <= 1e-6 for run in runs)
    text = (
        f"Of {len(runs)} fits ({len(rows)} models, `Element` and `Channel`) {len(fitted)} plug in, {exact} compute"
        f" compact what they computed masked, {again} load again by their project's own calls, and {verified} give"
        " a verified `.pte`. What does not is under [what fails](#what-fails), with its reason."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def unmeasured(measured: set[tuple[str, str]]) -> list[str]:
    """Return the projects without a row, and those of whose models some have none, with their names."""
    told = []
    for script in sorted(ROOT.glob("*/fit.py")):
        project = script.parent.name
        names = re.findall(r'^        [A-Z]\w*\("([^"]+)"', script.read_text(encoding="utf-8"), re.MULTILINE)
        if project not in {name for name, _ in measured}:
            told.append(project)
        elif left_out := [name for name in names if (project, name) not in measured]:
            told.append(f"{project} ({', '.join(left_out)})")
    return told


STAYS = """Entries of axes that `Channel` cannot remove, by reason; inputs and outputs of the network itself are left
out."""


def project(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the table of a project."""
    yield f"## {rows[0]['project']} {rows[0]['version']}\n"
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "| --- | --- " + "| ---: " * (len(COLUMNS) - 2) + "|"
    for row in rows:
        element, channel = row["runs"].get("Element", {}), row["runs"].get("Channel", {})
        cells = (
            row["model"],
            plugs_in(row),
            percent(element.get("zeros"), element.get("parameters")),
            left(channel, "parameters"),
            left(channel, "macs"),
            both(compact(element), compact(channel)),
            both(reloaded(element), reloaded(channel)),
            both(number(element.get("pte")), number(channel.get("pte"))),
        )
        yield "| " + " | ".join(cells) + " |"
    yield ""


def plugs_in(row: dict[str, Any]) -> str:
    """Return yes, what had to be added, or with which granularity it does not."""
    bad = [name for name, run in row["runs"].items() if any(stage in run["failures"] for stage in NEEDED)]
    remark = f" ({row['remark']})" if row["remark"] else ""
    if bad:
        return ("no" if len(bad) == len(row["runs"]) else f"not with `{bad[0]}`") + remark
    return (f"with {row['added']}" if row["added"] else "yes") + remark


def left(run: dict[str, Any], key: str) -> str:
    """Return before → after and the share."""
    before, after = run.get(key), run.get(f"{key}_left")
    if not before or after is None:
        return "–"
    return f"{before:,} → {after:,} ({after / before:.0%})"


def percent(part: int | None, whole: int | None) -> str:
    """Return a share."""
    return f"{part / whole:.0%}" if part is not None and whole else "–"


def number(value: float | None) -> str:
    """Return it shortly."""
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}"


def compact(run: dict[str, Any]) -> str:
    """Return the difference, and the precision where it is not float64."""
    error = run.get("error")
    return "–" if error is None else number(error[0]) + ("" if error[1] == "float64" else f" ({error[1]})")


def reloaded(run: dict[str, Any]) -> str:
    """Return the difference, and how."""
    return number(run.get("reloaded")) + (" adopting" if run.get("adopting") else "")


def both(element: str, channel: str) -> str:
    """Return what both granularities gave; once where it is the same."""
    return element if element == channel else f"{element}; {channel}"


def staying(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return a line for each model of which something stays."""
    for row in rows:
        reasons = row["runs"].get("Channel", {}).get("stays") or {}
        if reasons:
            kinds: Counter[str] = Counter()
            for reason, count in reasons.items():
                kinds[re.sub(r" (at|in) \w[\w.]*(?= |$)", "", reason)] += count
            listed = "; ".join(f"{count:,}: {kind}" for kind, count in kinds.most_common())
            yield f"- {row['project']}, {row['model']}: {listed}"


def failing(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return a line for each failure; once where it is the same with both granularities."""
    for row in rows:
        failures: dict[tuple[str, str], list[str]] = {}
        for granularity, run in row["runs"].items():
            for stage, failure in run["failures"].items():
                message = shortened(" ".join(failure["message"].split()))
                failures.setdefault((stage, message), []).append(f"`{granularity}`")
        for (stage, message), granularities in failures.items():
            reason = row.get("reasons", {}).get(stage)
            told = f"{reason} (`{message}`)" if reason else f"`{message}`"
            yield f"- {row['project']}, {row['model']}, {' and '.join(granularities)}, {STAGES[stage]}: {told}"


def shortened(message: str) -> str:
    """Return its beginning, at most some three lines of the page, without machine paths."""
    message = re.sub(r"/\S*/site-packages/|/tmp/\w+/", "", message).replace("|", "\\|").replace("`", "'")
    return message if len(message) <= 320 else message[:320].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    main()
