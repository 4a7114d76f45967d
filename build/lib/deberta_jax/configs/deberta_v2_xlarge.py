"""DeBERTa v2 xlarge (884.6M parameters): log buckets, shared projections, a convolution.

    python -m deberta_jax.prepare --config=configs/deberta_v2_xlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v2_xlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

Published: 160 GB of text. Its own schedule was not; these are the 1.5B model's values. Meant for
a TPU v6e-128 or larger. To expect: not yet measured.
"""

from deberta_jax import schema


def get_config():
    config = schema.default()

    config.data.vocab_size = 128_000
    config.data.sequence_length = 512
    config.masking.max_ngram = 3

    config.model.vocab_size = 128_100
    config.model.hidden_size = 1536
    config.model.num_hidden_layers = 24
    config.model.num_attention_heads = 24
    config.model.intermediate_size = 6144
    config.model.position_buckets = 256
    config.model.max_relative_positions = 512
    config.model.share_att_key = True
    config.model.norm_rel_ebd = "layer_norm"
    config.model.conv_kernel_size = 3
    config.model.conv_act = "gelu"
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"

    config.train.duration = "1M steps"
    config.train.batch_size = 2048
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup = "10k steps"
    config.optimizer.bias_correction = False
    config.mesh.fsdp = -1
    config.mesh.data = 1
    return config
