"""BoolQ: yes or no to a question about a passage.

    python -m deberta_jax.finetune --config=configs/finetune/boolq.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

SuperGLUE's own .jsonl files have the same columns. Published: 1.5B with SiFT 90.4 (test set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("boolq", size)
    config.objective = "classification"
    config.task.train = "tfds:super_glue/boolq:train"
    config.task.validation = ("tfds:super_glue/boolq:validation",)
    config.task.texts = ("passage", "question")
    config.task.label = "label"
    config.task.labels = ("False|false|0", "True|true|1")
    config.task.scores = ("accuracy",)
    config.task.max_length = 512
    return config
