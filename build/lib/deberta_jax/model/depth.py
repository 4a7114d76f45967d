"""How deep in the model each parameter lies: what layer-wise learning rates go by."""

import jax
import numpy as np

from deberta_jax.model.config import ModelConfig


def depths(config: ModelConfig, params):
    """A tree like `params`: 0 for embeddings, i for layer i of n, n + 1 for what is above them.

    The stacked layers get an array [n - 1, 1, ...] that broadcasts over their parameter, every
    other parameter an integer. Relative embeddings, which every layer reads, and the convolution
    beside the first layer lie with the word embeddings.
    """
    layers = config.num_hidden_layers
    first = 1 + bool(config.conv_kernel_size)

    def depth(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if "embeddings" in names[:1]:
            return 0
        if "encoder" not in names[:1]:
            return layers + 1
        if names[1] == "layers":
            stacked = np.arange(first, first + leaf.shape[0])
            return stacked.reshape(-1, *[1] * (len(leaf.shape) - 1))
        return {"first_layer": 1, "last_layer": layers}.get(names[1], 0)

    return jax.tree.map_with_path(depth, params)
