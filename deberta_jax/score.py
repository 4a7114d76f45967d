"""Zero-shot scores of sentences: python -m deberta_jax.score --checkpoint=DIR --input=F --out=F

DIR is a run, an export or a released checkpoint. The input is text (a sentence a line), JSONL, or
minimal pairs in BLiMP's format, whose accuracy is printed; "tfds:blimp" is BLiMP itself. A masked
model gives pseudo-log-likelihoods, a causal one log-likelihoods: docs/language_modelling.md.
"""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from pathlib import Path

from absl import flags

from deberta_jax import command
from deberta_jax.errors import UserError
from deberta_jax.evaluation.likelihood import METHODS, Marks, log_likelihoods
from deberta_jax.evaluation.sentence_files import PAIR_FIELDS, Item, read_items
from deberta_jax.interop import pretrained
from deberta_jax.interop.tokenizers import load_tokenizer
from deberta_jax.parallel.mesh import MeshConfig, make_mesh
from deberta_jax.runs.loading import open_checkpoint

AUTO = "auto"


def main(parsed) -> None:
    for name in ("checkpoint", "input", "out"):
        if not getattr(parsed, name):
            raise UserError(f"--{name} is missing")
    out = Path(parsed.out).expanduser()
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no directory {out.parent}")
    items = read_items(parsed.input, parsed.text_field, parsed.tfds_dir)
    checkpoint, tokenizer_directory = open_checkpoint(parsed.checkpoint)
    tokenizer = load_tokenizer(tokenizer_directory)
    method = _method(parsed.method, checkpoint.config.causal)
    config = dataclasses.replace(checkpoint.config, causal=method == "ll")
    model, params = pretrained.build(config, checkpoint.tensors, "masked_lm", dtype=parsed.dtype)

    encoded = tokenizer.encode_batch([text for item in items for text in item.sentences])
    limit = config.max_position_embeddings
    kept, sentences, skipped = [], [], Counter()
    remaining = iter(encoded)
    for item in items:
        ids = [next(remaining) for _ in item.sentences]
        if fault := _fault(item, ids, limit):
            skipped[fault] += 1
        else:
            kept.append((item, [len(x) - 2 for x in ids]))
            sentences += ids
    for fault, count in skipped.items():
        print(f"skipped: {count:,} {fault}")
    if not kept:
        raise UserError(f"--input={parsed.input}: nothing is left to score")
    marks = Marks(tokenizer.mask_id, tokenizer.word_start_V)
    scores = log_likelihoods(
        model, params, sentences, method, marks, make_mesh(MeshConfig()), parsed.batch_tokens, print
    )
    results, remaining = [], iter(scores.tolist())
    for item, tokens in kept:
        results.append((item, tokens, [next(remaining) for _ in tokens]))
    _write(out, results, method)
    print(f"{method} of {len(sentences):,} sentences in {out}")
    print("\n".join(summary(results)))


def _method(asked: str, causal: bool) -> str:
    if asked == AUTO:
        return "ll" if causal else "pll"
    if causal and asked != "ll":
        raise UserError(f"--method={asked} needs a masked model; this one is causal: use ll")
    if asked == "ll" and not causal:
        print("ll of a model that is masked by its config: right only if it was trained as both")
    return asked


def _fault(item: Item, ids, limit: int) -> str | None:
    """Why an item is not scored; None if it is."""
    what = "pairs" if len(ids) > 1 else "sentences"
    if any(not text.strip() for text in item.sentences) or min(map(len, ids)) <= 2:
        return f"empty {what}"
    if max(map(len, ids)) > limit:
        return f"{what} longer than the model's {limit} tokens"
    return None


def _write(out: Path, results, method: str) -> None:
    """One JSON object a line, the file whole or not at all."""
    unfinished = out.with_name(f"{out.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        for item, tokens, scores in results:
            line = {"source": item.source, "line": item.number, "method": method}
            if len(scores) == 1:
                line |= {"sentence": item.sentences[0], "score": scores[0], "tokens": tokens[0]}
            else:
                line["group"] = item.group
                for field, text, count, score in zip(
                    PAIR_FIELDS, item.sentences, tokens, scores, strict=True
                ):
                    kind = field.removeprefix("sentence_")
                    line |= {field: text, f"score_{kind}": score, f"tokens_{kind}": count}
                line["correct"] = scores[0] > scores[1]
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    unfinished.replace(out)


def summary(results) -> list[str]:
    """Lines on single sentences together, and on pairs: their accuracy by group and overall.

    A pair is right where the good sentence scores higher; equal scores are wrong.
    """
    lines, right = [], defaultdict(list)
    single = [(tokens[0], scores[0]) for _, tokens, scores in results if len(scores) == 1]
    for item, _, scores in results:
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


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir, an export, a released checkpoint.")
    flags.DEFINE_string("input", None, "Files or globs, or tfds:NAME; separated by commas.")
    flags.DEFINE_string("out", None, "JSONL file to write, a line for each sentence or pair.")
    flags.DEFINE_enum("method", AUTO, [AUTO, *METHODS], "How; auto: ll if causal, else pll.")
    flags.DEFINE_string("text_field", "text", "Field of the sentence in JSONL.")
    flags.DEFINE_string("tfds_dir", "", "Where TFDS keeps its data. Empty: its default.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What the model computes in.")
    flags.DEFINE_integer("batch_tokens", 16_384, "Tokens computed at once.", lower_bound=1)
    command.run(main, workdir=False, needs_config=False)
