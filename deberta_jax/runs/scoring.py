"""Zero-shot scores of sentences and minimal pairs by a checkpoint or a run."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deberta_jax import storage
from deberta_jax.data.formats.json_text import json_line
from deberta_jax.errors import UserError
from deberta_jax.evaluation import token_detection
from deberta_jax.evaluation.likelihood import METHODS as LIKELIHOODS
from deberta_jax.evaluation.likelihood import Marks, log_likelihoods
from deberta_jax.evaluation.sentence_files import PAIR_FIELDS, Item
from deberta_jax.interop import pretrained
from deberta_jax.interop.names import task_of_tensors
from deberta_jax.interop.released import Released
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.model.heads import DebertaForMaskedLM
from deberta_jax.model.task_heads import DebertaForReplacedToken
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.runs.loading import open_checkpoint

AUTO = "auto"
METHODS = (*LIKELIHOODS, token_detection.METHOD)
_LM_BIAS = "lm_predictions.lm_head.bias"


class Scored(NamedTuple):
    """An item with, for each of its sentences, the number of its tokens and its score in nats.

    `replaced` holds, for each sentence, its pieces and how likely each was replaced; only by "rtd".
    """

    item: Item
    tokens: list[int]
    scores: list[float]
    replaced: list[list[tuple[str, float]]] | None = None


def score(
    checkpoint_directory: Path,
    items: Sequence[Item],
    *,
    method: str = AUTO,
    dtype: str = "float32",
    batch_tokens: int = 16_384,
    log: Callable[[str], None] = print,
) -> tuple[list[Scored], str]:
    """Log-likelihoods of the items' sentences, and the method that was used.

    By "rtd" a score is ln p(no token was replaced), the sum over the sentence's tokens of the
    discriminator's ln(1 - p); each token's p is there as well.

    Items that are empty, or longer than the model reads, are left out and counted in the log.

    Args:
        checkpoint_directory: a run, an export or a released checkpoint.
        items: sentences, or pairs of them.
        method: one of `METHODS`; "auto" takes "rtd" where the checkpoint has that head, "ll" where
            the model is causal, else "pll".
        dtype: type that the model computes in.
        batch_tokens: tokens computed at once.
        log: takes lines of progress.

    Raises:
        UserError: the method does not suit the model, or nothing is left to score.
    """
    checkpoint, tokenizer_directory = open_checkpoint(checkpoint_directory, "score")
    tokenizer = load_tokenizer(tokenizer_directory)
    method = _method(method, checkpoint, log)
    config = dataclasses.replace(checkpoint.config, causal=method == "ll")
    head = "replaced_token" if method == token_detection.METHOD else "masked_lm"
    model, params = pretrained.build(config, checkpoint.tensors, head, dtype=dtype)
    encoded = iter(tokenizer.encode_batch([text for item in items for text in item.sentences]))
    kept: list[tuple[Item, list[np.ndarray]]] = []
    skipped: Counter[str] = Counter()
    for item in items:
        ids = [next(encoded) for _ in item.sentences]
        if fault := _fault(item, ids, config.max_position_embeddings):
            skipped[fault] += 1
        else:
            kept.append((item, ids))
    for fault, count in skipped.items():
        log(f"skipped: {count:,} {fault}")
    if not kept:
        raise UserError("nothing is left to score")
    sentences: list[np.ndarray] = [x for _, ids in kept for x in ids]
    mesh = make_mesh(MeshConfig())
    if isinstance(model, DebertaForReplacedToken):
        logits = token_detection.replaced_logits(model, params, sentences, mesh, batch_tokens, log)
        return _detected(kept, logits, tokenizer), method
    assert isinstance(model, DebertaForMaskedLM)
    marks = Marks(tokenizer.mask_id, tokenizer.word_start_V, tokenizer.unspaced_V)
    scores = iter(
        log_likelihoods(model, params, sentences, method, marks, mesh, batch_tokens, log).tolist()
    )
    # [CLS] and [SEP] are no tokens of the sentence.
    results = [
        Scored(item, [len(x) - 2 for x in ids], [next(scores) for _ in ids]) for item, ids in kept
    ]
    return results, method


def _detected(kept, logits: Sequence[np.ndarray], tokenizer) -> list[Scored]:
    """The items with their sentences' logits of "replaced"."""
    remaining, results = iter(logits), []
    for item, ids in kept:
        own = [next(remaining).astype(np.float64) for _ in ids]
        scores = [float(-np.logaddexp(0, x).sum()) for x in own]
        chances = [1 / (1 + np.exp(-x)) for x in own]
        pieces = [[tokenizer.decode([i]) for i in x[1:-1]] for x in ids]
        replaced = [
            list(zip(names, x.tolist(), strict=True))
            for names, x in zip(pieces, chances, strict=True)
        ]
        results.append(Scored(item, [len(x) for x in own], scores, replaced))
    return results


