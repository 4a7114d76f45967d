"""Attention by groups of heads and blocks of queries, with a backward pass written by hand.

The forward pass keeps only its result and the log of each row's sum of exponentials; the backward
pass makes a block's probabilities again from them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.kernels.xla import dropout as xla_dropout
from deberta_jax.kernels.xla import scores as xla_scores
from deberta_jax.kernels.xla.scores import sum_type

# Queries of a block from which on it pays to write the scores' gradient down before it is read.
LARGE = 256


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a call is cut into blocks, and what else is known when it is compiled.

    Attributes:
        heads: heads computed at a time on a CPU; elsewhere, all.
        block: queries computed at a time.
        span: positions of the sequence that relative rows are read for at a time.
        tile: tokens that share a window of relative rows.
        scale: of the scores.
        dropout_rate: share of the probabilities dropped.
        causal: whether a query sees no key after its position.
    """

    heads: int
    block: int
    span: int
    tile: int
    scale: float
    dropout_rate: float
    causal: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(tiling, operands, tokens, seeds):
    """Attention, heads first: [H, B, Q, D] in the type of the values.

    Args:
        tiling: Q is a multiple of its block, K of its span and of its tile.
        operands: what has a gradient: query [H, B, Q, D], key and value [H, B, K, D], and rows, the
            relative rows by distance of the terms that are on ("c2p", "p2c": see `xla_scores`).
        tokens: query_segments [B, Q], key_segments [B, K], and positions [B, Q] of queries that do
            not stand in order.
        seeds: of the dropout, [H, 2, B]; or None.
    """
    return _forward(tiling, operands, tokens, seeds)[0]


def _forward(tiling, operands, tokens, seeds):
    def of_heads(heads):
        operands, seeds = heads

        def of_block(block):
            return _block_forward(tiling, operands, block, tokens["key_segments"], seeds)

        return _each_block(of_block, _blocks(tiling, operands["query"], tokens))

    out, log_sum = _by_heads(of_heads, tiling.heads, (operands, seeds))
    return out, (operands, tokens, seeds, out, log_sum)


def _backward(tiling, residuals, gradient):
    operands, tokens, seeds, out, log_sum = residuals
    delta = jnp.sum(gradient.astype(log_sum.dtype) * out, axis=-1, keepdims=True)
    saved = {"gradient": gradient, "delta": delta, "log_sum": log_sum}

    def of_heads(heads):
        operands, saved, seeds = heads
        blocks = _blocks(tiling, operands["query"], tokens)
        blocks |= {name: _split(x, tiling.block, axis=2) for name, x in saved.items()}
        shared = {name: operands[name] for name in ("key", "value", "rows")}

        def add(total, block):
            part = _block_backward(tiling, operands, block, tokens["key_segments"], seeds)
            query = part.pop("query")
            return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part), query

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_type(x)), shared)
        total, query_NHBTD = jax.lax.scan(add, zeros, blocks)
        total = jax.tree.map(lambda t, x: t.astype(x.dtype), total, shared)
        return {"query": _joined(query_NHBTD), **total}

    return _by_heads(of_heads, tiling.heads, (operands, saved, seeds)), None, None


attend.defvjp(_forward, _backward)


def _block_forward(tiling, operands, block, key_segments_BK, seeds):
    """(result, log of the sum of exponentials) of a block of queries."""
    value = operands["value"]
    scores = _scores(
        tiling, block["query"], operands["key"], operands["rows"], block, key_segments_BK
    )
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), -1e30)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sees = total > 0
    total = jnp.where(sees, total, 1)
    log_sum = jnp.where(sees, top + jnp.log(total), 0)
    weights = _dropped(tiling, weights, block, seeds).astype(value.dtype)
    out = _product("HBTK,HBKD->HBTD", weights, value)
    return (out / total).astype(value.dtype), log_sum


def _block_backward(tiling, operands, block, key_segments_BK, seeds):
    """The gradients of a block's queries, and its part of those of keys, values and rows."""

    def scores_of(query, key, rows):
        return _scores(tiling, query, key, rows, block, key_segments_BK)

    scores, pull = jax.vjp(scores_of, block["query"], operands["key"], operands["rows"])
    value, gradient = operands["value"], block["gradient"]
    weights = jnp.exp(scores - block["log_sum"])
    dropped = _dropped(tiling, weights, block, seeds).astype(value.dtype)
    dvalue = _product("HBTD,HBTK->HBDK", gradient, dropped).swapaxes(-1, -2)
    dweights = _dropped(tiling, _product("HBTD,HBKD->HBTK", gradient, value), block, seeds)
    query, key, rows = pull(_dscores(weights, dweights, block["delta"]))
    return {"query": query, "key": key, "value": dvalue, "rows": rows}


