"""RACE: questions about English texts for school, four choices each.

    python -m deberta_jax.finetune --config=configs/finetune/race.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The files are RACE's own, one a passage, of both halves (RACE/train/high/*.txt is one of them).
Where TensorFlow is installed, --config.task.train=tfds:race/high:train and
--config.task.validation="('tfds:race/high:dev',)" read it from TFDS. Published: large 86.8.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("race", size)
    config.objective = "multiple_choice"
    config.task.train = "RACE/train/*/*.txt"
    config.task.validation = ("RACE/dev/*/*.txt",)
    config.task.format = "json"
    config.task.texts = ("article", "question")
    config.task.choices = ("choices",)
    config.task.label = "label"
    config.task.max_length = 512
    return config
