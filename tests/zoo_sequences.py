"""Architectures for sequences and tokens written by hand, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.along = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.second(x))


class MlpMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class SpatialGate(nn.Module):
    """gMLP: half of the hidden units gate the other half, after a projection over the tokens."""

    def __init__(self, tokens: int = 16, width: int = 32) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(32, width)
        self.space = nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        return x + self.down(u * self.space(v))


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 32, 4, 4), nn.Sequential(SpatialGate(), SpatialGate())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class TemporalBlock(nn.Module):
    def __init__(self, width: int, inner: int, dilation: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv1d(width, inner, 1), nn.PReLU(), nn.BatchNorm1d(inner))
        depthwise = nn.Conv1d(inner, inner, 3, padding=dilation, dilation=dilation, groups=inner)
        self.depthwise = nn.Sequential(depthwise, nn.PReLU(), nn.BatchNorm1d(inner))
        self.residual, self.skip = nn.Conv1d(inner, width, 1), nn.Conv1d(inner, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.depthwise(self.enter(x))
        return x + self.residual(y), self.skip(y)


class ConvTasNet(nn.Module):
    """Speech separation in one dimension: encoder, masks, decoder."""

    def __init__(self, sources: int = 2, filters: int = 32, width: int = 16) -> None:
        super().__init__()
        self.sources, self.filters = sources, filters
        self.encoder, self.squeeze = nn.Conv1d(1, filters, 8, 4, bias=False), nn.Conv1d(filters, width, 1)
        self.blocks = nn.ModuleList(TemporalBlock(width, 48, 2**power) for power in range(3))
        self.masks = nn.Conv1d(width, sources * filters, 1)
        self.decoder = nn.ConvTranspose1d(filters, 1, 8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        encoded = F.relu(self.encoder(x))
        y, total = self.squeeze(encoded), torch.zeros(())
        for block in self.blocks:
            y, skip = block(y)
            total = total + skip
        masks = torch.sigmoid(self.masks(total)).view(x.shape[0], self.sources, self.filters, -1)
        separated = (masks * encoded[:, None]).view(x.shape[0] * self.sources, self.filters, -1)
        return self.decoder(separated).view(x.shape[0], self.sources, -1)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


class BiLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv1d(8, 24, 3, padding=1)
        self.lstm = nn.LSTM(24, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.relu(self.features(x)).transpose(1, 2))[0])


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gru = nn.Linear(8, 24), nn.GRU(24, 32, num_layers=2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.gru(torch.relu(self.enter(x)))
        return self.head(states.mean(0) + last[-1])


class CrnnBlock(nn.Sequential):
    def __init__(self, made_of: int, makes: int) -> None:
        super().__init__(nn.Conv2d(made_of, makes, 3, padding=1), nn.BatchNorm2d(makes), nn.ReLU(), nn.MaxPool2d(2))


class Crnn(nn.Module):
    """Text recognition: columns of a feature map read by a GRU in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(CrnnBlock(1, 16), CrnnBlock(16, 32))
        self.gru, self.head = nn.GRU(32 * 4, 24, bidirectional=True, batch_first=True), nn.Linear(48, 11)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.gru(columns)[0])


class Attention(nn.Module):
    """Heads found by ``C // num_heads`` in the code, one projection for query, key and value."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


class TinyVit(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(Attention(width, 4) for _ in range(2))
        mlp = [nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width)) for _ in range(2)]
        self.mlps, self.scale = nn.ModuleList(mlp), nn.Parameter(torch.ones(2, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        for layer in range(2):
            x = x + self.scale[layer] * self.attentions[layer](self.norms[2 * layer](x))
            x = x + self.mlps[layer](self.norms[2 * layer + 1](x))
        return self.head(x[:, 0])


class EinsumAttention(nn.Module):
    """Heads as axes of the weights themselves, contracted by einsum."""

    def __init__(self, width: int = 24, heads: int = 4, inner: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, inner) / 5) for _ in range(3))
        self.out, self.head = nn.Parameter(torch.randn(heads, inner, width) / 5), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        q, k, v = (torch.einsum("btd,dhe->bthe", x, weight) for weight in (self.q, self.k, self.v))
        weights = torch.einsum("bthe,bshe->bhts", q, k).softmax(-1)
        mixed = torch.einsum("bhts,bshe->bthe", weights, v)
        return self.head(x + torch.einsum("bthe,hed->btd", mixed, self.out))


class EncoderDecoder(nn.Module):
    """A torch.nn.Transformer whose attention modules keep their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.enter(x)).mean(1))


class WaveNet(nn.Module):
    """Gated dilated convolutions: tanh times sigmoid of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 16, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(16, 48, 2, dilation=2**power, padding=2**power) for power in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(24, 16, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for dilated, residual in zip(self.dilated, self.residual, strict=True):
            value, gate = dilated(x)[..., : x.shape[-1]].chunk(2, 1)
            x = x + residual(torch.tanh(value) * torch.sigmoid(gate))
        return self.head(x)


class Recommender(nn.Module):
    """Embeddings of two tables, tied output, keyword inputs and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 16), nn.Embedding(30, 16)
        self.tower = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        both = self.tower(torch.cat([self.users(users), self.items(items)], -1))
        return both @ self.items.weight.T, both.norm(dim=-1)
