"""SQuAD 2.0: as SQuAD 1.1, with questions that the passage does not answer.

    python -m deberta_jax.finetune --config=configs/finetune/squad_v2.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

Scores are with the threshold 0; those of the best threshold are measured beside them.
Published: large 90.7/88.0 (F1, exact match), base 86.2/83.1.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("squad_v2", size, "squad")
    config.objective = "span"
    config.task.train = "tfds:squad/v2.0:train"
    config.task.validation = ("tfds:squad/v2.0:validation",)
    config.task.texts = ("question", "context")
    config.task.label = "answers"
    config.task.scores = ("f1", "exact_match")
    config.task.max_length = 384
    return config
