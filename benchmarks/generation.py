"""A decoder with its cache on the phone: its tokens beside eager ones, its time for a token, dense, half and in 8 bits.

    PYTHONPATH=. python -m benchmarks.generation train      # 850 steps on the interpreter's sources
    PYTHONPATH=. python -m benchmarks.generation tokens     # five prompts, in ExecuTorch's own runner and in 8 bits
    PYTHONPATH=. python -m benchmarks.generation time       # a token, dense and with half of its heads and hidden units
    PYTHONPATH=. python -m benchmarks.generation attention  # of a token, beside one that repeats keys and values

The decoder is that of ``examples/code_model.py``: 256 wide, two blocks, eight heads of queries for two of keys, 1.6 M
parameters. Times are of one thread of the processor, in turns, after 40 tokens; the cache has 256 places.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import Compaction, channel_groups, compact
from lightning_prune.deploy import XNNPACK, Generation, Int8Dynamic, RuntimeModel, benchmark, export

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from code_model_data import split, tokens, write_tokenizer
from code_model_decoder import Attention, Decoder

PROMPTS = (
    "\tdef __init__(self, ",
    "import os\nimport sys\n\n",
    "\t\traise ValueError(",
    "\tfor line in ",
    "class Error(Exception):\n\t",
)
NEW, LENGTH, AT = 64, 256, 40
BATCH = 16


def trained(path: Path, steps: int, seconds: float) -> None:
    """Train the decoder on one thread, and write its weights."""
    import time

    train, test = split(BATCH * steps)
    torch.manual_seed(0)
    model, begun = Decoder(), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step, batch in enumerate(train[torch.randperm(len(train))].split(BATCH)):
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if time.time() - begun > seconds:
            print(f"stopped after {step + 1} steps")
            break
    torch.save(model.state_dict(), path)
    print(f"{bits(model, test[:256]):.2f} bits per byte on files that were not trained on")


@torch.no_grad()
def bits(model: Decoder, texts: Tensor) -> float:
    """Return the bits per byte of texts."""
    losses = [F.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()) for part in texts.split(32)]
    return float(torch.stack(losses).mean() / torch.log(torch.tensor(2.0)))


def loaded(path: Path) -> Decoder:
    """Return the trained decoder, with a longer cache."""
    model = Decoder(length=LENGTH)
    model.load_state_dict(torch.load(path))
    return model.eval()


def half(model: Decoder) -> Decoder:
    """Return it with half of its heads and hidden units; the stream stays."""
    model = copy.deepcopy(model)
    x = torch.zeros(1, 5, dtype=torch.long), torch.arange(5)
    groups = channel_groups(model, x)
    gone = [group for group in groups if group.prunable and group.name.startswith("blocks.")]
    plan = Compaction.from_keep(groups, {group.name: range(group.size // 2) for group in gone})
    report = compact(model, plan, x)
    print(f"half: {len(gone)} channel groups, {report.parameters_before:,} -> {report.parameters_after:,} parameters")
    return model


def greedy(step: Callable[[Tensor, Tensor], Tensor], prompt: list[int], forced: list[int] | None = None) -> list[int]:
    """Return the likeliest next tokens; each call is fed with the one before, or with the forced one."""
    logits, written = step(torch.tensor([prompt]), torch.arange(len(prompt))), list[int]()
    for index in range(NEW):
        written.append(int(logits[0, -1].argmax()))
        following = written[-1] if forced is None else forced[index]
        logits = step(torch.tensor([[following]]), torch.tensor([len(prompt) + index]))
    return written


def runner_bytes(program: Path, tokenizer: Path, prompt: str) -> list[str]:
    """Return what ExecuTorch's own runner writes, piece by piece."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    pieces = list[str]()
    runner = TextLLMRunner(str(program), str(tokenizer))
    runner.generate(prompt, GenerationConfig(echo=False, max_new_tokens=NEW, temperature=0.0), pieces.append)
    return pieces


def repeats(written: list[int]) -> float:
    """Return the share of runs of eight tokens that came before."""
    runs = [tuple(written[start : start + 8]) for start in range(len(written) - 7)]
    return 1 - len(set(runs)) / len(runs)


