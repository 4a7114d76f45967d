"""DeBERTa v2 xxlarge (1564.5M parameters), the paper's 1.5B model (arXiv 2006.03654, 5.1).

    python -m deberta_jax.prepare --config=configs/deberta_v2_xxlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v2_xxlarge.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

The paper trained on 160 GB of text, on 256 V100 for 30 days. Meant for a TPU v6e-256.
To expect: SuperGLUE 89.9 with SiFT (published). Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v2_xlarge


def get_config():
    config = deberta_v2_xlarge.get_config()
    config.model.num_hidden_layers = 48
    return config
