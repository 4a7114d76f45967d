"""The quickstart by replaced-token detection, DeBERTaV3's objective: minutes on a laptop's CPU.

    python -m deberta_jax.prepare  --config=configs/quickstart_v3.py --workdir=runs/v3
    python -m deberta_jax.train    --config=configs/quickstart_v3.py --workdir=runs/v3
    python -m deberta_jax.evaluate --workdir=runs/v3
    python -m deberta_jax.export   --workdir=runs/v3 --out=runs/v3/export

A generator of two layers fills masked words of Shakespeare's plays in; a discriminator of four
learns which words it replaced. Watch eval/rtd_accuracy beside eval/all_original_accuracy, what is
reached by calling every word original.
"""

from deberta_jax.configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.objective = "rtd"
    config.masking.max_ngram = 1
    config.masking.mask_share = 1.0
    config.masking.random_share = 0.0
    config.train.duration = "1500 steps"
    return config
