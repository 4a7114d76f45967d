"""CB: whether a speaker believes an embedded clause.

    python -m deberta_jax.finetune --config=configs/finetune/cb.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

SuperGLUE's own .jsonl files have the same columns. Published: 1.5B with SiFT 94.9/97.2 (F1,
accuracy; test set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("cb", size)
    config.objective = "classification"
    config.task.train = "tfds:super_glue/cb:train"
    config.task.validation = ("tfds:super_glue/cb:validation",)
    config.task.texts = ("premise", "hypothesis")
    config.task.label = "label"
    config.task.labels = ("entailment", "contradiction", "neutral")
    config.task.scores = ("accuracy", "macro_f1")
    config.task.max_length = 256
    return config
