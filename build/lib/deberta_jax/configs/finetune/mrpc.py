"""MRPC: whether two sentences of the news say the same.

    python -m deberta_jax.finetune --config=configs/finetune/mrpc.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Published: large 91.9 (accuracy).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("mrpc", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/mrpc:train"
    config.task.validation = ("tfds:glue/mrpc:validation",)
    config.task.texts = ("sentence1|#1 String", "sentence2|#2 String")
    config.task.label = "label|Quality"
    config.task.labels = ("0|not_equivalent", "1|equivalent")
    config.task.scores = ("accuracy", "f1")
    config.task.max_length = 128
    return config
