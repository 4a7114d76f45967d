"""Cross-entropy against a whole vocabulary, block by block: the logits are never all in memory.

Forward, one pass over blocks of the vocabulary keeps each row's running maximum and sum, and meets
the label's logit on its way. Backward makes each block's logits again: a fourth matmul, in place of
writing and reading [N, V] several times. Blocks of rows would need no fourth one, but would add the
gradient of the whole table up once a block, which moves more bytes than the matmul costs; and a
block of the vocabulary has its part of that gradient whole.

Tokens are sampled on the way of the forward pass, by the Gumbel maximum: the logits of a block,
divided by the temperature, plus noise, and the best so far. The noise is a function of the key, the
row of the batch, the position and the token alone, so that every mesh draws the same tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jax.sharding import PartitionSpec

# Logits in memory at a time, on one device: 128 MB in float32.
BLOCK_ELEMENTS = 2**25
# A block's columns are a multiple of it: whole tiles of a TPU's registers and matrix units.
COLUMNS = 512


class Sampling(NamedTuple):
    """How tokens are sampled: softmax(logits / temperature) over the ids [first, last)."""

    temperature: float
    first: int
    last: int


def cross_entropy(
    hidden_BPE: jax.Array,
    embedding_VE: jax.Array,
    bias_V: jax.Array,
    labels_BP: jax.Array,
    batch_axes: tuple[str, ...] = (),
    vocab_axis: str | None = None,
    embed_axis: str | None = None,
    block_elements: int = BLOCK_ELEMENTS,
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """-ln softmax(hidden . embedding + bias)[label], and whether no logit exceeds the label's.

    The axes are those of the current mesh (`jax.set_mesh`), for arrays that are laid out on one:
    rows of the vocabulary then stay where they are, and every device computes its own part of it.

    Args:
        hidden_BPE: what predicts.
        embedding_VE: a vector for each token, in the type of `hidden_BPE`.
        bias_V: a bias for each token.
        labels_BP: int32 tokens to predict, in [0, V).
        batch_axes: mesh axes that B is split over.
        vocab_axis: mesh axis that V is split over.
        embed_axis: mesh axis that E of `embedding_VE` is split over; it is gathered, once a pass.
        block_elements: logits in memory at a time, on one device.
        sampling: how a token is sampled at each position too; None: none is.
        key: uint32 [2], the data of a threefry key, for the sampling.

    Returns:
        The loss and the rightness of each position, float32 and bool [B, P]; with `sampling` the
        sampled tokens, int32 [B, P]. No gradient goes through them.
    """
    static = _Static((tuple(batch_axes), vocab_axis, embed_axis), block_elements, sampling)
    return _cross_entropy(static, hidden_BPE, embedding_VE, bias_V, labels_BP, key)


class _Static(NamedTuple):
    axes: tuple
    block_elements: int
    sampling: Sampling | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(static, hidden_BPE, embedding_VE, bias_V, labels_BP, key):
    return _forward(static, hidden_BPE, embedding_VE, bias_V, labels_BP, key)[0]


def _forward(static, hidden_BPE, embedding_VE, bias_V, labels_BP, key):
    axes, block_elements, sampling = static
    batch_axes, vocab_axis, _ = axes
    rows, table = PartitionSpec(batch_axes), PartitionSpec(vocab_axis)

    def local(hidden_BPE, embedding_VE, bias_V, labels_BP, *key):
        hidden_NE, labels_N = _flat(hidden_BPE), _own_labels(labels_BP, bias_V, vocab_axis)
        block = _Block(hidden_NE, embedding_VE, bias_V, labels_N, block_elements)
        sampler = None
        if sampling is not None:
            sampler = _Sampler(sampling, key[0], labels_BP.shape, bias_V.shape[0], axes)
        (top_N, total_N, target_N), best = block.statistics(sampler)
        if vocab_axis is not None:
            own_top_N, top_N = top_N, jax.lax.pmax(top_N, vocab_axis)
            total_N = jax.lax.psum(total_N * jnp.exp(own_top_N - top_N), vocab_axis)
            target_N = jax.lax.psum(target_N, vocab_axis)
        logsumexp_N = top_N + jnp.log(total_N)
        results = [logsumexp_N, logsumexp_N - target_N, target_N >= top_N]
        if sampler is not None:
            results.append(sampler.chosen(best))
        return tuple(x.reshape(labels_BP.shape) for x in results)

    arguments = hidden_BPE, embedding_VE, bias_V, labels_BP
    in_specs, out_specs, keys = [rows, table, table, rows], [rows, rows, rows], []
    if sampling is not None:
        in_specs, out_specs, keys = [*in_specs, PartitionSpec()], [*out_specs, rows], [key]
    split = _on_mesh(local, axes, tuple(in_specs), tuple(out_specs))
    logsumexp_BP, *results = split(*arguments, *keys)
    return tuple(results), (*arguments, logsumexp_BP)


def _backward(static, residuals, cotangents):
    axes, block_elements, _ = static
    batch_axes, vocab_axis, embed_axis = axes
    rows, table = PartitionSpec(batch_axes), PartitionSpec(vocab_axis)

    def local(hidden_BPE, embedding_VE, bias_V, labels_BP, logsumexp_BP, weights_BP):
        hidden_NE, labels_N = _flat(hidden_BPE), _own_labels(labels_BP, bias_V, vocab_axis)
        block = _Block(hidden_NE, embedding_VE, bias_V, labels_N, block_elements)
        d_hidden_NE, d_embedding_VE, d_bias_V = block.gradients(
            logsumexp_BP.reshape(-1), weights_BP.reshape(-1)
        )
        if vocab_axis is not None:
            d_hidden_NE = jax.lax.psum(d_hidden_NE, vocab_axis)
        if batch_axes:
            d_bias_V = jax.lax.psum(d_bias_V, batch_axes)
            d_embedding_VE = _summed(d_embedding_VE, batch_axes, embed_axis)
        d_hidden_BPE = d_hidden_NE.reshape(hidden_BPE.shape).astype(hidden_BPE.dtype)
        return d_hidden_BPE, d_embedding_VE, d_bias_V.astype(bias_V.dtype)

    scattered = embed_axis if embed_axis in batch_axes else None
    split = _on_mesh(
        local,
        axes,
        (rows, table, table, rows, rows, rows),
        (rows, PartitionSpec(vocab_axis, scattered), table),
    )
    return *split(*residuals, cotangents[0]), None, None


_cross_entropy.defvjp(_forward, _backward)


class _Block:
    """One device's part of the work, a block of its vocabulary at a time."""

    def __init__(self, hidden_NE, embedding_VE, bias_V, labels_N, block_elements):
        self.hidden_NE, self.embedding_VE, self.bias_V = hidden_NE, embedding_VE, bias_V
        self.labels_N = labels_N
        columns = block_elements // hidden_NE.shape[0] // COLUMNS * COLUMNS
        self.columns = min(max(columns, COLUMNS), bias_V.shape[0])

    def statistics(self, sampler=None):
        """Of each row of logits: the maximum, the sum of exp(logit - maximum), the label's; and
        the sampler's best token, where there is one."""
        nothing_N = jnp.zeros(self.labels_N.shape, jnp.float32)

        def add(carry, start, columns):
            (top_N, total_N, target_N), best = carry
            logits_NC, _, is_label_NC = self._logits(start, columns)
            new_top_N = jnp.maximum(top_N, jnp.max(logits_NC, axis=1))
            total_N *= jnp.exp(top_N - new_top_N)
            total_N += jnp.sum(jnp.exp(logits_NC - new_top_N[:, None]), axis=1)
            target_N += jnp.sum(jnp.where(is_label_NC, logits_NC, 0), axis=1)
            if sampler is not None:
                best = sampler.better(best, logits_NC, start)
            return (new_top_N, total_N, target_N), best

        nobody = None if sampler is None else (nothing_N - jnp.inf, nothing_N.astype(jnp.int32))
        return self._over_blocks(add, ((nothing_N - jnp.inf, nothing_N, nothing_N), nobody))

    def gradients(self, logsumexp_N, weights_N):
        """Of sum(weights * loss), by the hidden states, the embedding and the bias."""

        def add(carry, start, columns):
            d_hidden_NE, d_embedding_VE, d_bias_V = carry
            logits_NC, embedding_CE, is_label_NC = self._logits(start, columns)
            d_logits_NC = jnp.exp(logits_NC - logsumexp_N[:, None]) - is_label_NC
            d_logits_NC *= weights_N[:, None]
            d_bias_C = jnp.sum(d_logits_NC, axis=0)
            d_logits_NC = d_logits_NC.astype(self.hidden_NE.dtype)
            d_hidden_NE += _dot(d_logits_NC, embedding_CE, 1, 0)
            d_embedding_CE = _dot(d_logits_NC, self.hidden_NE, 0, 0).astype(d_embedding_VE.dtype)
            d_embedding_VE = _placed(d_embedding_VE, d_embedding_CE, start)
            return d_hidden_NE, d_embedding_VE, _placed(d_bias_V, d_bias_C, start)

        empty = (
            jnp.zeros(self.hidden_NE.shape, jnp.float32),
            jax.lax.empty(self.embedding_VE.shape, self.embedding_VE.dtype),  # all of it is written
            jnp.zeros(self.bias_V.shape, jnp.float32),
        )
        return self._over_blocks(add, empty)

    def _over_blocks(self, add, carry):
        """`add(carry, start, columns)` over all blocks; the last one may be narrower."""
        whole, rest = divmod(self.bias_V.shape[0], self.columns)
        if whole == 1:
            carry = add(carry, 0, self.columns)
        else:
            starts = jnp.arange(whole) * self.columns
            carry, _ = jax.lax.scan(lambda c, s: (add(c, s, self.columns), None), carry, starts)
        return add(carry, whole * self.columns, rest) if rest else carry

    def _logits(self, start, columns):
        """Logits [N, C] in float32, the embedding's rows [C, E], and where the labels are."""
        embedding_CE = jax.lax.dynamic_slice_in_dim(self.embedding_VE, start, columns)
        bias_C = jax.lax.dynamic_slice_in_dim(self.bias_V, start, columns)
        logits_NC = _dot(self.hidden_NE, embedding_CE, 1, 1) + bias_C.astype(jnp.float32)
        is_label_NC = self.labels_N[:, None] == start + jnp.arange(columns)
        return logits_NC, embedding_CE, is_label_NC


