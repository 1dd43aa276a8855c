"""BERT, DistilBERT and Llama classifiers at small sizes in a LightningModule that hands on keyword arguments."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from projects.common import Case, run


class GLUETransformer(L.LightningModule):
    """The module of the example, from a configuration instead of a download."""

    def __init__(self, model_type: str, learning_rate: float = 2e-4, weight_decay: float = 0.01, **sizes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = AutoConfig.for_model(model_type, vocab_size=200, num_labels=2, pad_token_id=0, **sizes)
        self.model = AutoModelForSequenceClassification.from_config(config)

    def forward(self, **inputs: Tensor) -> Any:
        """Return what the model returns."""
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, which the model computes."""
        outputs = self(**batch)
        return outputs[0]

    def configure_optimizers(self) -> Any:
        """Prepare optimizer and schedule (linear warmup and decay)."""
        no_decay = ["bias", "LayerNorm.weight"]
        parameters = list(self.model.named_parameters())
        decayed = [p for n, p in parameters if not any(nd in n for nd in no_decay)]
        others = [p for n, p in parameters if any(nd in n for nd in no_decay)]
        groups = [
            {"params": decayed, "weight_decay": self.hparams.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.learning_rate)
        scheduler = get_linear_schedule_with_warmup(optimizer, 0, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 1}]


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random tokens; the label is whether the first is small."""

    def __len__(self) -> int:
        """Return their number."""
        return 192

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one, padded at its end."""
        draw = torch.Generator().manual_seed(index)
        tokens = torch.randint(3, 200, (16,), generator=draw)
        length = int(torch.randint(6, 17, (), generator=draw))
        mask = (torch.arange(16) < length).long()
        return {"input_ids": tokens * mask, "attention_mask": mask, "labels": (tokens[0] < 100).long()}


class Classification(Case):
    """One architecture."""

    def __init__(self, name: str, **sizes: int) -> None:
        self.name, self.sizes = name, sizes

    def fit(self, callbacks: list[Any], folder: Path) -> Any:
        """Train for two epochs."""
        model = GLUETransformer(self.name.lower(), **self.sizes)
        self.trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, enable_progress_bar=False)
        self.trainer.fit(model, torch.utils.data.DataLoader(Sentences(), batch_size=16, shuffle=True))
        return model

    def example(self, fitted: Any, seen: Any) -> Any:
        """Return one sentence without its label, by keyword."""
        sentence = Sentences()[0]
        return (), {key: sentence[key][None] for key in ("input_ids", "attention_mask")}

    def reload(self, fitted: Any, folder: Path) -> Any:
        """Through a checkpoint."""
        self.trainer.save_checkpoint(folder / "small.ckpt")
        return GLUETransformer.load_from_checkpoint(folder / "small.ckpt", weights_only=False)

    def predict(self, fitted: Any) -> Any:
        """Return the logits of one sentence."""
        with torch.no_grad():
            return fitted.eval()(**self.example(fitted, None)[1]).logits


if __name__ == "__main__":
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    cases = [
        Classification("BERT", **small),
        Classification("DistilBERT", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        Classification("Llama", num_key_value_heads=2, use_cache=False, **small),
    ]
    run("transformers", version("transformers"), cases)
