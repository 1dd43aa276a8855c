"""A language model of Python that completes lines on a phone: trained on the interpreter's own sources, then pruned.

python examples/code_model.py    # bytes, no download, some minutes of one core; two .pte and their tokenizer.json
"""

import copy
from pathlib import Path

import lightning as L
import torch
from code_model_data import LENGTH, PROMPTS, completed, split, write_tokenizer
from code_model_decoder import Decoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channel, Distillation, Linear, PruningCallback, PruningMixin, Recipe, Uniform, summarize
from lightning_prune.deploy import Generation, RuntimeModel, benchmark


class Writer(PruningMixin, L.LightningModule):
    """The decoder as it is trained: each byte is foretold from those before it."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.net = Decoder(**sizes)
        self.example_input_array = torch.zeros(1, 5, dtype=torch.long), torch.arange(5)  # with its cache, that goes too

    def forward(self, text: Tensor, position: Tensor | None = None) -> Tensor:
        """Return logits, see Decoder."""
        return self.net(text, position)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    @torch.no_grad()
    def bits(self, texts: Tensor) -> float:
        """Return the bits per byte of texts (texts, length + 1)."""
        losses = torch.stack([self.training_step([part], 0) for part in texts.split(len(texts) // 8)])
        return float(losses.mean() / torch.log(torch.tensor(2.0)))


def main(texts: int = 4800, folder: Path = Path("out"), **sizes: int) -> dict[str, dict[str, float]]:
    """Train, prune, export and complete; return what is printed, by decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    train, test = split(texts)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options = {"max_epochs": 1, "accelerator": "cpu", "gradient_clip_val": 1.0, **quiet}
    loader = DataLoader(TensorDataset(train), 16, shuffle=True)
    recipe = Recipe(schedule=Linear(0.5, 0.05, 0.5, 20), granularity=Channel(), allocation=Uniform(), count="macs")
    models, rows = {"dense": Writer(**sizes)}, {}
    L.Trainer(**options).fit(models["dense"], loader)
    models["pruned"] = copy.deepcopy(models["dense"])
    # what is left of each layer takes over for what went, and the dense one teaches
    pruning = PruningCallback(recipe, distillation=Distillation(axis=-1))
    L.Trainer(callbacks=[pruning], **options).fit(models["pruned"], loader)
    write_tokenizer(folder / "tokenizer.json")
    paths = {name: folder / f"{name}.pte" for name in models}
    sizes_of = {n: m.eval().to_executorch(paths[n], generation=Generation(LENGTH, eos=10)) for n, m in models.items()}
    times = benchmark(paths, (torch.tensor([[65]]), torch.tensor([40])))
    for name, model in models.items():
        figures = {"bits per byte": model.bits(test[:256]), "tokens per second": 1000 / times[name].median_ms}
        rows[name] = figures | {"bytes": sizes_of[name].size_bytes, "MACs": summarize(model).macs or 0}
        print(name, {key: round(value, 3) for key, value in rows[name].items()})
        for prompt in PROMPTS:
            print(f"  {prompt}{completed(RuntimeModel(paths[name]), prompt)}")
    return rows


if __name__ == "__main__":
    main()
