"""WiC: whether a word means the same in two sentences.

    python -m deberta_jax.finetune --config=configs/finetune/wic.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The word stands before the first sentence. Published: 1.5B with SiFT 76.4 (test set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("wic", size)
    config.objective = "classification"
    config.task.train = "tfds:super_glue/wic:train"
    config.task.validation = ("tfds:super_glue/wic:validation",)
    config.task.texts = ("word+sentence1", "sentence2")
    config.task.label = "label"
    config.task.labels = ("False|false|0", "True|true|1")
    config.task.scores = ("accuracy",)
    config.task.max_length = 128
    return config
