"""How fast targets are chosen, and how evenly: python -m benchmarks.masking

Made-up tokens, 64 rows of 512, spans of up to 3 words, in one thread: the median of some turns, in
tokens per second of the processor's time. Then, for words of so many pieces, how often the first
eighth of a sequence is predicted, the rest being its mean: spans without room lose their tail.
"""

import argparse
import statistics
import time
import types
from collections.abc import Sequence

import numpy as np

from deberta_jax.data.config import MaskingConfig
from deberta_jax.data.masking import mask_batch

PIECES, ROWS, TURNS, STEPS = 1000, 64, 9, 20
CLS, SEP = 1, 2
# Ids of pieces: those that begin a word are even. From the second number on they are of a script
# without blanks.
FIRST, FIRST_UNSPACED = 4, PIECES // 2
IDS = np.arange(PIECES + 1)
VOCABULARY = types.SimpleNamespace(
    word_start_V=IDS % 2 == 0,
    unspaced_V=(FIRST_UNSPACED <= IDS) & (IDS < PIECES),
    is_special_V=(IDS < FIRST) | (IDS == PIECES),
    mask_id=PIECES,
    num_ordinary=PIECES - FIRST,
)


def rows(length: int, first: int, last: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, segment ids) of rows of pieces from `first` up to `last`, words at `starts` [B, L]."""
    generator = np.random.default_rng(0)
    ids = generator.integers(first // 2, last // 2, (ROWS, length)) * 2 + ~starts
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids.astype(np.int32), np.ones((ROWS, length), np.int32)


def texts(length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    draws = np.random.default_rng(1).random((ROWS, length))
    none = np.zeros((ROWS, length), bool)
    return {
        "spaced, 1.7 pieces a word": rows(length, FIRST, FIRST_UNSPACED, draws < 0.6),
        "without blanks": rows(length, FIRST_UNSPACED, PIECES, none),
        "half of the words of either": rows(length, FIRST, PIECES, draws < 0.3),
        "one long word": rows(length, FIRST, FIRST_UNSPACED, none),
    }


def tokens_per_second(ids: np.ndarray, segments: np.ndarray) -> float:
    speeds = []
    for turn in range(TURNS):
        start = time.process_time()
        for step in range(STEPS):
            mask_batch(ids, segments, MaskingConfig(), VOCABULARY, seed=turn, step=step)
        speeds.append(STEPS * ids.size / (time.process_time() - start))
    return statistics.median(speeds)


def first_eighth(length: int, pieces: int) -> float:
    """How often its positions are targets, over the mean, where all words have so many pieces."""
    starts = np.zeros((ROWS, length), bool)
    starts[:, 1::pieces] = True
    ids, segments = rows(length, FIRST, FIRST_UNSPACED, starts)
    counts = np.zeros(length)
    for step in range(200):
        masked = mask_batch(ids, segments, MaskingConfig(), VOCABULARY, seed=0, step=step)
        chosen = masked["masked_positions"][masked["masked_weights"] > 0]
        counts += np.bincount(chosen, minlength=length)
    return counts[1 : 1 + length // 8].mean() / counts[1:-1].mean()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=512)
    length = parser.parse_args(argv).length
    for name, text in texts(length).items():
        print(f"{name}: {tokens_per_second(*text) / 1e6:.1f}M tokens/s")
    print(f"\n| pieces a word, L = {length} | first eighth, over the mean |\n|--:|--:|")
    for pieces in (1, 2, 4, 8, 16, 32, 33, 500):
        print(f"| {pieces} | {first_eighth(length, pieces):.2f} |")


if __name__ == "__main__":
    main()
