"""SST-2: whether a sentence of a film review is positive.

    python -m deberta_jax.finetune --config=configs/finetune/sst2.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Published: large 96.8 (development set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("sst2", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/sst2:train"
    config.task.validation = ("tfds:glue/sst2:validation",)
    config.task.texts = ("sentence",)
    config.task.label = "label"
    config.task.labels = ("0|negative", "1|positive")
    config.task.scores = ("accuracy",)
    config.task.max_length = 128
    return config
