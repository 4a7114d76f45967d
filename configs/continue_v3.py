"""A released v3 goes on with replaced-token detection on the text of your own domain.

    python -m deberta_jax.prepare --config=configs/continue_v3.py:small --workdir=W \
        --config.data.corpus='/notes/*.jsonl.gz' --config.data.tokenizer=CHECKPOINT/spm.model
    python -m deberta_jax.train --config=configs/continue_v3.py:small --workdir=W \
        --config.data.corpus='/notes/*.jsonl.gz' --config.data.tokenizer=CHECKPOINT/spm.model \
        --config.train.init=CHECKPOINT

Sizes: xsmall, small, base (unless told), large, mdeberta. The settings are those of the released
scripts for xsmall and small: 100k steps of 256 sequences, peak learning rate 5e-5 after a warm-up
of 10k, b2 0.999, the discriminator's loss times 10. For base, large and mdeberta none are
published; the same are taken, and 2e-5 for large.

CHECKPOINT is a discriminator, a directory that holds a generator beside it, or the output of the
released training. Generators were published for xsmall, large and mdeberta alone: without one, it
is made of the discriminator's lower layers (docs/checkpoints.md). Where both are there, E_delta
starts at E_D - E_G, so that the discriminator goes on from where it stood.
"""

from deberta_jax.configs import (
    deberta_v3_base,
    deberta_v3_large,
    deberta_v3_small,
    deberta_v3_xsmall,
    mdeberta_v3_base,
)

SIZES = {
    "xsmall": (deberta_v3_xsmall, 5e-5),
    "small": (deberta_v3_small, 5e-5),
    "base": (deberta_v3_base, 5e-5),
    "large": (deberta_v3_large, 2e-5),
    "mdeberta": (mdeberta_v3_base, 5e-5),
}


def get_config(size="base"):
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; sizes are {', '.join(SIZES)}")
    recipe, learning_rate = SIZES[size]
    config = recipe.get_config()
    config.train.duration = "100k steps"
    config.train.batch_size = 256
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup = "10k steps"
    config.optimizer.b2 = 0.999
    config.rtd.discriminator_weight = 10.0
    return config
