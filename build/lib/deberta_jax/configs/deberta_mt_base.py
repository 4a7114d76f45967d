"""DeBERTa-MT base: masked and auto-regressive modelling at once (arXiv 2006.03654, table 10).

    python -m deberta_jax.prepare --config=configs/deberta_mt_base.py --workdir=W \
        --config.data.corpus='wikitext-103/train/*.txt' \
        --config.data.validation_corpus='wikitext-103/valid/*.txt'
    python -m deberta_jax.train --config=configs/deberta_mt_base.py --workdir=W \
        --config.data.corpus='wikitext-103/train/*.txt' \
        --config.data.validation_corpus='wikitext-103/valid/*.txt'

Both passes read the same text with the same parameters, decoded with EMD; the loss is their sum. A
step costs as much as one of each (docs/language_modelling.md).

The paper: WikiText-103, v1 base's hyper-parameters, 200k steps. Meant for a TPU v5e-64 or larger.
To expect: perplexity 19.5 dev, 19.5 test (published; see deberta_ap_base.py). Not yet measured with
this code.
"""

from deberta_jax.configs import deberta_v1_base


def get_config():
    config = deberta_v1_base.get_config()
    config.objective = "mlm_clm"
    config.train.duration = "200k steps"
    return config
