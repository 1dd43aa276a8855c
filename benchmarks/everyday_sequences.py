"""Everyday networks for sequences and tokens, tiny but of the real shape, each in `nn.` and in `F.` spelling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.everyday_images import Call, Spelled


class Lstm(nn.Module):
    """Two layers of nn.LSTM over a normalised series, averaged over time."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.norm, self.lstm = s.norm("layer", 8), nn.LSTM(8, 32, 2, batch_first=True)
        self.pool = s.of(lambda: nn.AdaptiveAvgPool1d(1), F.adaptive_avg_pool1d, 1)
        self.hidden, self.act, self.head = nn.Linear(32, 32), s.act("relu"), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        y, _ = self.lstm(self.norm(x))
        return self.head(self.act(self.hidden(self.pool(y.transpose(1, 2)).squeeze(-1))))


class Causal(nn.Module):
    """Two dilated convolutions that see the past only, with weight norm, around a shortcut."""

    def __init__(self, s: Spelled, made_of: int, makes: int, dilation: int) -> None:
        super().__init__()
        layers = []
        for width in (made_of, makes):
            conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, makes, 3, dilation=dilation))
            layers += [s.pad((2 * dilation, 0)), conv, s.norm("batch1d", makes), s.act("relu")]
        self.body, self.short = nn.Sequential(*layers), nn.Conv1d(made_of, makes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same length."""
        return F.relu(self.body(x) + self.short(x))


class Tcn(nn.Module):
    """Three dilations, pooled in between, the last step is classified."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        pool = s.of(lambda: nn.MaxPool1d(2), F.max_pool1d, 2), s.of(lambda: nn.AvgPool1d(2), F.avg_pool1d, 2)
        self.body = nn.Sequential(Causal(s, 8, 16, 1), pool[0], Causal(s, 16, 32, 2), pool[1], Causal(s, 32, 32, 4))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.body(x)[:, :, -1])


class SelfAttention(nn.Module):
    """Attention by `F.scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.depth = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the same shape."""
        parts = [each(x).unflatten(2, (-1, self.depth)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        return self.out(F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """An encoder layer that is written out; torch's own stands for it in the other spelling."""

    def __init__(self, s: Spelled, width: int, heads: int, is_first: bool) -> None:
        super().__init__()
        self.attention, self.is_first = SelfAttention(width, heads), is_first
        self.before, self.between = s.norm("layer", width), s.norm("layer", width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), s.act("gelu"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the same shape."""
        if self.is_first:
            x = x + self.attention(self.before(x), mask)
            return x + self.mlp(self.between(x))
        x = self.before(x + self.attention(x, mask))
        return self.between(x + self.mlp(x))


class Vit(nn.Module):
    """Patches, a class token, places that are interpolated to the number of patches, layers with the norm first."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 1, 32) / 5)
        self.places = nn.Parameter(torch.randn(1, 32, 4, 4) / 5)
        torchs = {"batch_first": True, "norm_first": True, "activation": "gelu", "dropout": 0.0}
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 2, 128, **torchs) if s.spelling == "nn" else Layer(s, 32, 2, True)
              for _ in range(2))
        )  # fmt: skip
        self.norm, self.head = s.norm("layer", 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.patches(x)
        x = x + F.interpolate(self.places, size=x.shape[2:], mode="bicubic", align_corners=False)
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(self.layers(x))[:, 0])


class Bert(nn.Module):
    """Token and place embeddings, layers with the norm last, a mask of padding as an input, a pooled first token."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        self.s, self.words, self.places = s, nn.Embedding(200, 32, padding_idx=0), nn.Embedding(16, 32)
        self.norm = s.norm("layer", 32)
        if s.spelling == "nn":
            layer = nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            self.layers = nn.ModuleList(Layer(s, 32, 2, False) for _ in range(2))
        self.pooler, self.tanh, self.head = nn.Linear(32, 32), s.of(nn.Tanh, torch.tanh), nn.Linear(32, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return logits; the mask is 1 at tokens and 0 at padding."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        if self.s.spelling == "nn":
            x = self.norm(self.words(tokens) + self.places(places))
            x = self.layers(x, src_key_padding_mask=mask == 0)
        else:
            x = self.norm(F.embedding(tokens, self.words.weight, 0) + self.places(places))
            bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
            for layer in self.layers:  # type: ignore[union-attr]
                x = layer(x, bias)
        return self.head(self.tanh(self.pooler(x[:, 0])))


class Keyword(nn.Module):
    """A depthwise-separable CNN over 49 frames of 40 mel bands, with repeated borders and average pooling."""

    def __init__(self, s: Spelled) -> None:
        super().__init__()
        blocks = []
        for _ in range(2):
            blocks += [s.conv(32, 32, groups=32, act="relu"), s.conv(32, 32, 1, act="relu")]
        stem = nn.Conv2d(1, 32, (10, 4), (2, 2), bias=False)
        self.stem = nn.Sequential(s.pad((1, 1, 4, 4), "replicate"), stem, s.norm("batch", 32), s.act("relu"))
        self.body = nn.Sequential(*blocks, s.avg_pool((2, 2), 2), s.conv(32, 64, act="relu"))
        self.norm = Call(F.local_response_norm, 3) if s.spelling == "F" else nn.LocalResponseNorm(3)
        self.pool = s.of(lambda: nn.AvgPool2d((12, 10)), F.avg_pool2d, (12, 10))
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.pool(self.norm(self.body(self.stem(x)))).flatten(1))
