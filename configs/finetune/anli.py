"""ANLI, round 3: inference examples that were collected against a model.

    python -m deberta_jax.finetune --config=configs/finetune/anli.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

Rounds 1 and 2: --config.task.train=tfds:anli/r1:train and so on. Its own .jsonl files have the same
columns.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("anli", size)
    config.objective = "classification"
    config.task.train = "tfds:anli/r3:train"
    config.task.validation = ("tfds:anli/r3:validation",)
    config.task.texts = ("context|premise", "hypothesis")
    config.task.label = "label"
    config.task.labels = ("e|entailment", "n|neutral", "c|contradiction")
    config.task.scores = ("accuracy",)
    config.task.max_length = 256
    return config
