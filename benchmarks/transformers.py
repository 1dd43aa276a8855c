"""Half of every channel group of torch's and torchvision's transformers goes; the table goes to docs/transformers.md.

    python -m benchmarks.transformers

torchvision's rows are left as they are where it is not installed.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.model.summary import measure_macs

PAGE = Path(__file__).parent.parent / "docs" / "transformers.md"
WIDTHS = "then the widths of the heads"


class Encoder(nn.Module):
    """Four layers of ``nn.TransformerEncoderLayer`` behind a Linear."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True, norm_first=norm_first)
        self.into, self.encoder = (
            nn.Linear(32, 256),
            nn.TransformerEncoder(layer, 4, enable_nested_tensor=not norm_first),
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        """Return ten numbers for each place."""
        return self.head(self.encoder(self.into(x), src_key_padding_mask=padded))


class Decoder(nn.Module):
    """Four layers of ``nn.TransformerDecoderLayer``, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(256, 8, 1024, batch_first=True)
        self.into, self.decoder, self.head = nn.Linear(32, 256), nn.TransformerDecoder(layer, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return ten numbers for each place."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.decoder(self.into(x), self.into(memory), tgt_mask=mask))


def cases() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[Any, ...]]]:
    """Yield name, network and inputs."""
    x, padded = torch.randn(2, 16, 32), torch.arange(16).expand(2, 16) >= torch.tensor([[16], [10]])
    yield "`nn.TransformerEncoder`, norm first", lambda: Encoder(True), (x,)
    yield "`nn.TransformerEncoder`, norm last", lambda: Encoder(False), (x,)
    yield "`nn.TransformerEncoder`, padded", lambda: Encoder(False), (x, padded)
    yield f"`nn.TransformerEncoder`, norm first, {WIDTHS}", lambda: Encoder(True), (x,)
    yield "`nn.TransformerDecoder`, causal mask", Decoder, (x, x[:, :12])
    yield f"`nn.TransformerDecoder`, causal mask, {WIDTHS}", Decoder, (x, x[:, :12])
    if find_spec("torchvision") is not None:
        from torchvision import models  # pyright: ignore[reportMissingImports]

        picture = torch.randn(1, 3, 224, 224)
        yield (
            "torchvision ViT, 4 layers of ViT-B/16",
            lambda: models.VisionTransformer(224, 16, 4, 12, 768, 3072),
            (picture,),
        )
        yield "torchvision Swin-T", models.swin_t, (picture,)
        yield "torchvision Swin-T, version 2", models.swin_v2_t, (torch.randn(1, 3, 256, 256),)
        yield "torchvision MaxViT-T", models.maxvit_t, (picture,)


def row(name: str, make: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> str:
    """Remove half of every channel group and compare with the masked network on torch's fast path."""
    torch.manual_seed(0)
    model = make().double().eval()
    for parameter in model.parameters():
        # nothing at a special value: torchvision's heads begin with zeros, which would hide any error
        parameter.data.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() < 2 else 0.02))
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    macs, dense = measure_macs(model, inputs).total, sum(x.numel() for x in model.parameters())
    errors, traced, compacted, removals, put_back = [], 0.0, 0.0, 0, 0
    for attention in ("heads", "width") if name.endswith(WIDTHS) else ("heads",):
        start = time.process_time()
        groups = channel_groups(model, inputs, attention=attention)
        traced += time.process_time() - start
        halved = [group for group in groups if group.prunable and group.size > 1]
        if attention == "width":  # the hidden units have gone
            halved = [group for group in halved if any("attn" in member.parameter for member in group.members)]
        plan = Compaction.from_keep(groups, {group.name: range((group.size + 1) // 2) for group in halved})
        plan.mask(masked := deepcopy(model))
        start = time.process_time()
        report = compact(model, plan, inputs)
        compacted += time.process_time() - start
        removals, put_back = removals + len(plan.removals), put_back + len(report.put_back)
        with torch.no_grad():
            wanted, outputs = masked(*inputs), model(*inputs)
        errors.append(float((wanted - outputs).abs().max() / wanted.abs().max()))
    left = sum(x.numel() for x in model.parameters()) / dense
    share = measure_macs(model, inputs).total / macs
    cells = (
        *(name, f"{dense / 1e6:.1f} M", f"{left:.1%}", f"{share:.1%}", f"{max(errors):.0e}"),
        *(removals, put_back, f"{traced:.1f}", f"{compacted:.1f}"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    for name, make, inputs in cases():
        made = row(name, make, inputs)
        print(made, flush=True)
        page = re.sub(rf"^\| {re.escape(name)} \|.*$", lambda _, made=made: made, page, flags=re.MULTILINE)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
