"""What pictures are drawn of: a checkpoint or a run with its tokenizer, and real text for it."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deberta_jax.data.config import DataConfig
from deberta_jax.data.packed_text import VALIDATION
from deberta_jax.errors import UserError
from deberta_jax.interop import pretrained
from deberta_jax.interop.names import POSITION_TABLE
from deberta_jax.interop.tokenizers import PretrainedTokenizer, load_tokenizer
from deberta_jax.model.config import ModelConfig
from deberta_jax.preparation.corpora import CorpusReport, documents
from deberta_jax.runs.loading import read_checkpoint
from deberta_jax.runs.opening import Run, is_run, open_run, tokenizer_directory

# Tokens in a sequence of other text than a run's, at the most.
_LONGEST = 512


class OpenedModel(NamedTuple):
    """A model to look into, its tokenizer, and the run that it is of, if any."""

    directory: Path
    config: ModelConfig
    params: Any
    tokenizer: PretrainedTokenizer
    run: Run | None


def open_model(directory: Path, decoder: bool = False) -> OpenedModel:
    """The bare model in `directory`; with `decoder`, one that has the Enhanced Mask Decoder.

    Raises:
        UserError: it is no checkpoint, or has no mask decoder.
    """
    run = open_run(directory) if is_run(directory) else None
    config, tensors = run.released() if run else read_checkpoint(directory)
    if decoder and not (config.decodes_with_emd and POSITION_TABLE in tensors):
        raise UserError(f"--emd: {directory} has no mask decoder (no table of absolute positions)")
    # The decoder's table comes with the masked-LM model; its head is not looked at.
    task, new = ("masked_lm", ["lm_predictions."]) if decoder else (None, ())
    model, params = pretrained.build(config, tensors, task, new=new)
    tokenizer = load_tokenizer(tokenizer_directory(directory) if run else directory)
    return OpenedModel(directory, model.config, params, tokenizer, run)


def sequences(
    model: OpenedModel, text: str | None, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input_ids, segments) [L] of real text: of files, or else held out from the model's run.

    Raises:
        UserError: neither is there, or the text does not fill one sequence.
    """
    if text:
        length = min(model.config.max_position_embeddings, _LONGEST)
        rows = list(itertools.islice(_cut(model.tokenizer, text, length), count))
        if not rows:
            raise UserError(f"--text={text} does not fill one sequence of {length} tokens")
        return [(row, np.ones_like(row)) for row in rows]
    if not model.run:
        raise UserError(f"--text is missing; {model.directory} is no run, and holds no text")
    source = model.run.prepared.source(VALIDATION)
    records = source.__getitems__(list(range(min(count, len(source)))))
    return [(record["input_ids"], record["segment_ids"].astype(np.int32)) for record in records]


def _cut(tokenizer: PretrainedTokenizer, text: str, length: int) -> Iterator[np.ndarray]:
    """Sequences of `length` of the documents' tokens, [CLS] first and [SEP] last; none shorter."""
    limit = DataConfig().max_document_megabytes
    for document in documents(text, DataConfig().text_field, limit, CorpusReport()):
        for piece in document.pieces:
            ids = tokenizer.encode(piece, add_special_tokens=False)
            for start in range(0, len(ids) - length + 3, length - 2):
                words = ids[start : start + length - 2]
                yield np.array([tokenizer.cls_id, *words, tokenizer.sep_id], np.int32)
