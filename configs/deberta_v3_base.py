"""DeBERTa v3 base (183.8M parameters) by replaced-token detection.

    python -m deberta_jax.prepare --config=configs/deberta_v3_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v3_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

Architecture, schedule and objective are those of arXiv 2111.09543: a generator of half the layers,
gradient-disentangled sharing of the word embeddings. The released script differs in
--config.optimizer.learning_rate=1e-4 --config.optimizer.b2=0.999 --config.train.batch_size=256
--config.train.duration='1M steps' --config.rtd.discriminator_weight=10. By masked language
modelling instead: --config.objective=mlm. Meant for a TPU v5e-64 or larger. To expect after
fine-tuning: MNLI 90.6/90.7 (published, 160 GB of text); 89.3/89.0, SQuAD 2.0 87.2/84.5 (published
ablation, Wikipedia and books). Not yet measured with this code.
"""

from deberta_jax import schema


def get_config():
    config = schema.default()
    config.objective = "rtd"

    config.data.vocab_size = 128_000
    config.data.sequence_length = 512
    # The generator fills single tokens in, and sees [MASK] in the place of each.
    config.masking.max_ngram = 1
    config.masking.mask_share = 1.0
    config.masking.random_share = 0.0

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
