"""QQP: whether two questions ask the same.

    python -m deberta_jax.finetune --config=configs/finetune/qqp.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)"; some of their rows are cut, and left out.
Published: large 92.3 (accuracy).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("qqp", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/qqp:train"
    config.task.validation = ("tfds:glue/qqp:validation",)
    config.task.texts = ("question1", "question2")
    config.task.label = "label|is_duplicate"
    config.task.labels = ("0|not_duplicate", "1|duplicate")
    config.task.uneven_rows = "skip"
    config.task.scores = ("accuracy", "f1")
    config.task.max_length = 320
    return config