@torch.no_grad()
def of_tokens(model: Decoder, folder: Path) -> None:
    """Print a row for each prompt."""
    generation, eight = Generation(LENGTH, eos=0), XNNPACK(quantization=Int8Dynamic())
    whole = export(model, folder / "float.pte", generation=generation)
    small = export(model, folder / "int8.pte", generation=generation, backend=eight)
    print(f"float {whole.size_bytes:,} bytes, 8 bits {small.size_bytes:,} bytes, {small.sqnr_db:.1f} dB")
    tokenizer, program = write_tokenizer(folder / "tokenizer.json"), RuntimeModel(small.path)
    print("| prompt | in ExecuTorch's runner | 8 bits, eager tokens fed | repeated | what it writes |")
    print("| --- | --- | --- | --- | --- |")
    for prompt in PROMPTS:
        wanted = greedy(model, tokens(prompt))
        pieces = runner_bytes(whole.path, tokenizer, prompt)
        same = sum(a == bytes([b]).decode(errors="replace") for a, b in zip(pieces, wanted, strict=False))
        program.reset()
        forced = greedy(lambda *call: program(*call)[0], tokens(prompt), wanted)
        close = sum(a == b for a, b in zip(forced, wanted, strict=True))
        row = f"`{prompt!r}` | {same} of {NEW} | {close} of {NEW} | {repeats(wanted):.0%} | `{bytes(wanted)!r}`"
        print(f"| {row} |", flush=True)


def of_time(model: Decoder, folder: Path) -> None:
    """Print milliseconds for a token, dense and half, in float and 8 bits."""
    paths, generation = {}, Generation(LENGTH, eos=0)
    for name, each in (("dense", model), ("half", half(model))):
        for kind, backend in (("float", XNNPACK()), ("8 bits", XNNPACK(quantization=Int8Dynamic(min_output_sqnr=0.0)))):
            paths[f"{name}, {kind}"] = folder / f"{name}{kind[0]}.pte"
            export(each, paths[f"{name}, {kind}"], generation=generation, backend=backend)
    times = benchmark(paths, (torch.tensor([[65]]), torch.tensor([AT])))
    print("| decoder | bytes | ms a token | of dense |\n| --- | --- | --- | --- |")
    for name, path in paths.items():
        dense = times[f"dense, {name.partition(', ')[2]}"].median_ms
        ms = times[name].median_ms
        print(f"| {name} | {path.stat().st_size:,} | {ms:.3f} | {ms / dense:.2f} |", flush=True)


class Alone(nn.Module):
    """One attention of a decoder."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.attention = copy.deepcopy(decoder.blocks[0].attention)
        self.places, self.cos, self.sin = decoder.places, decoder.cos, decoder.sin

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Return the same shape as x (1, 1, 256)."""
        mask = torch.where(self.places <= position.unsqueeze(1), 0.0, -1e9).to(x.dtype)
        return self.attention(x, (self.cos[position], self.sin[position]), position, mask)


class Broadcast(Attention):
    """The same whose product broadcasts keys and values to the heads of queries."""

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], position: Tensor, mask: Tensor) -> Tensor:
        """Map (1, n, width) to the same."""
        from code_model_decoder import turned

        q, k, v = (p(x).unflatten(2, (-1, self.size)).transpose(1, 2) for p in (self.query, self.key, self.value))
        q, k = turned(q, *turn), turned(k, *turn)
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        scores = q.unflatten(1, (self.keys.shape[1], -1)) @ self.keys.unsqueeze(2).transpose(3, 4)
        y = (scores * self.size**-0.5 + mask).softmax(-1) @ self.values.unsqueeze(2)
        return self.out(y.flatten(1, 2).transpose(1, 2).flatten(2))


def of_attention(model: Decoder, folder: Path) -> None:
    """Print milliseconds of an attention for a token, as rows and broadcast."""
    call, paths = (torch.randn(1, 1, 256), torch.tensor([AT])), {}
    for name, kind in (("rows", Attention), ("broadcast", Broadcast)):
        alone = Alone(model)
        alone.attention.__class__ = kind
        paths[name] = folder / f"{name}.pte"
        export(alone.eval(), paths[name], example_inputs=call)
    times = benchmark(paths, call)
    ratio = times["rows"].median_ms / times["broadcast"].median_ms
    print(f"rows {times['rows'].median_ms:.3f} ms, broadcast {times['broadcast'].median_ms:.3f} ms: {ratio:.2f}")


def main() -> None:
    """Do one of four things."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "tokens", "time", "attention"))
    parser.add_argument("--weights", type=Path, default=Path("generation.pt"))
    parser.add_argument("--steps", type=int, default=850, help="of training, within --seconds")
    parser.add_argument("--seconds", type=float, default=840.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "train":
        trained(options.weights, options.steps, options.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        {"tokens": of_tokens, "time": of_time, "attention": of_attention}[options.what](
            loaded(options.weights), Path(folder)
        )


if __name__ == "__main__":
    main()
