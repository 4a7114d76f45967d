"""A model as an ONNX graph that onnxruntime runs: the encoder, and the heads of the tasks.

The graph is built node by node from the released tensors. It takes any batch size, and any length
up to the limit that it is built for. What depends on the weights alone is computed here: each
layer's relative keys and queries are constants of the file.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deberta_jax.errors import UserError
from deberta_jax.interop.names import POSITION_TABLE
from deberta_jax.model.config import ModelConfig
from deberta_jax.model.positions import distance_rows

# The first opset with Gelu as one node; IR 9 can hold it.
_OPSET, _IR_VERSION = 20, 9
# Larger weights go to a file beside the graph: a protobuf is limited to 2 GB.
_LARGEST_FILE = 1 << 30
_MASKED = np.float32(np.finfo(np.float32).min)
_IGNORED = "token_type_ids"
HEADS = (
    None, "sequence_classification", "token_classification", "question_answering",
    "multiple_choice",
)  # fmt: skip


def write_onnx(
    path: Path,
    config: ModelConfig,
    task: str | None,
    tensors: Mapping[str, np.ndarray],
    max_length: int,
) -> None:
    """Writes the graph of a model.

    Inputs are `input_ids` and `attention_mask`, int64 [batch, length] ([batch, choices, length] for
    multiple choice), 0 for padding. `token_type_ids`, which the tokenizer makes too, may be given;
    DeBERTa has no token types, and it changes nothing. The output is `logits`, as
    `model.task_heads` defines them, or `last_hidden_state`; values at padding are undefined.

    Args:
        path: the file.
        config: the architecture.
        task: the head, a key of `model.task_heads.TASK_MODELS`; None for the encoder alone.
        tensors: under their released names (`interop.pretrained.to_state_dict`).
        max_length: longest input, in tokens.

    Raises:
        UserError: there is no such head here.
    """
    if task not in HEADS:
        raise UserError(f"ONNX export has no head of {task}; it has {', '.join(map(str, HEADS))}")
    graph = _Graph(config, tensors, max_length)
    axes = ["batch", "choices", "length"] if task == "multiple_choice" else ["batch", "length"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes)
        for name in ("input_ids", "attention_mask", _IGNORED)
    ]
    # An input with an initializer may be left out.
    graph.constants.append(numpy_helper.from_array(np.zeros([1] * len(axes), np.int64), _IGNORED))
    name = "logits" if task else "last_hidden_state"
    shape = graph.model(task, name)
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph_proto = helper.make_graph(graph.nodes, "deberta", inputs, [output], graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(
        graph_proto, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="deberta_jax"
    )
    large = sum(x.nbytes for x in tensors.values()) > _LARGEST_FILE
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
    onnx.checker.check_model(path)


class _Graph:
    """Builds the graph part by part: every method adds nodes and returns the name of its output."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray], max_length: int):
        self.config, self.tensors, self.max_length = config, tensors, max_length
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, *inputs, **attributes) -> str:
        """Adds a node; returns the name of its output. Arrays among `inputs` become constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = attributes.pop("output", f"{kind}_{len(self.nodes)}")
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, value) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def model(self, task: str | None, output: str) -> list:
        """The whole graph; returns the shape of its output."""
        ids, mask = "input_ids", "attention_mask"
        if task == "multiple_choice":
            shape = self.node("Shape", ids)
            flat = self.node("Concat", *_ints(-1), self.node("Slice", shape, *_ints(2, 3)), axis=0)
            ids, mask = (self.node("Reshape", x, flat) for x in (ids, mask))
        hidden = self.encoder(ids, mask)
        width = self.config.hidden_size
        if task is None:
            self.node("Identity", hidden, output=output)
            return ["batch", "length", width]
        if task in ("token_classification", "question_answering"):
            head = "classifier" if task == "token_classification" else "qa_outputs"
            self.node("Identity", self.dense(hidden, head), output=output)
            return ["batch", "length", len(self.tensors[f"{head}.bias"])]
        first = self.node("Gather", hidden, np.int64(0), axis=1)
        pooled = self.activation(self.dense(first, "pooler.dense"), self.config.pooler_hidden_act)
        logits = self.dense(pooled, "classifier")
        if task == "multiple_choice":
            choices = self.node("Slice", shape, *_ints(0, 2))
            self.node("Reshape", logits, choices, output=output)
            return ["batch", "choices"]
        self.node("Identity", logits, output=output)
        return ["batch", len(self.tensors["classifier.bias"])]

    def encoder(self, ids: str, mask: str) -> str:
        """The last hidden state, [batch, length, width]."""
        c, embeddings = self.config, "deberta.embeddings"
        length = self.node("Gather", self.node("Shape", ids), np.int64(1), axis=0)
        positions = self.node("Range", np.int64(0), length, np.int64(1))
        hidden = self.node("Gather", self.tensors[f"{embeddings}.word_embeddings.weight"], ids)
        if c.position_biased_input:
            table = self.node("Gather", self.tensors[POSITION_TABLE], positions)
            hidden = self.node("Add", hidden, table)
        mask_BL = self.node("Cast", self.node("Greater", mask, np.int64(0)), to=TensorProto.FLOAT)
        mask_BL1 = self.node("Unsqueeze", mask_BL, _ints(-1)[0])
        hidden = embedded = self.node("Mul", self.norm(hidden, f"{embeddings}.LayerNorm"), mask_BL1)
        keys = self.node("Unsqueeze", mask_BL, np.array([1, 2]))
        mask_bias = self.node("Mul", self.node("Sub", np.float32(1), keys), _MASKED)
        rows = self.relative_rows(positions) if c.pos_att_type else None
        for layer in range(c.num_hidden_layers):
            prefix = f"deberta.encoder.layer.{layer}"
            context = self.attention(hidden, f"{prefix}.attention.self", rows, mask_bias)
            added = self.dense(context, f"{prefix}.attention.output.dense")
            hidden = self.node("Add", hidden, added)
            hidden = self.norm(hidden, f"{prefix}.attention.output.LayerNorm")
            inner = self.activation(
                self.dense(hidden, f"{prefix}.intermediate.dense"), c.hidden_act
            )
            hidden = self.node("Add", hidden, self.dense(inner, f"{prefix}.output.dense"))
            hidden = self.norm(hidden, f"{prefix}.output.LayerNorm")
            if layer == 0 and c.conv_kernel_size:
                hidden = self.convolution(embedded, hidden, mask_BL1)
        return hidden

    def relative_rows(self, positions: str) -> str:
        """The row of every (query, key) in the relative tables: int64 [length, length]."""
        limit = self.max_length
        across = self.node("Unsqueeze", positions, np.array([1]))
        down = self.node("Unsqueeze", positions, np.array([0]))
        distance = self.node("Add", self.node("Sub", across, down), np.int64(limit - 1))
        # distance_rows[i - j + L - 1] is the row of query i and key j.
        table = np.asarray(distance_rows(self.config, limit, limit), np.int64)
        return self.node("Gather", table, distance)

    def attention(self, hidden: str, prefix: str, rows: str | None, mask_bias: str) -> str:
        c, heads = self.config, self.config.num_attention_heads
        weights, biases, own = _projections(c, self.tensors, prefix)
        query, key, value = (
            self.split(self.node("Add", self.node("MatMul", hidden, weight.T), bias))
            for weight, bias in zip(weights, biases, strict=True)
        )
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        if rows is not None:
            relative = _relative(c, self.tensors)
            shape = self.node("Shape", scores)
            if "c2p" in c.pos_att_type:
                table = _heads(relative @ own["key"][0].T + own["key"][1], heads)
                c2p = self.node("MatMul", query, table)
                scores = self.node("Add", scores, self.looked_up(c2p, rows, shape))
            if "p2c" in c.pos_att_type:
                table = _heads(relative @ own["query"][0].T + own["query"][1], heads)
                p2c = self.node("MatMul", key, table)
                p2c = self.looked_up(p2c, self.node("Transpose", rows, perm=[1, 0]), shape)
                p2c = self.node("Transpose", p2c, perm=[0, 1, 3, 2])
                scores = self.node("Add", scores, p2c)
        scale = np.float32(1 / math.sqrt(c.head_size * (1 + len(c.pos_att_type))))
        scores = self.node("Add", self.node("Mul", scores, scale), mask_bias)
        shares = self.node("Softmax", scores, axis=-1)
        context = self.node("Transpose", self.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", context, np.array([0, 0, c.hidden_size]))

    def looked_up(self, table: str, rows: str, shape: str) -> str:
        """table[b, h, i, rows[i, j]] for every i and j."""
        return self.node("GatherElements", table, self.node("Expand", rows, shape), axis=3)

    def split(self, x: str) -> str:
        """[batch, length, width] -> [batch, heads, length, head size]."""
        c = self.config
        shape = np.array([0, 0, c.num_attention_heads, c.head_size])
        return self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])

    def convolution(self, embedded: str, layer_output: str, mask_BL1: str) -> str:
        """v2's convolution; embeddings at padding are 0 already, and so is what lies beyond."""
        prefix, c = "deberta.encoder.conv", self.config
        reach = c.conv_kernel_size // 2
        inputs = self.node("Transpose", embedded, perm=[0, 2, 1])
        weight, bias = (self.tensors[f"{prefix}.conv.{part}"] for part in ("weight", "bias"))
        outputs = self.node("Conv", inputs, weight, bias, pads=[reach, reach])
        outputs = self.node("Mul", self.node("Transpose", outputs, perm=[0, 2, 1]), mask_BL1)
        added = self.node("Add", layer_output, self.activation(outputs, c.conv_act))
        return self.node("Mul", self.norm(added, f"{prefix}.LayerNorm"), mask_BL1)

    def dense(self, x: str, prefix: str) -> str:
        product = self.node("MatMul", x, self.tensors[f"{prefix}.weight"].T)
        return self.node("Add", product, self.tensors[f"{prefix}.bias"])

    def norm(self, x: str, prefix: str) -> str:
        weight, bias = (self.tensors[f"{prefix}.{part}"] for part in ("weight", "bias"))
        epsilon = self.config.layer_norm_eps
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def activation(self, x: str, name: str) -> str:
        if name == "gelu_new":
            return self.node("Gelu", x, approximate="tanh")
        return self.node({"gelu": "Gelu", "relu": "Relu", "tanh": "Tanh"}[name], x)