def _method(asked: str, checkpoint: Released, log) -> str:
    causal = checkpoint.config.causal
    task = task_of_tensors(checkpoint.tensors)
    detects = task == "replaced_token"
    if not detects and _LM_BIAS not in checkpoint.tensors:
        raise UserError(
            "score needs a masked-LM head or an RTD head; the checkpoint has "
            + (f"one for {task.replace('_', ' ')}" if task else "none")
        )
    if asked == AUTO:
        return token_detection.METHOD if detects else "ll" if causal else "pll"
    if asked == token_detection.METHOD and not detects:
        raise UserError("--method=rtd needs a v3 discriminator; this checkpoint has no RTD head")
    if detects and asked != token_detection.METHOD:
        raise UserError(
            f"--method={asked} needs a masked or causal LM; this is a discriminator: use rtd, or "
            "score its generator"
        )
    if causal and asked != "ll":
        raise UserError(f"--method={asked} needs a masked model; this one is causal: use ll")
    if asked == "ll" and not causal:
        log("ll of a model that is masked by its config: right only if it was trained as both")
    return asked


def _fault(item: Item, ids, limit: int) -> str | None:
    """Why an item is not scored; None if it is."""
    what = "pairs" if len(ids) > 1 else "sentences"
    if any(not text.strip() for text in item.sentences) or min(map(len, ids)) <= 2:
        return f"empty {what}"
    if max(map(len, ids)) > limit:
        return f"{what} longer than the model's {limit} tokens"
    return None


def write_scores(out: Path, results: Sequence[Scored], method: str) -> None:
    """One JSON object a line, the file whole or not at all."""
    storage.write(out, "".join(json_line(_line(result, method)) for result in results))


def _line(result: Scored, method: str) -> dict:
    item, tokens, scores, replaced = result
    line = {"source": item.source, "line": item.number, "method": method}
    if len(scores) == 1:
        line |= {"sentence": item.sentences[0], "score": scores[0], "tokens": tokens[0]}
        return line | ({"replaced": replaced[0]} if replaced else {})
    line["group"] = item.group
    for field, text, count, score in zip(PAIR_FIELDS, item.sentences, tokens, scores, strict=True):
        kind = field.removeprefix("sentence_")
        line |= {field: text, f"score_{kind}": score, f"tokens_{kind}": count}
    return line | {"correct": scores[0] > scores[1]}


def summary(results: Sequence[Scored]) -> list[str]:
    """Lines on single sentences together, and on pairs: their accuracy by group and overall.

    A pair is right where the good sentence scores higher; equal scores are wrong.
    """
    lines, right = [], defaultdict(list)
    single = [(tokens[0], scores[0]) for _, tokens, scores, _ in results if len(scores) == 1]
    for item, _, scores, _ in results:
        if len(scores) == 2:
            right[item.group].append(scores[0] > scores[1])
    if single:
        tokens, total = (sum(column) for column in zip(*single, strict=True))
        lines.append(
            f"{len(single):,} sentences, {tokens:,} tokens: mean score {total / len(single):.3f}, "
            f"perplexity {math.exp(-total / tokens):.3f} a token"
        )
    if right:
        rows = [*sorted(right.items()), ("overall", [x for group in right.values() for x in group])]
        width = max(len(name) for name, _ in rows)
        lines += [
            f"{name:<{width}}  {len(found):>7,} pairs  {100 * sum(found) / len(found):5.1f} % right"
            for name, found in rows
        ]
    return lines
