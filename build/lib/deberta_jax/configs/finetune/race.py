"""RACE: questions about English texts for school, four choices each.

    python -m deberta_jax.finetune --config=configs/finetune/race.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The middle-school half is tfds:race/middle. Published: large 86.8, both halves together.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("race", size)
    config.objective = "multiple_choice"
    config.task.train = "tfds:race/high:train"
    config.task.validation = ("tfds:race/high:dev",)
    config.task.texts = ("article", "question")
    config.task.choices = ("choices",)
    config.task.label = "label"
    config.task.max_length = 512
    return config
