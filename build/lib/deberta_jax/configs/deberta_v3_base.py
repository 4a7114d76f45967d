"""DeBERTa v3 base (183.8M parameters): v2's log buckets and shared projections, no convolution.

    python -m deberta_jax.prepare --config=configs/deberta_v3_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v3_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

The architecture and the schedule are those of arXiv 2111.09543; the objective is not: its replaced
token detection is not here yet, so this pre-trains by masked language modelling. Meant for a TPU
v5e-64 or larger. To expect: MNLI 86.3/86.2, SQuAD 2.0 82.5/79.3 after fine-tuning (published, for
masked language modelling on Wikipedia and books). Not yet measured with this code.
"""

from deberta_jax import schema


def get_config():
    config = schema.default()

    config.data.vocab_size = 128_000
    config.data.sequence_length = 512
    config.masking.max_ngram = 1

    config.model.vocab_size = 128_100
    config.model.hidden_size = 768
    config.model.num_hidden_layers = 12
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 3072
    config.model.position_buckets = 256
    config.model.max_relative_positions = 512
    config.model.share_att_key = True
    config.model.norm_rel_ebd = "layer_norm"
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"

    config.train.duration = "500k steps"
    config.train.batch_size = 8192
    config.optimizer.learning_rate = 6e-4
    config.optimizer.b2 = 0.98
    config.optimizer.warmup = "10k steps"
    return config
