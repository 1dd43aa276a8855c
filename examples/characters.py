"""A meter reader that needs ten of 94 characters: classes, guard, distillation, and an ExecuTorch file.

A network is trained on every printable character, cut to the digits, and pruned towards a tenth of its
multiply-accumulates while its dense self teaches it, as far as the guard lets it. Test glyphs are of fonts never seen.

    python examples/characters.py               # about two minutes on one core
"""

from pathlib import Path

import lightning as L
from characters_data import DIGITS, LABELS, TEST_FONTS, Reader, characters, glyphs
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import lightning_prune as lp
from lightning_prune.classes.classes import ClassSubset
from lightning_prune.deploy import XNNPACK, Artifact, Int8

SCHEDULE = lp.Polynomial(final_sparsity=0.9, begin_step=0.02, end_step=0.5, frequency=26)
COST = {"allocation": lp.Global(cost="macs"), "count": "macs"}
RECIPE = lp.Recipe(granularity=lp.Channel(), criterion=lp.Taylor(), schedule=SCHEDULE, **COST)


def loaders(train: TensorDataset, *others: TensorDataset) -> list[DataLoader]:
    """Return a shuffled loader of the first data set and plain ones of the others."""
    return [DataLoader(train, 64, shuffle=True), *(DataLoader(other, 500) for other in others)]


def digits_of(data: TensorDataset, subset: ClassSubset) -> TensorDataset:
    """Return the images of digits alone, with the targets of the smaller model."""
    images, targets = data.tensors[0], subset.targets(data.tensors[1])
    return TensorDataset(images[targets >= 0], targets[targets >= 0])


def train(model: L.LightningModule, data: list[DataLoader], epochs: int, *callbacks: L.Callback) -> None:
    """Fit the model on the first loader, validate on the second."""
    L.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    L.Trainer(max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", **quiet).fit(model, *data[:2])


def main(times: int = 8, epochs: int = 12, width: int = 16, folder: Path = Path("out")) -> Artifact:
    """Train, cut, prune and export; return the verified file.

    Args:
        times: how often each glyph of the training fonts comes in an epoch.
        epochs: of either training.
        width: channels of the first layer.
        folder: of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = [glyphs(times), characters(5 * times, seed=1), characters(5 * times, TEST_FONTS, seed=2)]
    dense = Reader(width)
    train(dense, loaders(*sets), epochs)

    subset = lp.keep_classes(dense, classes=DIGITS, labels=LABELS, loader=loaders(*sets)[2])
    kept = f"from {len(LABELS)} classes to {len(DIGITS)}"
    print(f"The head is cut {kept}; right answers of the same network:\n{subset}\n")

    guard = lp.Guard("val_acc", "max", max_drop=0.005)
    callback = lp.PruningCallback(RECIPE, guard=guard, distillation=lp.Distillation(temperature=4.0, weight=0.5))
    digits = loaders(*(digits_of(data, subset) for data in sets))
    train(subset.model, digits, 4 * epochs, callback)
    left, whole = lp.summarize(subset.model).macs or 0, lp.summarize(dense).macs or 1
    print(f"\n{left:,} of {whole:,} multiply-accumulates are left ({left / whole:.1%}), all that the guard let go\n")

    artifact = subset.model.to_executorch(
        folder / "digits.pte",
        backend=XNNPACK(quantization=Int8(calibration=digits[1])),
        labels=subset.labels,
        verify_on=digits[2],
        metric=MulticlassAccuracy(len(DIGITS), average="micro"),
    )
    print(f"Exported in 8 bits and run beside the model on fonts never seen:\n{artifact}")
    return artifact


if __name__ == "__main__":
    main()
