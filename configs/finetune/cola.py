"""CoLA: whether a sentence is acceptable English.

    python -m deberta_jax.finetune --config=configs/finetune/cola.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)"; they have no line of names. Published: large 70.5.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("cola", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/cola:train"
    config.task.validation = ("tfds:glue/cola:validation",)
    config.task.header = ("source", "label", "star", "sentence")
    config.task.texts = ("sentence",)
    config.task.label = "label"
    config.task.labels = ("0|unacceptable", "1|acceptable")
    config.task.scores = ("matthews",)
    config.task.max_length = 64
    return config
