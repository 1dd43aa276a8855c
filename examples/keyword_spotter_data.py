"""Speech-like streams from a small formant synthesiser: words in a row, by speakers that differ, in noise; and judging.

Nothing is recorded or downloaded. A phone (a sound of a language) is a length, how much voice and how much noise is in
it, three formants and the middle of its noise; a speaker changes pitch, speed, vocal tract and each phone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import TensorDataset

RATE, HOP = 8000, 80
"""Samples a second, and in a step of 10 ms."""
KEYWORD = "m a r v i n"
OTHERS = [
    "m a r t i n", "m a r b o l", "k a r v i ng", "n a r v i k", "m i r v a n", "a r i v", "r o b i n", "v i n o",
    "m o v i ng", "sh o p i ng", "s i t i", "b a n a n a", "l a m p", "p e p er", "t o k", "d e s k", "w i n d o",
    "s u n", "f a s t er", "l i t o l", "m u n", "n e v er", "sh a d o", "z i p er", "k o m p u t er",
    "g a r d e n", "w o t er", "i z i", "er l i", "f e n s",
]  # fmt: skip
PHONES = {
    # seconds, voice, noise, first three formants, middle of the noise
    "a": (0.13, 1.0, 0.00, (730, 1090, 2440), 1500), "e": (0.11, 1.0, 0.00, (530, 1840, 2480), 1500),
    "i": (0.11, 0.9, 0.00, (280, 2250, 2950), 1500), "o": (0.12, 1.0, 0.00, (570, 860, 2410), 1500),
    "u": (0.11, 0.9, 0.00, (310, 880, 2240), 1500), "er": (0.13, 0.9, 0.00, (490, 1350, 1690), 1500),
    "m": (0.08, 0.5, 0.00, (250, 1000, 2200), 1500), "n": (0.08, 0.5, 0.00, (250, 1500, 2500), 1500),
    "ng": (0.09, 0.5, 0.00, (250, 2000, 2600), 1500), "l": (0.07, 0.7, 0.00, (360, 1100, 2700), 1500),
    "r": (0.07, 0.7, 0.00, (330, 1060, 1400), 1500), "w": (0.07, 0.7, 0.00, (300, 650, 2200), 1500),
    "v": (0.07, 0.4, 0.10, (300, 1200, 2300), 2800), "z": (0.08, 0.4, 0.25, (300, 1500, 2500), 3700),
    "s": (0.11, 0.0, 0.45, (300, 1500, 2500), 3700), "sh": (0.11, 0.0, 0.50, (300, 1600, 2400), 2500),
    "f": (0.10, 0.0, 0.15, (300, 1200, 2300), 2800), "-": (0.05, 0.0, 0.00, (300, 1500, 2500), 1500),
    "p": (0.02, 0.0, 0.50, (300, 900, 2200), 900), "t": (0.02, 0.0, 0.60, (300, 1700, 2600), 3400),
    "k": (0.03, 0.0, 0.60, (300, 1900, 2400), 1900), "b": (0.03, 0.4, 0.15, (250, 800, 2200), 800),
    "d": (0.03, 0.4, 0.20, (250, 1700, 2600), 3000), "g": (0.03, 0.4, 0.20, (250, 1900, 2300), 1900),
}  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """What a microphone hears.

    Args:
        samples: in [-1, 1], at 8 kHz; a whole number of steps.
        words: first and last step of each keyword in it.
    """

    samples: np.ndarray
    words: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """Return 1 for the steps at which a keyword has just been said, from two before its end to eight after it."""
        wanted = np.zeros(len(self.samples) // HOP, np.float32)
        for _, end in self.words:
            wanted[end - 2 : end + 9] = 1
        return wanted


def stream(speaker: int, seconds: float) -> Stream:
    """Return a stream of one speaker: a word in five is the keyword, words and pauses are drawn.

    Args:
        speaker: a number; every one is another voice, and says other words.
        seconds: of the stream.
    """
    draw = np.random.default_rng(speaker)
    tract, pitch, pace = draw.uniform(0.88, 1.15), draw.uniform(85, 220), draw.uniform(0.8, 1.25)
    accent = {phone: draw.normal(1, 0.03, 3) * tract for phone in PHONES}
    tilt, breath = draw.uniform(0.8, 1.6), draw.uniform(0, 0.08)
    steps, rows, words = int(seconds * RATE / HOP), [], []
    while True:
        pause = [(*PHONES["-"][1:3], *PHONES["-"][3] * accent["-"], 1500, pitch)] * draw.integers(4, 60)
        word = KEYWORD if draw.random() < 0.2 else OTHERS[draw.integers(len(OTHERS))]
        speed, loud, high, said = pace * draw.uniform(0.85, 1.15), draw.uniform(0.5, 1), draw.uniform(0.9, 1.1), []
        for phone in word.replace("p", "- p").replace("t", "- t").replace("k", "- k").split():
            length, voice, noise, formants, middle = PHONES[phone]
            count = max(1, round(100 * length * speed * draw.uniform(0.8, 1.2)))
            formants = formants * accent[phone] * draw.normal(1, 0.02, 3)
            said += [(loud * voice, loud * noise, *formants, middle * tract, pitch * high)] * count
        if len(rows) + len(pause) + len(said) > steps - 10:
            break
        rows += pause + said
        if word is KEYWORD:
            words.append((len(rows) - len(said), len(rows)))
    rows += [pause[0]] * (steps - len(rows))
    clean = spoken(np.array(rows), tilt, breath, draw)
    return Stream(mixed(clean, draw), np.array(words).reshape(-1, 2))


def streams(first: int, count: int, seconds: float) -> list[Stream]:
    """Return streams of speakers, from a number on."""
    return [stream(speaker, seconds) for speaker in range(first, first + count)]


def dataset(heard: list[Stream]) -> TensorDataset:
    """Return streams of one length: samples (streams, samples) and targets (streams, steps)."""
    sides = [x.samples for x in heard], [x.targets for x in heard]
    return TensorDataset(*(torch.from_numpy(np.stack(side)) for side in sides))


def spoken(rows: np.ndarray, tilt: float, breath: float, draw: np.random.Generator) -> np.ndarray:
    """Return the samples of steps (n, 7): voice, noise, three formants, middle of the noise, pitch.

    Pulses at the pitch and white noise go through the formants, window by window.
    """
    kernel = np.hanning(7)[1:-1] / np.hanning(7)[1:-1].sum()
    rows = np.apply_along_axis(np.convolve, 0, np.pad(rows, ((2, 2), (0, 0)), "edge"), kernel, "valid")
    voice, noise, pitch = rows[:, :1], rows[:, 1:2], np.repeat(rows[:, 6], HOP)
    phase = np.cumsum(pitch * draw.normal(1, 0.02, len(rows)).repeat(HOP) / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0) * np.sqrt(RATE / pitch)
    hertz = np.linspace(1, RATE / 2, 129)
    formants, widths = rows[:, 2:5, None], np.array([60, 90, 150])[:, None]
    mouth = np.prod(formants**2 / np.hypot(formants**2 - hertz**2, widths * hertz), 1) / (1 + (hertz / 500) ** tilt)
    hiss = np.exp(-(((hertz - rows[:, 5:6]) / 700) ** 2))
    window, sides = np.hanning(2 * HOP + 1)[:-1], []
    for source in (pulses, draw.normal(size=len(pulses))):
        padded = np.pad(source, (0, HOP))
        sides.append(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP] * window, 256))
    shaped = np.fft.irfft(voice * mouth * (sides[0] + breath * sides[1]) + 3 * noise * hiss * sides[1], 256)
    # zero phase: the second half of an impulse lies before it
    shaped = np.roll(shaped, 48, 1)
    samples = np.zeros(len(rows) * HOP + 256)
    for part in range(0, 256, HOP):  # four parts of a window, each added at its place
        piece = shaped[:, part : part + HOP]
        ends = samples[part : part + len(rows) * HOP].reshape(len(rows), HOP)
        ends[:, : piece.shape[1]] += piece
    return samples[: len(rows) * HOP]


def mixed(clean: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return speech as a microphone has it: in noise of a room and of other voices, loud or soft."""
    level = np.sqrt((clean**2).mean())
    hum = np.convolve(draw.normal(size=len(clean)), 0.7 ** np.arange(16), "same")
    voices = sum(np.roll(clean[::-1], int(shift)) for shift in draw.integers(len(clean), size=4))
    samples = clean.copy()
    for other, decibels in ((hum, draw.uniform(10, 30)), (voices, draw.uniform(12, 30))):
        samples += other * level / np.sqrt((other**2).mean()) * 10 ** (-decibels / 20)
    return (samples * 10 ** draw.uniform(-1.6, -0.8) / level).clip(-1, 1).astype(np.float32)


