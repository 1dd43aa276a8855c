"""Which package of the standard library does a line of Python come from? A transformer of which heads and MLP shrink.

python examples/code_lines.py    # the interpreter's own source, no download; a .pte for lines of any length
"""

from pathlib import Path

import lightning as L
import torch
from code_lines_data import LENGTH, PACKAGES, VOCABULARY, split
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import Channel, Linear, PruningCallback, PruningMixin, Recipe, Taylor, Uniform, summarize


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
        y = nn.functional.scaled_dot_product_attention(*split, attn_mask=there[:, None, None, :])
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
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1)

    @torch.no_grad()
    def accuracy(self, lines: Tensor, labels: Tensor) -> float:
        """Return the share of lines whose package is found."""
        right = self.eval()(lines).argmax(1) == labels
        self.train()
        return float(right.float().mean())


def main(epochs: int = 3, most: int = 1500, path: Path = Path("out/code_lines.pte")) -> dict[str, object]:
    """Train, prune, export; return the accuracy before and after on lines of files that were not trained on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    data, unseen = split(most)
    train = DataLoader(data, 128, shuffle=True)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    model = Reader()
    L.Trainer(max_epochs=epochs, **quiet).fit(model, train)
    found = {"dense": model.accuracy(*unseen.tensors), "MACs before": summarize(model).macs}
    spread = {"count": "macs", "allocation": Uniform()}  # heads and channels of the MLP give alike
    recipe = Recipe(schedule=Linear(0.6, 0.1, 0.6, 20), granularity=Channel(), criterion=Taylor(), **spread)
    L.Trainer(max_epochs=epochs, callbacks=[PruningCallback(recipe)], **quiet).fit(model, train)
    found |= {"pruned": model.accuracy(*unseen.tensors), "MACs after": summarize(model).macs}
    found["heads"] = [block.query.out_features // block.size for block in model.blocks]
    lengths = {"tokens": {1: torch.export.Dim("length", min=2, max=LENGTH)}}
    return found | {"bytes": model.to_executorch(path, labels=PACKAGES, dynamic_shapes=lengths).size_bytes}


if __name__ == "__main__":
    print(main())
