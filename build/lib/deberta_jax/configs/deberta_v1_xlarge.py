"""DeBERTa v1 xlarge (757.8M parameters): v1 large with twice the layers.

    python -m deberta_jax.prepare --config=configs/deberta_v1_xlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v1_xlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

Its own schedule was never published; these are v1 large's values. Meant for a TPU v5p-128 or
larger. To expect: not yet measured.
"""

from deberta_jax.configs import deberta_v1_large


def get_config():
    config = deberta_v1_large.get_config()
    config.model.num_hidden_layers = 48
    return config
