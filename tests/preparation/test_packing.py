import random

import numpy as np
import pytest

from deberta_jax.data.tokenizer import CLS_ID, SEP_ID
from deberta_jax.errors import UserError
from deberta_jax.preparation.packing import Chunk, pack


def fresh_documents(seed, longest):
    generator = np.random.default_rng(seed)
    lengths = np.r_[generator.integers(1, longest, 60), generator.integers(1, 20, 60), 0]
    return [
        generator.integers(4, 1000, length).astype(np.int32)
        for length in generator.permutation(lengths)
    ]


def in_random_chunks(documents, seed):
    generator = random.Random(seed)
    for tokens in documents:
        cuts = sorted(generator.choices(range(len(tokens) + 1), k=generator.randint(0, 4)))
        for start, end in zip([0, *cuts], [*cuts, None], strict=True):
            yield Chunk(tokens[start:end], end is None)


def whole(documents):
    return [Chunk(tokens, True) for tokens in documents]


def runs(sequence):
    """The tokens of each run, after checking the run's frame."""
    input_ids, segment_ids = sequence
    last = segment_ids.max()
    used = np.count_nonzero(segment_ids)
    assert (segment_ids[:used] > 0).all() and not segment_ids[used:].any()
    assert not input_ids[used:].any()
    assert (np.diff(segment_ids[:used].astype(int)) >= 0).all()
    for number in range(1, last + 1):
        run = input_ids[segment_ids == number]
        assert run[0] == CLS_ID and run[-1] == SEP_ID and len(run) > 2
        assert not np.isin(run[1:-1], [0, CLS_ID, SEP_ID]).any()
        yield run[1:-1]


@pytest.mark.parametrize("length", [8, 32, 128, 1024])
def test_no_token_is_lost_and_no_run_mixes_documents(seed, length):
    documents = fresh_documents(seed, 5 * length)
    sequences = list(pack(whole(documents), length))
    assert {sequence.input_ids.shape for sequence in sequences} == {(length,)}
    found = [run for sequence in sequences for run in runs(sequence)]
    for tokens in documents:
        taken = np.empty(0, np.int32)
        while len(taken) < len(tokens):
            taken = np.concatenate([taken, found.pop(0)])
        np.testing.assert_array_equal(taken, tokens)
    assert not found


@pytest.mark.parametrize("length", [64, 700])
def test_sequences_are_well_filled(seed, length):
    documents = fresh_documents(seed, 5 * length)
    *full, _ = pack(whole(documents), length)
    minimum = max(16, length // 32)
    for sequence in full:
        assert np.count_nonzero(sequence.segment_ids == 0) < minimum + 2


def test_a_fragment_goes_to_the_next_sequence():
    first, second = np.full(100, 7, np.int32), np.full(50, 8, np.int32)
    sequences = list(pack(whole([first, second]), 120))
    # 102 positions are used, 18 left: 16 tokens would fit, which is the least worth a run.
    assert [len(run) for sequence in sequences for run in runs(sequence)] == [100, 16, 34]
    sequences = list(pack(whole([first, second]), 119))
    assert [len(run) for sequence in sequences for run in runs(sequence)] == [100, 50]
    # A whole document is no fragment, however short.
    sequences = list(pack(whole([first, second[:3], second]), 119))
    assert [[len(run) for run in runs(sequence)] for sequence in sequences] == [[100, 3], [50]]


def test_chunks_do_not_matter(seed):
    documents = fresh_documents(seed, 400)
    expected = [np.stack(sequence) for sequence in pack(whole(documents), 96)]
    found = [np.stack(sequence) for sequence in pack(in_random_chunks(documents, seed), 96)]
    np.testing.assert_array_equal(found, expected)


def test_memory_is_bounded():
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield Chunk(np.full(50, 9, np.int32), False)

    sequences = pack(endless(), 64)
    for count in range(1, 100):
        next(sequences)
        assert drawn * 50 <= count * 62 + 64 + 50


@pytest.mark.parametrize("length", [0, 7, 65537])
def test_length_out_of_range(length):
    with pytest.raises(UserError, match=f"data.sequence_length={length}"):
        next(pack([], length))
