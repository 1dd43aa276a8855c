"""Three generations of ultralytics' YOLO: half of the multiply-accumulates go, and the rest becomes a verified .pte.

The weights are random; the statistics of the batch norms are those of the example's images. Needs ultralytics.

    PYTHONPATH=. python -m benchmarks.detectors
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import lightning as L
import torch
from detector_data import loader
from detector_model import Detector

from lightning_prune import Channel, Global, Magnitude, NoRepair, OneShot, Recipe, prune, summarize

NETWORKS = "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"
HALF = Recipe(
    granularity=Channel(),
    criterion=Magnitude(),
    allocation=Global(cost="macs"),
    schedule=OneShot(0.5),
    count="macs",
    repair=NoRepair(),
)


def main() -> None:
    """Print a line for each network."""
    images = [batch for batch, _ in loader(32, 0)]
    print(f"{'':<12}{'MACs':>26}{'parameters':>24}{'bytes':>12}{'largest':>10}{'error':>10}")
    for name in NETWORKS:
        L.seed_everything(0, verbose=False)
        model = Detector(name).train()
        with torch.no_grad():
            for _ in range(30):
                model(images[0])
        model.eval()
        before = summarize(model, images[0][:1])
        prune(model, HALF, images, progress=False)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            made = model.to_executorch(Path(folder) / "model.pte", verify_on=images, tolerance=0.01)
            largest = max(float(model(batch).abs().max()) for batch in images)
        macs = f"{before.macs or 0:,} -> {made.macs or 0:,}"
        parameters = f"{before.parameters:,} -> {made.parameters:,}"
        row = f"{macs:>26}{parameters:>24}{made.size_bytes:>12,}{largest:>10.3g}{made.max_abs_error:>10.2g}"
        print(f"{name.removesuffix('.yaml'):<12}{row}", flush=True)


if __name__ == "__main__":
    main()
