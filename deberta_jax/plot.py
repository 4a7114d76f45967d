"""Pictures of a model or of runs: python -m deberta_jax.plot WHAT ... --out=PICTURE.png

    attention   maps of a sentence, the parts of the scores apart (the paper's Figure 2):
                --checkpoint=DIR[,DIR] --sentence=TEXT [--layer] [--head] [--parts] [--emd=1]
    profiles    the mean bias of each distance, by layer and head:
                --checkpoint=DIR [--text=FILES] [--layer] [--head] [--sequences]
    curves      learning curves; runs that differ in the seed alone are one line, with a band:
                --workdir=DIR[,DIR] [--metric=NAMES] [--label=LABELS]
    norms       norms of weights, gradients and updates by layer: --workdir=DIR

A checkpoint is a released or exported one, or a run's workdir. Layers and heads count from 1.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.interop.tokenizers import PretrainedTokenizer
from deberta_jax.report import figures
from deberta_jax.report.opened_models import open_model, sequences
from deberta_jax.runs import directories

WHAT = ("attention", "profiles", "curves", "norms")
# Sequences that a profile reads at a time.
_BATCH = 8


def main(parsed) -> None:
    if not parsed.what:
        raise UserError(f"what to plot is missing; it is one of {', '.join(WHAT)}")
    if not parsed.out:
        raise UserError("--out is missing; it names the picture to write, such as maps.png")
    out = figures.check_path(storage.user_path(parsed.out))
    directories.check_writable(out.parent, "--out")
    _DRAWN_BY[parsed.what](parsed, out)
    print(f"{parsed.what} drawn in {out}")


def plot_attention(parsed, out: Path) -> None:
    from deberta_jax.report import attention_maps as report

    if not parsed.sentence:
        raise UserError("--sentence is missing; it is the text whose attention is drawn")
    maps = []
    for directory in _directories(parsed, "checkpoint"):
        model = open_model(directory, decoder=parsed.emd > 0)
        ids = model.tokenizer.encode(parsed.sentence)
        last = model.config.num_hidden_layers
        layers = _chosen("layer", parsed.layer or "last", last)
        if parsed.emd and layers != (last - 1,):
            raise UserError(f"--layer={parsed.layer}: the mask decoder's is the last layer, {last}")
        mean = parsed.head == "mean"
        heads = _chosen("head", "all" if mean else parsed.head, model.config.num_attention_heads)
        for layer in layers:
            panels = report.attention_map(model.config, model.params, ids, layer, heads, parsed.emd)
            rows = [f"head {head + 1}" for head in heads]
            if mean:
                panels = {part: x.mean(axis=0, keepdims=True) for part, x in panels.items()}
                rows = [f"mean of {len(heads)} heads"]
            title = f"{directory.name}, layer {layer + 1} of {last}"
            title += f", decoder pass {parsed.emd}" if parsed.emd else ""
            maps.append(
                report.AttentionMap(title, _token_texts(model.tokenizer, ids), rows, panels)
            )
    parts = parsed.parts or (report.PARTS if len(maps) == 1 else report.PARTS[:1])
    report.draw_maps(maps, parts, out)


def plot_profiles(parsed, out: Path) -> None:
    from deberta_jax.report import position_profiles as report

    checkpoints = _directories(parsed, "checkpoint")
    if len(checkpoints) > 1:
        raise UserError("--checkpoint names several; profiles are drawn of one")
    model = open_model(checkpoints[0])
    layers = _chosen("layer", parsed.layer or "all", model.config.num_hidden_layers)
    heads = _chosen("head", parsed.head, model.config.num_attention_heads)
    rows = sequences(model, parsed.text, parsed.sequences)
    ids_NL, segments_NL = (np.stack(column) for column in zip(*rows, strict=True))
    parts = [slice(start, start + _BATCH) for start in range(0, len(rows), _BATCH)]
    batches = ((ids_NL[part], segments_NL[part]) for part in parts)
    profiles = report.position_profiles(model.config, model.params, batches, layers, heads)
    title = f"{model.directory.name}: mean bias over {len(rows)} sequences"
    report.draw_profiles(profiles, title, layers, heads, out)


def plot_curves(parsed, out: Path) -> None:
    from deberta_jax.report import metric_panels as report

    workdirs = _directories(parsed, "workdir")
    if parsed.label and len(parsed.label) != len(workdirs):
        raise UserError(f"--label names {len(parsed.label)} runs of {len(workdirs)}")
    if parsed.label:
        runs: dict[str, list[Path]] = {}
        for label, workdir in zip(parsed.label, workdirs, strict=True):
            runs.setdefault(label, []).append(workdir)
    else:
        runs = report.grouped(workdirs)
    report.plot_panels(runs, out, parsed.metric or ())


def plot_norms(parsed, out: Path) -> None:
    from deberta_jax.report import norms as report

    workdirs = _directories(parsed, "workdir")
    if len(workdirs) > 1:
        raise UserError("--workdir names several; norms are drawn of one run")
    report.draw_norms(workdirs[0], out)


_DRAWN_BY = dict(zip(WHAT, (plot_attention, plot_profiles, plot_curves, plot_norms), strict=True))


def _directories(parsed, flag: str) -> list[Path]:
    paths = [storage.user_path(path) for path in parsed[flag].value or ()]
    if not paths:
        raise UserError(f"--{flag} is missing; it names one directory, or several with commas")
    for path in paths:
        directories.require(path, f"plot {parsed.what}")
    return paths


def _chosen(flag: str, text: str, count: int) -> tuple[int, ...]:
    """ "all", "last", "1,3": the positions from 0 of some of `count` layers or heads."""
    if text in ("all", "last"):
        return tuple(range(count))[-1 if text == "last" else 0 :]
    try:
        numbers = tuple(int(number) - 1 for number in text.split(","))
    except ValueError:
        numbers = (-1,)
    if not all(0 <= number < count for number in numbers):
        mean = ", 'mean'" if flag == "head" else ""
        raise UserError(
            f"--{flag}={text}: the model has {flag}s 1 to {count}; name some of them, "
            f"'all'{mean} or 'last'"
        )
    return numbers


def _token_texts(tokenizer: PretrainedTokenizer, ids: np.ndarray) -> list[str]:
    """What stands beside a map: the text of each token, as it is read."""
    return [tokenizer.decode([token]).strip() or tokenizer.pieces[token] for token in ids]


if __name__ == "__main__":
    flags.DEFINE_list("checkpoint", None, "Checkpoints or runs to look into.")
    flags.DEFINE_list("workdir", None, "Runs whose metrics are drawn.")
    flags.DEFINE_string("out", None, "Picture to write: .png, .svg or .pdf.")
    flags.DEFINE_string("sentence", None, "Text whose attention is drawn.")
    flags.DEFINE_string("layer", "", "Layers, from 1: '12', '1,6', 'last', 'all'.")
    flags.DEFINE_string("head", "all", "Heads, from 1: '3', '1,4', 'all'; or 'mean'.")
    flags.DEFINE_list("parts", None, "Columns: attention, c2c, c2p, p2c.")
    flags.DEFINE_integer("emd", 0, "Pass of the mask decoder, 1 or 2.", 0, 2)
    flags.DEFINE_string("text", None, "Text files to average over; a run has its held-out text.")
    flags.DEFINE_integer("sequences", 64, "Sequences to average over.", lower_bound=1)
    flags.DEFINE_list("metric", None, "Metrics to draw, by their names in metrics.jsonl.")
    flags.DEFINE_list("label", None, "A label for each run; runs of one label are repetitions.")
    flags.DEFINE_enum("what", None, WHAT, "What to plot; also the word after the verb.")
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"--what={sys.argv[1]}"
    command.run(main, workdir=False, needs_config=False)