def _ints(*values: int) -> list[np.ndarray]:
    return [np.array([value], np.int64) for value in values]


def _heads(rows: np.ndarray, heads: int) -> np.ndarray:
    """[R, width] -> [heads, head size, R]: what queries or keys are multiplied with."""
    return rows.reshape(len(rows), heads, -1).transpose(1, 2, 0)


def _relative(c: ModelConfig, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The relative embeddings, normalised where the model normalises them."""
    rows = tensors["deberta.encoder.rel_embeddings.weight"]
    if c.norm_rel_ebd != "layer_norm":
        return rows
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c.layer_norm_eps)
    weight, bias = (tensors[f"deberta.encoder.LayerNorm.{part}"] for part in ("weight", "bias"))
    return scaled * weight + bias


def _projections(
    c: ModelConfig, tensors: Mapping[str, np.ndarray], prefix: str
) -> tuple[list, list, dict]:
    """([query, key, value weights], their biases, {"key", "query"}: relative (weight, bias))."""
    zero = np.zeros(c.hidden_size, np.float32)
    if c.model_type == "deberta":
        stacked = tensors[f"{prefix}.in_proj.weight"]
        stacked = stacked.reshape(c.num_attention_heads, 3, c.head_size, c.hidden_size)
        weights = [stacked[:, part].reshape(c.hidden_size, -1) for part in range(3)]
        biases = [tensors[f"{prefix}.q_bias"], zero, tensors[f"{prefix}.v_bias"]]
        names = {"key": "pos_proj", "query": "pos_q_proj"}
    else:
        kinds = [f"{prefix}.{name}_proj" for name in ("query", "key", "value")]
        weights = [tensors[f"{name}.weight"] for name in kinds]
        biases = [tensors[f"{name}.bias"] for name in kinds]
        names = {"key": "pos_key_proj", "query": "pos_query_proj"}
    if c.share_att_key:
        return weights, biases, {"key": (weights[1], biases[1]), "query": (weights[0], biases[0])}
    own = {
        kind: (tensors[f"{prefix}.{name}.weight"], tensors.get(f"{prefix}.{name}.bias", zero))
        for kind, name in names.items()
        if f"{prefix}.{name}.weight" in tensors
    }
    return weights, biases, own