class _Sampler:
    """One device's part of the sampling: the best (score, token) of each row so far."""

    def __init__(self, sampling: Sampling, key, shape, vocabulary: int, axes):
        batch_axes, self.vocab_axis, _ = axes
        self.sampling, self.key, (batch, self.positions) = sampling, key, shape
        # Threefry makes two words of a count: those of two positions.
        self.pairs = -(-self.positions // 2)
        first_row = jax.lax.axis_index(batch_axes) * batch if batch_axes else 0
        self.counts_M = first_row * self.pairs + jnp.arange(batch * self.pairs)
        self.first_id: Any = 0
        if self.vocab_axis is not None:
            self.first_id = jax.lax.axis_index(self.vocab_axis) * vocabulary

    def better(self, best, logits_NC, start):
        """The best with this block's tokens, whose ids count from `start` on this device."""
        ids_C = self.first_id + start + jnp.arange(logits_NC.shape[1])
        allowed_C = (ids_C >= self.sampling.first) & (ids_C < self.sampling.last)
        scores_NC = logits_NC / self.sampling.temperature + self._gumbel(ids_C)
        scores_NC = jnp.where(allowed_C, scores_NC, -jnp.inf)
        column_N = jnp.argmax(scores_NC, axis=1)
        score_N = jnp.max(scores_NC, axis=1)
        is_better_N = score_N > best[0]
        token_N = jnp.where(is_better_N, ids_C[0] + column_N, best[1]).astype(jnp.int32)
        return jnp.where(is_better_N, score_N, best[0]), token_N

    def chosen(self, best):
        """int32 [N], the best of all devices."""
        score_N, token_N = best
        if self.vocab_axis is None:
            return token_N
        is_best_N = score_N == jax.lax.pmax(score_N, self.vocab_axis)
        return jax.lax.pmax(jnp.where(is_best_N, token_N, -1), self.vocab_axis)

    def _gumbel(self, ids_C):
        """-ln(-ln(1 - u)) of every row and token; u keeps its precision where the winners are."""
        shape = self.counts_M.shape[0], ids_C.shape[0]
        counts_2MC = jnp.stack(
            [
                jnp.broadcast_to(self.counts_M[:, None].astype(jnp.uint32), shape),
                jnp.broadcast_to(ids_C.astype(jnp.uint32), shape),
            ]
        )
        bits_2MC = threefry_2x32((self.key[0], self.key[1]), counts_2MC)
        bits_2BHC = bits_2MC.reshape(2, -1, self.pairs, shape[1])
        bits_BPC = jnp.moveaxis(bits_2BHC, 0, 1).reshape(-1, 2 * self.pairs, shape[1])
        bits_NC = bits_BPC[:, : self.positions].reshape(-1, shape[1])
        uniform_NC = (bits_NC.astype(jnp.float32) + 0.5) * 2.0**-32
        return -jnp.log(-jnp.log1p(-uniform_NC))


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _placed(whole, part, start):
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)


def _flat(hidden_BPE):
    return hidden_BPE.reshape(-1, hidden_BPE.shape[-1])


def _own_labels(labels_BP, bias_V, vocab_axis):
    """Labels counted from this device's first token; another device's are out of range."""
    first = 0 if vocab_axis is None else jax.lax.axis_index(vocab_axis) * bias_V.shape[0]
    return labels_BP.reshape(-1) - first


def _on_mesh(function, axes, in_specs, out_specs):
    """`function` on every device's own part, where the arrays are laid out on a mesh."""
    if not any(axes):
        return function
    # The loops' carries begin the same on every device, which the check would refuse.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _summed(d_embedding_VE, batch_axes, embed_axis):
    """The sum over the devices with other rows; each keeps its own part of E, if it has one."""
    if embed_axis in batch_axes:
        d_embedding_VE = jax.lax.psum_scatter(
            d_embedding_VE, embed_axis, scatter_dimension=1, tiled=True
        )
        batch_axes = tuple(axis for axis in batch_axes if axis != embed_axis)
    return jax.lax.psum(d_embedding_VE, batch_axes) if batch_axes else d_embedding_VE
