"""How likely each token of a sentence was replaced, by a v3 discriminator's own head."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.evaluation.likelihood import batches, padded
from deberta_jax.model.task_heads import DebertaForReplacedToken
from deberta_jax.parallel import sharding

METHOD = "rtd"


def replaced_logits(
    model: DebertaForReplacedToken,
    params,
    sentences: Sequence[np.ndarray],
    mesh: Mesh,
    batch_tokens: int = 16_384,
    log: Callable[[str], None] = lambda line: None,
) -> list[np.ndarray]:
    """The logit that each token was replaced, float32 [tokens], [CLS] and [SEP] left out.

    Args:
        model: the discriminator with its head.
        params: its parameters.
        sentences: int32 ids of each, [CLS] and [SEP] at its ends.
        mesh: the devices that batches are divided over.
        batch_tokens: tokens computed at once, padding included.
        log: takes lines of progress.
    """
    logits, results = _compiled(model, mesh), {}
    params = jax.device_put(params, sharding.replicated(mesh))
    lengths = np.array([len(ids) for ids in sentences])
    with sharding.on(mesh):
        for chosen, width, rows in batches(lengths, batch_tokens, mesh.size):
            batch = padded([sentences[index] for index in chosen], width, rows)
            logits_BL = np.asarray(logits(params, sharding.to_devices(batch, mesh)), np.float32)
            for index, logits_L in zip(chosen, logits_BL, strict=False):
                results[index] = logits_L[1 : lengths[index] - 1]
    log(f"{len(sentences):,} sentences scored")
    return [results[index] for index in range(len(sentences))]


@functools.cache
def _compiled(model, mesh):
    """`(params, batch) -> logits`, compiled once for each width of batches."""

    def logits(params, batch):
        inputs = batch["input_ids"], batch["segment_ids"], batch["position_ids"]
        return model.apply({"params": params}, *inputs)

    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(logits, in_shardings=(whole, rows), out_shardings=whole)
