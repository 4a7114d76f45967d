"""DeBERTa v3 small (141.3M parameters, 98.4M of them word embeddings) by replaced-token detection.

    python -m deberta_jax.prepare --config=configs/deberta_v3_small.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v3_small.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

v3 base with half its layers, as in arXiv 2111.09543. Meant for a TPU v5e-32 or larger. To expect
after fine-tuning: MNLI 88.3/87.7 (published). Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v3_base


def get_config():
    config = deberta_v3_base.get_config()
    config.model.num_hidden_layers = 6
    return config
