"""SQuAD 1.1: the words of a passage that answer a question.

    python -m deberta_jax.finetune --config=configs/finetune/squad.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

SQuAD's own .json files are taken too. Published: large 95.5/90.1 (F1, exact match), base 93.1/87.2.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("squad", size, "squad")
    config.objective = "span"
    config.task.train = "tfds:squad/v1.1:train"
    config.task.validation = ("tfds:squad/v1.1:validation",)
    config.task.texts = ("question", "context")
    config.task.label = "answers"
    config.task.scores = ("f1", "exact_match")
    config.task.max_length = 384
    return config
