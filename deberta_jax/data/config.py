"""The fields of the input pipeline: where text comes from, how it is packed and masked."""

import dataclasses

from deberta_jax.data.words import MAX_PIECES, MAX_UNSPACED_PIECES


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From text to packed sequences.

    Everything but `dir`, `workers` and `prefetch` shapes the prepared data.
    """

    # Text to learn from: paths or globs of .txt, .md, .jsonl, .json files (also .gz, .xz, .bz2),
    # separated by commas, except where a file has the comma in its name; "package:NAME/GLOB" takes
    # files that an installed Python package carries.
    corpus: str = ""
    # Held-out text in the same form. Empty: `validation_share` of the corpus's documents.
    validation_corpus: str = ""
    # Share of documents held out when there is no `validation_corpus`.
    validation_share: float = 0.05
    # The field that holds the text in each object of a .jsonl or .json file.
    text_field: str = "text"
    # Seed of the held-out split and of the tokenizer's sample of sentences.
    seed: int = 0
    # Where the prepared data lives. Empty: `data` in the workdir.
    dir: str = ""
    # Pieces in the SentencePiece vocabulary, the four special ones included, [MASK] not.
    vocab_size: int = 128_000
    # A tokenizer to use as it is: a SentencePiece model, the tokenizer.json of a unigram tokenizer,
    # or the directory of either, such as a checkpoint's. Empty: train one on the corpus.
    tokenizer: str = ""
    # Sentences that the tokenizer is trained on, drawn at random when the corpus has more.
    tokenizer_sentences: int = 5_000_000
    # Tokens in a packed sequence, [CLS], [SEP] and padding included.
    sequence_length: int = 512
    # Longest single document held in memory, in megabytes, where the format cannot be streamed.
    max_document_megabytes: int = 256
    # Processes that tokenize while preparing. 0: one for each core.
    workers: int = 0
    # Batches that the input pipeline prepares ahead of the training step.
    prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Which tokens become targets, and what the model sees in their place."""

    # Share of a sequence's tokens that are predicted.
    rate: float = 0.15
    # Longest span in words, lengths drawn with p(n) proportional to 1/n. 1: single tokens.
    max_ngram: int = 3
    # Longest word in pieces. Of what is longer (a URL, base64, DNA), every piece counts as a word.
    max_word_pieces: int = MAX_PIECES
    # The same for words of a script without blanks between words (Chinese, Japanese, Thai, ...).
    # Set it to `max_word_pieces` for text that was segmented into words, with blanks, beforehand.
    max_unspaced_pieces: int = MAX_UNSPACED_PIECES
    # Share of the targets replaced by [MASK].
    mask_share: float = 0.8
    # Share of the targets replaced by a random ordinary token; the rest stay as they are.
    random_share: float = 0.1
    # Room for targets in a sequence, a static shape. 0: rate x sequence_length, rounded up to a
    # multiple of 8.
    num_predictions: int = 0
