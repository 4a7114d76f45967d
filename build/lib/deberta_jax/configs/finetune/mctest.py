"""MCTest: questions about stories for children, four choices each.

    python -m deberta_jax.finetune --config=configs/finetune/mctest.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The answers are read from the .ans file beside each .tsv file.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("mctest", size)
    config.objective = "multiple_choice"
    config.task.train = "mc500.train.tsv"
    config.task.validation = ("mc500.dev.tsv",)
    config.task.texts = ("context", "question")
    config.task.choices = ("choices",)
    config.task.label = "label"
    config.task.max_length = 512
    return config