def _dscores(weights, dweights, delta):
    """The gradient of the scores; of large blocks `once`, since each reader would make it again."""
    if weights.shape[2] < LARGE:
        return weights * (dweights - delta)
    parts = [x.reshape(-1, x.shape[-1]) for x in (weights, dweights, delta)]
    return xla_scores.once(lambda w, dw, d: w * (dw - d), *parts).reshape(weights.shape)


def _scores(tiling, query_HBTD, key_HBKD, rows, block, key_segments_BK):
    """Scaled scores [H, B, T, K]; -inf where a query does not see a key."""
    scale = np.asarray(tiling.scale, query_HBTD.dtype)
    keys, positions_BT = key_HBKD.shape[2], block.get("positions")
    query_HBTD = query_HBTD * scale
    scores = xla_scores.dot(query_HBTD, key_HBKD)
    if "c2p" in rows:
        if positions_BT is None:
            scores += xla_scores.c2p(query_HBTD, rows["c2p"], block["start"], keys, tiling.tile)
        else:
            scores += xla_scores.c2p_anywhere(query_HBTD, rows["c2p"], positions_BT)
    if "p2c" in rows:
        scaled, span, tile = rows["p2c"] * scale, tiling.span, tiling.tile
        if positions_BT is None:
            scores += xla_scores.p2c(key_HBKD, scaled, block["start"], span, tile)
        else:
            scores += xla_scores.p2c_anywhere(key_HBKD, scaled, positions_BT, span, tile)

    segments_BT1, segments_B1K = block["query_segments"][..., None], key_segments_BK[:, None]
    visible_BTK = (segments_BT1 == segments_B1K) & (segments_B1K > 0)
    if tiling.causal:
        if positions_BT is None:
            positions_BT = block["start"] + jnp.arange(tiling.block)[None]
        visible_BTK &= positions_BT[..., None] >= jnp.arange(keys)
    return jnp.where(visible_BTK, scores, -jnp.inf)


def _dropped(tiling, weights, block, seeds):
    if tiling.dropout_rate == 0:
        return weights
    keep = xla_dropout.keep(seeds, tiling.dropout_rate, block["start"], *weights.shape[2:])
    return jnp.where(keep, weights / (1 - tiling.dropout_rate), 0)


def _by_heads(function, group, per_head):
    """`function` of arrays that begin with heads; on a CPU, of a group of them after another."""
    heads = jax.tree.leaves(per_head)[0].shape[0]

    def one_after_another(per_head):
        groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), per_head)
        parts = jax.lax.map(function, groups)
        return jax.tree.map(lambda x: x.reshape(heads, *x.shape[2:]), parts)

    if group == heads:
        return function(per_head)
    return jax.lax.platform_dependent(per_head, cpu=one_after_another, default=function)


def _blocks(tiling, query_HBQD, tokens):
    """What differs between blocks of queries, stacked: [N, ...]."""
    blocks = {
        "query": _split(query_HBQD, tiling.block, axis=2),
        "start": jnp.arange(0, query_HBQD.shape[2], tiling.block),
    }
    for name in ("query_segments", "positions"):
        if name in tokens:
            blocks[name] = _split(tokens[name], tiling.block, axis=1)
    return blocks


def _each_block(function, blocks):
    """The results of `function` for every block, put together along the queries."""
    return jax.tree.map(_joined, jax.lax.map(function, blocks))


def _split(x, block, axis):
    """[.., N * block, ..] -> [N, .., block, ..]."""
    shape = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _joined(x_NHBTD):
    """[N, H, B, T, D] -> [H, B, N T, D]."""
    x_HBNTD = jnp.moveaxis(x_NHBTD, 0, 2)
    return x_HBNTD.reshape(*x_HBNTD.shape[:2], -1, x_HBNTD.shape[-1])


def _product(equation, left, right):
    return jnp.einsum(equation, left, right, preferred_element_type=sum_type(left))
