"""DeBERTa v3 large (434.0M parameters) by replaced-token detection.

    python -m deberta_jax.prepare --config=configs/deberta_v3_large.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v3_large.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

v3 base, wider and deeper, as in arXiv 2111.09543; docs/mathematics.md has the objective. The
released script: as configs/deberta_v3_base.py states. Meant for a TPU v5e-256 or larger. To expect
after fine-tuning: MNLI 91.8/91.9 (published). Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v3_base


def get_config():
    config = deberta_v3_base.get_config()
    config.model.hidden_size = 1024
    config.model.num_hidden_layers = 24
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 4096
    config.compute.remat = "dots"
    config.optimizer.learning_rate = 3e-4
    config.mesh.fsdp = -1
    config.mesh.data = 1
    return config
