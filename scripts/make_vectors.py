"""Write examples/shared/vectors.json: inputs, and what the phones' Kotlin and Swift logic must make of them.

The expected values are computed here with NumPy and by lightning_prune's own writer of manifests, not by the code
that is tested. Usage: python scripts/make_vectors.py [FILE]
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from vectors.manifests import broken_manifests, described, files, json_texts, whole_manifests
from vectors.outputs import answers, readings, scores, timings
from vectors.pictures import drawings, images, pictures, unfit_inputs
from vectors.probes import probe_plans, probe_runs
from vectors.sessions import framings, sessions

from lightning_prune.deploy.artifact.manifest import to_text

TARGET = Path(__file__).parents[1] / "examples" / "shared" / "vectors.json"


def vectors() -> dict[str, Any]:
    """Return all vectors, the same ones each time."""
    random = np.random.default_rng(0)
    whole = {name: (to_text(values), values) for name, values in whole_manifests().items()}
    return {
        "manifests": [{"name": n, "text": text, "holds": described(v)} for n, (text, v) in whole.items()]
        + [{"name": name, "text": text} for name, text in broken_manifests().items()],
        "files": files(),
        "json": json_texts(),
        "images": images(random),
        "pictures": pictures(np.random.default_rng(1)),
        "unfit_inputs": unfit_inputs(),
        "drawings": drawings(),
        "scores": scores(random),
        "answers": answers(),
        "readings": readings(np.random.default_rng(2)),
        "timings": timings(random),
        "sessions": sessions(),
        "framings": framings(np.random.default_rng(3)),
        "probe_plans": probe_plans(),
        "probe_runs": probe_runs(),
    }


def to_json() -> str:
    """Return the text of the file."""
    return json.dumps(vectors(), separators=(",", ":"), ensure_ascii=True) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET).write_text(to_json(), encoding="utf-8")
