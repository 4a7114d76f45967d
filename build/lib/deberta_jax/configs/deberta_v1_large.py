"""DeBERTa v1 large (405.2M parameters), the paper's large recipe (arXiv 2006.03654, table 8).

    python -m deberta_jax.prepare --config=configs/deberta_v1_large.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v1_large.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

The paper trained on 78 GB of text, on 96 V100 for 20 days. Meant for a TPU v5p-64 or larger.
To expect: GLUE average 90.00, MNLI 91.1/91.1, SQuAD 2.0 90.7/88.0 after fine-tuning (published).
Not yet measured with this code.
"""

from deberta_jax.configs import deberta_v1_base


def get_config():
    config = deberta_v1_base.get_config()
    config.model.hidden_size = 1024
    config.model.num_hidden_layers = 24
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 4096
    config.compute.remat = "dots"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    return config