def alarms(scores: np.ndarray, threshold: float) -> list[int]:
    """Return the steps at which the mean of five scores reaches the threshold, none within 0.4 s of the last."""
    means, found = np.convolve(scores, np.full(5, 0.2))[: len(scores)], list[int]()
    for step in np.flatnonzero(means >= threshold):
        if not found or step >= found[-1] + 40:
            found.append(int(step))
    return found


def judged(scores: list[np.ndarray], heard: list[Stream], threshold: float) -> tuple[float, float]:
    """Return the share of keywords without an alarm by half a second after their end, and other alarms an hour."""
    missed = false = said = steps = 0
    for row, stream in zip(scores, heard, strict=True):
        at = np.array(alarms(row, threshold))
        hits = (at >= stream.words[:, :1]) & (at <= stream.words[:, 1:] + 50)
        missed += int((~hits.any(1)).sum())
        false += int((~hits.any(0)).sum())
        said, steps = said + len(hits), steps + len(row)
    return missed / said, false * 3600 * RATE / HOP / steps


def chosen(scores: list[np.ndarray], heard: list[Stream], most: float) -> float:
    """Return the lowest threshold with at most so many false alarms an hour."""
    low, high = np.quantile(np.concatenate(scores), 0.9), max(map(np.max, scores))
    levels = [*np.linspace(low, high, 200), np.inf]  # the last lets nothing through
    return next(float(level) for level in levels if judged(scores, heard, level)[1] <= most)
