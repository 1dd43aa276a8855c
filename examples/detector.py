"""A detector on a phone: a YOLO of ultralytics learns shapes, loses half of its work and becomes 8 bits.

It learns from random weights on shapes that numpy draws; a guard watches the mean average precision of torchmetrics.
Dense, pruned, and pruned in 8 bits are exported and run in the ExecuTorch runtime, whose boxes are drawn on an image.

    pip install ultralytics pycocotools         # ultralytics is AGPL-3.0: see docs/detection.md before you ship it
    python examples/detector.py                 # some eight minutes on one core; writes out/detector.png
"""

import copy
from pathlib import Path

import lightning as L
from detector_data import beside, drawn, loader
from detector_model import Detector, detections, precision

import lightning_prune as lp
from lightning_prune.deploy import XNNPACK, Int8, RuntimeModel, benchmark

RECIPE = lp.Recipe(
    granularity=lp.Channel(),
    criterion=lp.Taylor(),
    allocation=lp.Global(cost="macs"),
    schedule=lp.Polynomial(final_sparsity=0.5, begin_step=0.05, end_step=0.6, frequency=24),
    count="macs",
)
# the head puts boxes in pixels and scores below one into one tensor: with one scale of 8 bits the scores would be gone
HEAD = ("network.model.23:*", "network.model.23.dfl")


def main(count: int = 384, epochs: int = 16, folder: Path = Path("out")) -> dict[str, float]:
    """Train, prune, export and draw; return the mean average precision of what the runtime gives for each file.

    Args:
        count: of training images.
        epochs: of the dense network, and as many of the pruned one.
        folder: of the files and the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    train, val, test = loader(count, 0, shuffle=True), loader(64, 10**6), loader(64, 2 * 10**6)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    dense = Detector()
    L.Trainer(max_epochs=epochs, **quiet).fit(dense, train, val)
    pruned = copy.deepcopy(dense)
    pruned.rate = dense.rate / 2  # it has learnt already
    pruning = lp.PruningCallback(RECIPE, guard=lp.Guard("val_map", "max", max_drop=0.05, patience=3))
    L.seed_everything(0, verbose=False)
    L.Trainer(max_epochs=epochs, callbacks=[pruning], **quiet).fit(pruned, train, val)

    eight = Int8([images for images, _ in train], skip=HEAD, samples=64)
    ways = {"dense": (dense, None), "pruned": (pruned, None), "pruned_8_bits": (pruned, eight)}
    made = {
        name: model.to_executorch(
            folder / f"{name}.pte",
            backend=XNNPACK(quantization=quantization),
            verify_on=[images for images, _ in test],
            tolerance=None if quantization else 0.01,  # boxes are pixels; 8 bits are judged by their noise
        )
        for name, (model, quantization) in ways.items()
    }
    programs = {name: RuntimeModel(artifact.path) for name, artifact in made.items()}
    scores = {name: precision(program, test) for name, program in programs.items()}
    times = benchmark([artifact.path for artifact in made.values()])
    print(f"{'':>14}{'MACs':>12}{'parameters':>12}{'bytes':>12}{'ms':>8}{'mAP':>8}")
    for name, artifact in made.items():
        sizes = f"{artifact.macs:>12,}{artifact.parameters:>12,}{artifact.size_bytes:>12,}"
        print(f"{name:>14}{sizes}{times[name].median_ms:>8.2f}{scores[name]:>8.3f}")

    images, _ = next(iter(test))
    boxes = [detections(programs["pruned_8_bits"](image[None])[0])[0] for image in images[:4]]
    beside([drawn(*pair) for pair in zip(images, boxes, strict=False)]).save(folder / "detector.png")
    return scores


if __name__ == "__main__":
    main()
