"""WNLI: whether a sentence follows from another when a pronoun is resolved.

    python -m deberta_jax.finetune --config=configs/finetune/wnli.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Its development set contradicts its training set by design: 56.3 is the majority's share.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("wnli", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/wnli:train"
    config.task.validation = ("tfds:glue/wnli:validation",)
    config.task.texts = ("sentence1", "sentence2")
    config.task.label = "label"
    config.task.labels = ("0|not_entailment", "1|entailment")
    config.task.scores = ("accuracy",)
    config.task.max_length = 128
    return config
