"""Names and layouts: which tensor of a released state dict holds which of our parameters."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.model.config import ModelConfig


class Layout(NamedTuple):
    """How one array is stored there, both ways; neither changes a value.

    Attributes:
        to_theirs: our array -> theirs.
        to_ours: (their array, our shape) -> ours.
    """

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


class Entry(NamedTuple):
    """One tensor of the state dict.

    Attributes:
        key: its name there.
        path: our parameter, "/"-separated.
        layout: how it is stored there.
        part: selects what of our parameter it holds: a slice of the scan's axis, one of q, k, v.
    """

    key: str
    path: str
    layout: Layout
    part: tuple = ()


SAME = Layout(lambda x: x, lambda x, shape: x.reshape(shape))
# [in, out] here, [out, in] there.
TRANSPOSED = Layout(np.transpose, lambda x, shape: x.T.reshape(shape))
# [H, D] here, [H * D] there.
FLAT = Layout(np.ravel, lambda x, shape: x.reshape(shape))
# [E, H, D] here, [H * D, E] there.
PROJECTION = Layout(
    lambda x_EHD: x_EHD.reshape(x_EHD.shape[0], -1).T, lambda x, shape: x.T.reshape(shape)
)
# [taps, in, out] here, [out, in, taps] there.
CONVOLUTION = Layout(np.transpose, lambda x, shape: x.transpose().reshape(shape))
# [E, 3, H, D] here, [H * 3 * D, E] there: v1 interleaves query, key and value head by head.
INTERLEAVED = Layout(
    lambda x_ECHD: x_ECHD.transpose(2, 1, 3, 0).reshape(-1, x_ECHD.shape[0]),
    lambda x, shape: x.reshape(shape[2], shape[1], shape[3], shape[0]).transpose(3, 1, 0, 2),
)

# The head of each task: (its tensors' prefix there, its path here, kind), ... in the released
# layout; `LEGACY_LM_HEAD` is the one that transformers reads by default.
LM_HEAD = (
    ("lm_predictions.lm_head.dense", "lm_head/dense", "dense"),
    ("lm_predictions.lm_head.LayerNorm", "lm_head/norm", "norm"),
    ("lm_predictions.lm_head.bias", "lm_head/bias", "vector"),
)
LEGACY_LM_HEAD = (
    ("cls.predictions.transform.dense", "lm_head/dense", "dense"),
    ("cls.predictions.transform.LayerNorm", "lm_head/norm", "norm"),
    ("cls.predictions.bias", "lm_head/bias", "vector"),
)
_HEADS = {
    None: (),
    "masked_lm": LM_HEAD,
    "replaced_token": (
        ("mask_predictions.LayerNorm", "mask_predictions/norm", "norm"),
        ("mask_predictions.dense", "mask_predictions/dense", "dense"),
        ("mask_predictions.classifier", "mask_predictions/classifier", "dense"),
    ),
    "sequence_classification": (
        ("pooler.dense", "pooler/dense", "dense"),
        ("classifier", "classifier", "dense"),
    ),
    "token_classification": (("classifier", "classifier", "dense"),),
    "question_answering": (("qa_outputs", "qa_outputs", "dense"),),
}
_HEADS["multiple_choice"] = _HEADS["sequence_classification"]
# Beginnings of the names of every head, any of which another task leaves out.
HEAD_NAMES = tuple(
    sorted({key.split(".")[0] + "." for head in _HEADS.values() for key, *_ in head})
)
WORD_TABLE = "deberta.embeddings.word_embeddings.weight"
POSITION_TABLE = "deberta.embeddings.position_embeddings.weight"
# A masked-LM head's own matrix, in a file whose head is not tied to the word table.
UNTIED_DECODER = "lm_predictions.lm_head.decoder.weight"
# Parts of a masked LM that training can make anew, and the beginnings of their tensors' names.
NEW_PARTS = {"lm_head": "lm_predictions.", "position_embeddings": POSITION_TABLE}
LM_PREFIX, RTD_PREFIX = "lm_predictions.", "mask_predictions."


# What transformers may call a masked LM's head: by default, and as released (`legacy` is false).
# After `resize_token_embeddings` the second is broken there, versions before 4.48 do not read it.
LM_HEAD_NAMES = ("cls.predictions", "lm_predictions")


def with_head_names(
    tensors: Mapping[str, np.ndarray], head_names: str = LM_HEAD_NAMES[0]
) -> dict[str, np.ndarray]:
    """The tensors of a masked LM with its head under one of `LM_HEAD_NAMES`, in their order.

    Raises:
        UserError: there are no such names.
    """
    if head_names not in LM_HEAD_NAMES:
        raise UserError(f"head_names is {head_names!r}; it must be {' or '.join(LM_HEAD_NAMES)}")
    if head_names == LM_HEAD_NAMES[1]:
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        for (old, *_), (new, *_) in zip(LM_HEAD, LEGACY_LM_HEAD, strict=True):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        renamed[name.replace("lm_predictions.lm_head.decoder.", "cls.predictions.decoder.")] = (
            tensor
        )
    if "cls.predictions.decoder.weight" in renamed:  # then its bias is not tied either
        renamed.setdefault("cls.predictions.decoder.bias", renamed["cls.predictions.bias"])
    return renamed


def task_of_tensors(names: Collection[str]) -> str | None:
    """The task whose head these tensors hold, the most particular first; None for none."""
    for task in ("sequence_classification", "token_classification", "question_answering"):
        if all(f"{key}.weight" in names for key, *_ in _HEADS[task]):
            return task
    # Before the masked LM: beside this head, `lm_predictions` is the generator's.
    if "mask_predictions.dense.weight" in names:
        return "replaced_token"
    return "masked_lm" if "lm_predictions.lm_head.bias" in names else None


def entries(config: ModelConfig, task: str | None) -> Iterator[Entry]:
    """Every tensor of a checkpoint of `task` (a key of `TASK_MODELS`; None: no head)."""
    yield from _encoder_entries(config)
    if config.position_biased_input or (task == "masked_lm" and config.decodes_with_emd):
        yield Entry(POSITION_TABLE, "embeddings/position_embeddings/embedding", SAME)
    for key, path, kind in _HEADS[task]:
        if kind == "dense":
            yield from _dense(key, path)
        elif kind == "norm":
            yield from _norm(key, path)
        else:
            yield Entry(key, path, SAME)


def _encoder_entries(config: ModelConfig) -> Iterator[Entry]:
    embeddings = "deberta.embeddings"
    table = "embeddings/word_embeddings/embedding"
    yield Entry(WORD_TABLE, table, SAME)
    yield from _norm(f"{embeddings}.LayerNorm", "embeddings/norm")
    if config.pos_att_type:
        table = "encoder/relative_embeddings/embedding"
        yield Entry("deberta.encoder.rel_embeddings.weight", table, SAME)
        if config.norm_rel_ebd == "layer_norm":
            yield from _norm("deberta.encoder.LayerNorm", "encoder/relative_norm")
    if config.conv_kernel_size:
        conv = "deberta.encoder.conv"
        yield Entry(f"{conv}.conv.weight", "encoder/convolution/kernel", CONVOLUTION)
        yield Entry(f"{conv}.conv.bias", "encoder/convolution/bias", SAME)
        yield from _norm(f"{conv}.LayerNorm", "encoder/convolution/norm")
    for layer in range(config.num_hidden_layers):
        yield from _layer_entries(config, layer)


def layer_location(config: ModelConfig, layer: int) -> tuple[str, tuple]:
    """(path, part) of a layer: peeled first, a slice of the scanned stack, or the last."""
    first = bool(config.conv_kernel_size)
    if layer == config.num_hidden_layers - 1:
        return "encoder/last_layer", ()
    if layer == 0 and first:
        return "encoder/first_layer", ()
    return "encoder/layers/layer", (layer - first,)


def _layer_entries(config: ModelConfig, layer: int) -> Iterator[Entry]:
    path, part = layer_location(config, layer)
    prefix = f"deberta.encoder.layer.{layer}"
    for key, name, layout, *inner in _attention_tensors(config):
        key = f"{prefix}.attention.self.{key}"
        yield Entry(key, f"{path}/attention/{name}", layout, part + tuple(*inner))
    yield from _dense(f"{prefix}.attention.output.dense", f"{path}/attention_output", part)
    yield from _norm(f"{prefix}.attention.output.LayerNorm", f"{path}/attention_norm", part)
    yield from _dense(f"{prefix}.intermediate.dense", f"{path}/intermediate", part)
    yield from _dense(f"{prefix}.output.dense", f"{path}/output", part)
    yield from _norm(f"{prefix}.output.LayerNorm", f"{path}/output_norm", part)


def _attention_tensors(config: ModelConfig) -> Iterator[tuple]:
    """(their name under attention.self, our name under attention, layout[, part])."""
    if config.model_type == "deberta":
        yield "in_proj.weight", "qkv_kernel", INTERLEAVED
        yield "q_bias", "q_bias", FLAT
        yield "v_bias", "v_bias", FLAT
        key, query = "pos_proj", "pos_q_proj"
    else:
        for part, name in enumerate(("query_proj", "key_proj", "value_proj")):
            yield f"{name}.weight", "qkv_kernel", PROJECTION, (slice(None), part)
            yield f"{name}.bias", "qkv_bias", FLAT, (part,)
        key, query = "pos_key_proj", "pos_query_proj"
    if config.share_att_key:
        return
    if "c2p" in config.pos_att_type:
        yield f"{key}.weight", "pos_key_kernel", PROJECTION
        if config.model_type != "deberta":
            yield f"{key}.bias", "pos_key_bias", FLAT
    if "p2c" in config.pos_att_type:
        yield f"{query}.weight", "pos_query_kernel", PROJECTION
        yield f"{query}.bias", "pos_query_bias", FLAT


def _dense(key: str, path: str, part: tuple = ()) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/kernel", TRANSPOSED, part)
    yield Entry(f"{key}.bias", f"{path}/bias", SAME, part)


def _norm(key: str, path: str, part: tuple = ()) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", f"{path}/scale", SAME, part)
    yield Entry(f"{key}.bias", f"{path}/bias", SAME, part)
