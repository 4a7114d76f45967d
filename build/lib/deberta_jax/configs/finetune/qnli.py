"""QNLI: whether a sentence answers a question.

    python -m deberta_jax.finetune --config=configs/finetune/qnli.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Published: large 95.3.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("qnli", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/qnli:train"
    config.task.validation = ("tfds:glue/qnli:validation",)
    config.task.texts = ("question", "sentence")
    config.task.label = "label"
    config.task.labels = ("entailment", "not_entailment")
    config.task.scores = ("accuracy",)
    config.task.max_length = 512
    return config
