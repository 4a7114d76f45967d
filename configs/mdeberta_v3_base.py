"""mDeBERTa v3 base (278.2M parameters): v3 base over 250,000 pieces, for many languages.

    python -m deberta_jax.prepare --config=configs/mdeberta_v3_base.py --workdir=W \
        --config.data.corpus='/cc100/*.jsonl.zst'
    python -m deberta_jax.train --config=configs/mdeberta_v3_base.py --workdir=W \
        --config.data.corpus='/cc100/*.jsonl.zst'

As in arXiv 2111.09543, section 5: v3 base's architecture and schedule, text of 100 languages. With
the released tokenizer, --config.data.tokenizer=spm.model --config.data.vocab_size=250101. Meant for
a TPU v5e-64 or larger. To expect after fine-tuning on English: XNLI 79.8, the mean of 15 languages
(published). Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v3_base


def get_config():
    config = deberta_v3_base.get_config()
    config.data.vocab_size = 250_000
    config.model.vocab_size = 251_000
    return config
