"""How far our numbers are from those of `transformers`, for every family and option.

    python -m benchmarks.parity

Random weights in real `transformers` models, saved by them, loaded by us; float32 on the CPU.
Prints the table of docs/checkpoints.md: the largest absolute difference of hidden states and of
masked-LM logits at visible positions, the largest difference of any parameter's gradient relative
to that gradient's largest entry, and the relative distance of bf16 hidden states to float32's, ours
and theirs.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import deberta_jax
from tests.interop import released
from tests.interop.released import FAMILIES, torch

# What is measured: (family, fields of the released config).
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "v3, c2p only": ("v3", {"pos_att_type": "c2p"}),
    "v3, p2c only": ("v3", {"pos_att_type": "p2c"}),
    "v3, neither": ("v3", {"pos_att_type": []}),
    "v1, c2p only": ("v1", {"pos_att_type": "c2p"}),
    "v1, p2c only": ("v1", {"pos_att_type": "p2c"}),
}
LENGTHS = (7, 128, 512)


def loaded(theirs, task: str | None = None, **options):
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return deberta_jax.load_pretrained(Path(directory), task, **options)


def hidden_and_gradients(theirs, seed: int, length: int) -> tuple[float, float]:
    """(largest difference of hidden states, largest relative difference of a gradient)."""
    model, params = loaded(theirs)
    ours, want, gradients = released.run_both(model, params, theirs, seed, length)
    worst = 0.0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            continue
        wanted = parameter.grad.numpy()
        off = np.abs(gradients[f"deberta.{name}"] - wanted)
        if name.endswith("word_embeddings.weight"):
            off[0] = 0  # the padding row, which PyTorch skips
        if np.abs(wanted).max() > 1e-4:  # a key's bias has no gradient but rounding
            worst = max(worst, off.max() / np.abs(wanted).max())
    return np.abs(ours - want).max(), worst


def logits(family: str, options: dict[str, Any], seed: int) -> float:
    """The largest difference of a logit."""
    theirs = released.make(family, "ForMaskedLM", seed, **options)
    model, params = loaded(theirs, "masked_lm")
    ids, mask = released.padded(seed, 128)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, ids, mask))
    with torch.no_grad():
        want = theirs(torch.tensor(ids).long(), torch.tensor(mask)).logits.numpy()
    return np.abs(ours - want)[mask.astype(bool)].max()


def half_precision(theirs, seed: int) -> tuple[float, float]:
    """Relative distance of bf16 to float32: (ours, theirs)."""
    ids, mask = released.padded(seed, 128)
    seen, outputs = mask.astype(bool), {}
    for dtype in ("float32", "bfloat16"):
        model, params = loaded(theirs, dtype=dtype)
        out = jax.jit(model.apply)({"params": params}, ids, mask)
        outputs[dtype] = np.asarray(out, np.float32)[seen]
    with torch.no_grad():
        half = theirs.to(torch.bfloat16)(torch.tensor(ids).long(), torch.tensor(mask))
    want = outputs["float32"]
    norm = np.linalg.norm(want)
    ours = np.linalg.norm(outputs["bfloat16"] - want) / norm
    theirs_off = np.linalg.norm(half.last_hidden_state.float().numpy()[seen] - want) / norm
    return float(ours), float(theirs_off)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    args = parser.parse_args(argv)
    lengths = ", ".join(map(str, args.lengths))
    print(f"| model | hidden states (L = {lengths}) | gradients | logits | bf16: ours, theirs |")
    print("|---|---|---|---|---|")
    for name in args.models:
        family, options = OPTIONS[name]
        theirs = released.make(family, "Model", 1, **options)
        measured = [hidden_and_gradients(theirs, 1, length) for length in args.lengths]
        hidden = ", ".join(f"{value:.1e}" for value, _ in measured)
        worst = max(value for _, value in measured)
        ours, half = half_precision(theirs, 1)
        print(
            f"| {name} | {hidden} | {worst:.1e} | {logits(family, options, 1):.1e} "
            f"| {100 * ours:.2f} %, {100 * half:.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
