"""Which package of the standard library does a line of Python come from? A small transformer learns it, loses heads
and MLP channels, and goes into a .pte that takes lines of any length.

python examples/code_lines.py    # the interpreter's own source, no download; about three minutes
"""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from code_lines_data import LENGTH, PACKAGES, VOCABULARY, split
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import Channel, Global, Polynomial, PruningCallback, PruningMixin, Recipe, Taylor, summarize

COST = Global(cost="macs")


class Block(nn.Module):
    """Attention and an MLP, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size, self.norms = width // heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Map (batch, length, width) to the same; ``there`` (batch, length) is False where a line is over."""
        y = self.norms[0](x)
        split = (p(y).unflatten(2, (-1, self.size)).transpose(1, 2) for p in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*split, attn_mask=there[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Reader(PruningMixin, L.LightningModule):
    """A transformer over the words and signs of a line."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.example_input_array = torch.ones(1, LENGTH, dtype=torch.long)
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, len(PACKAGES))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (batch, packages) of lines (batch, length)."""
        there = tokens != 0
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, there)
        return self.head((x * there.unsqueeze(2)).sum(1) / there.sum(1, keepdim=True))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)


def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Return the share of lines whose package is found."""
    with torch.no_grad():
        right = [(model.eval()(lines).argmax(1) == labels).float().mean() for lines, labels in batches]
    return float(torch.stack(right).mean())


def main(epochs: int = 4, most: int = 2000, path: Path = Path("code_lines.pte")) -> dict[str, float]:
    """Train, prune, export; return the accuracy before and after on lines of files that were not trained on."""
    L.seed_everything(0, verbose=False)
    data, unseen = split(most)
    train, test = DataLoader(data, 128, shuffle=True), DataLoader(unseen, 100, drop_last=True)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    model = Reader()
    L.Trainer(max_epochs=epochs, **quiet).fit(model, train)
    found, dense = {"dense": accuracy(model, test)}, summarize(model).macs
    schedule = Polynomial(0.6, begin_step=0.1, end_step=0.6, frequency=20)
    recipe = Recipe(schedule=schedule, granularity=Channel(), criterion=Taylor(), count="macs", allocation=COST)
    L.Trainer(max_epochs=epochs, callbacks=[PruningCallback(recipe)], **quiet).fit(model, train)
    found |= {"pruned": accuracy(model, test), "MACs left": summarize(model).macs / dense}
    heads = [block.query.out_features // block.size for block in model.blocks]
    length = torch.export.Dim("length", min=2, max=LENGTH)
    file = model.to_executorch(path, labels=PACKAGES, dynamic_shapes={"tokens": {1: length}})
    print(f"{found}, heads left {heads}, {file.size_bytes:,} bytes")
    return found


if __name__ == "__main__":
    main()
