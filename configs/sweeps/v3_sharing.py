"""How generator and discriminator share their word embeddings: the ablation of DeBERTaV3, table 5.

    python -m deberta_jax.sweep --sweep=configs/sweeps/v3_sharing.py:tiny --workdir=runs/sharing \
        --config.data.corpus=TRAIN.jsonl.xz --config.data.validation_corpus=VALID.jsonl.xz

is the `tiny` size: four variants, three seeds, minutes each on 2 CPU cores. Without
--config.data..., it learns from Shakespeare's plays (the `demo` extra).

At published size (base, 1M steps of 256 sequences of 512, one seed, on Wikipedia and books):

    python -m deberta_jax.sweep --sweep=configs/sweeps/v3_sharing.py \
        --workdir=gs://BUCKET/sweeps/sharing \
        --config.data.corpus='gs://BUCKET/text/*.jsonl.gz' \
        --launch='gke.sh create --tpu=v5e:4x8 --image=IMAGE --queue=QUEUE'

To expect after fine-tuning (published, MNLI m/mm): masked LM 86.3/86.2, es 88.8/88.4, nes
88.3/87.9, gdes 89.3/89.0.
"""

from deberta_jax.configs import deberta_v3_base
from deberta_jax.configs.sweeps.ablation import tiny
from deberta_jax.sweeps import product

BASE = "gdes"
VARIANTS = [
    {"name": "gdes"},
    {"name": "es", "rtd.sharing": "es"},
    {"name": "nes", "rtd.sharing": "nes"},
    {"name": "mlm", "objective": "mlm"},
]
SIZES = ("published", "tiny")


def get_config(size="published"):
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; sizes are {', '.join(SIZES)}")
    config = deberta_v3_base.get_config()
    config.train.batch_size = 256
    config.train.duration = "1M steps"
    config.optimizer.learning_rate = 1e-4
    if size == "tiny":
        config = tiny(config)
        config.model.num_hidden_layers = 4
        config.model.position_buckets = 32
    return config


def sweep(size="published"):
    seeds = (0, 1, 2) if size == "tiny" else (0,)
    return product({"seed": seeds}, VARIANTS)
