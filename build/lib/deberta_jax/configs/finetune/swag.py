"""SWAG: which of four endings goes on with a scene.

    python -m deberta_jax.finetune --config=configs/finetune/swag.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The files are those of its authors' repository (rowanz/swagaf). Published: large 90.8.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("swag", size)
    config.objective = "multiple_choice"
    config.task.train = "train.csv"
    config.task.validation = ("val.csv",)
    config.task.texts = ("sent1", "sent2")
    config.task.choices = ("ending0", "ending1", "ending2", "ending3")
    config.task.label = "label"
    config.task.max_length = 128
    return config
