"""DeBERTa-AP base, auto-regressive: absolute positions at the input (arXiv 2006.03654, table 10).

    python -m deberta_jax.prepare --config=configs/deberta_ap_base.py --workdir=W \
        --config.data.corpus='wikitext-103/train/*.txt' \
        --config.data.validation_corpus='wikitext-103/valid/*.txt'
    python -m deberta_jax.train --config=configs/deberta_ap_base.py --workdir=W \
        --config.data.corpus='wikitext-103/train/*.txt' \
        --config.data.validation_corpus='wikitext-103/valid/*.txt'

Disentangled attention under a triangular mask. The paper's table has two more models of one loss:
"DeBERTa", with absolute positions in EMD instead, is this recipe with
--config.model.position_biased_input=False; "RoBERTa" is it with --config.model.pos_att_type='()'.

The paper: WikiText-103, v1 base's hyper-parameters, 200k steps. Meant for a TPU v5e-64 or larger.
To expect: perplexity 20.7 dev, 20.0 test (published; its vocabulary is GPT-2's, and perplexities of
different vocabularies do not compare). Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v1_base


def get_config():
    config = deberta_v1_base.get_config()
    config.objective = "clm"
    config.model.causal = True
    config.model.position_biased_input = True
    config.train.duration = "200k steps"
    return config
