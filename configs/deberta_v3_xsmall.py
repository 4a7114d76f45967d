"""DeBERTa v3 xsmall (70.7M parameters, 49.2M of them word embeddings) by replaced-token detection.

    python -m deberta_jax.prepare --config=configs/deberta_v3_xsmall.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v3_xsmall.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

v3 base at half its width. The paper states no settings for this size; these are v3 base's. The
released script: --config.optimizer.learning_rate=3e-4 --config.train.batch_size=64
--config.optimizer.b2=0.999 --config.train.duration='1M steps' --config.rtd.discriminator_weight=10.
Meant for a TPU v5e-16 or larger. To expect after fine-tuning: MNLI 88.1/88.3 (published). Not yet
measured with this code.
"""

from deberta_jax.configs import deberta_v3_base


def get_config():
    config = deberta_v3_base.get_config()
    config.model.hidden_size = 384
    config.model.num_attention_heads = 6
    config.model.intermediate_size = 1536
    return config
