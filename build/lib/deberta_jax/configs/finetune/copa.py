"""COPA: which of two sentences is the cause, or the effect, of a premise.

    python -m deberta_jax.finetune --config=configs/finetune/copa.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

SuperGLUE's own .jsonl files have the same columns. Published: 1.5B with SiFT 96.8 (test set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("copa", size)
    config.objective = "multiple_choice"
    config.task.train = "tfds:super_glue/copa:train"
    config.task.validation = ("tfds:super_glue/copa:validation",)
    config.task.texts = ("premise", "question")
    config.task.choices = ("choice1", "choice2")
    config.task.label = "label"
    config.task.max_length = 128
    return config
