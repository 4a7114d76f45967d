"""The quickstart as an auto-regressive model: each token of Shakespeare's from those before it.

    python -m deberta_jax.prepare  --config=configs/quickstart_clm.py --workdir=runs/clm
    python -m deberta_jax.train    --config=configs/quickstart_clm.py --workdir=runs/clm
    python -m deberta_jax.evaluate --workdir=runs/clm

The paper's auto-regressive DeBERTa: disentangled attention under a triangular mask, absolute
positions in EMD. With --config.objective=mlm_clm --config.model.causal=False it is DeBERTa-MT.
"""

from deberta_jax.configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.objective = "clm"
    config.model.causal = True
    return config
