"""A keyword spotter on a phone: it hears 10 ms at a time, keeps its past, loses most of its work and becomes 8 bits.

It learns on words from a formant synthesiser, by whole streams at once; a guard watches the loss. Thresholds are chosen
on voices that it did not learn from, misses and false alarms are counted on others, step by step in the runtime.

    python examples/keyword_spotter.py          # some four minutes on one core
"""

import copy
from pathlib import Path

import lightning as L
from keyword_spotter_data import chosen, dataset, judged, streams
from keyword_spotter_model import Spotter, scores, steps
from torch.utils.data import DataLoader

import lightning_prune as lp
from lightning_prune.deploy import XNNPACK, Int8, Sequences
from lightning_prune.deploy.clock import milliseconds

RECIPE = lp.Recipe(
    granularity=lp.Channel(),
    criterion=lp.Taylor(),
    need=lp.MACs(0.3),
    schedule=lp.Polynomial(begin_step=0.05, end_step=0.5, frequency=30),
    targets=lp.Targets(exclude=("bank",)),  # what turns samples into bands is no one's to learn
)


def main(clips: int = 700, voices: int = 12, seconds: float = 180, epochs: int = 8, folder: Path = Path("out")) -> dict:
    """Train, prune, export and count; return what is printed for each file.

    Args:
        clips: of 4 s to learn from, each of another voice; a sixth as many for the guard.
        voices: to choose the thresholds on, and as many others to count on.
        seconds: that each of these speaks.
        epochs: of the dense network, and as many of the pruned one.
        folder: of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    learnt, guarded = streams(10**6, clips, 4), streams(10**5, clips // 6, 4)
    choosing, counting = streams(1000, voices, seconds), streams(2000, voices, seconds)
    train, val = DataLoader(dataset(learnt), 16, shuffle=True), DataLoader(dataset(guarded), 64)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    dense = Spotter()
    L.Trainer(max_epochs=epochs, **quiet).fit(dense, train, val)
    pruned = copy.deepcopy(dense)
    pruned.rate = dense.rate / 2  # it has learnt already
    guard = lp.Guard("val_loss", "min", max_drop=0.01)
    L.Trainer(max_epochs=epochs, callbacks=[lp.PruningCallback(RECIPE, guard=guard)], **quiet).fit(pruned, train, val)

    eight = XNNPACK(quantization=Int8(Sequences([steps(x) for x in learnt[:2]]), skip=("bank",), samples=800))
    unheard = Sequences([steps(x) for x in guarded[:2]])
    made = {
        "dense": dense.to_executorch(folder / "dense.pte", verify_on=unheard),
        "pruned, 8 bits": pruned.to_executorch(folder / "pruned.pte", backend=eight, verify_on=unheard),
    }
    times, rows = milliseconds(made), dict[str, dict[str, float]]()
    print(f"{'':>16}{'MACs':>10}{'bytes':>10}{'ms a step':>11}{'missed':>9}{'false an hour':>15}")
    for name, artifact in made.items():
        threshold = chosen(scores(artifact.path, choosing), choosing, most=5)
        missed, false = judged(scores(artifact.path, counting), counting, threshold)
        size = artifact.size_bytes
        rows[name] = {"MACs": artifact.macs, "bytes": size, "ms": times[name], "missed": missed, "false": false}
        print(f"{name:>16}{artifact.macs:>10,}{size:>10,}{times[name]:>11.3f}{missed:>9.1%}{false:>15.1f}")
    return rows


if __name__ == "__main__":
    main()
