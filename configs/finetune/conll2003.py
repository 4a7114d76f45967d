"""CoNLL-2003: names of persons, places, organisations and others in the news.

    python -m deberta_jax.finetune --config=configs/finetune/conll2003.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

Its own files are taken with --config.task.format=conll --config.task.train=eng.train and
--config.task.validation="('eng.testa',)". Published: large 93.8 (F1, test set).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("conll2003", size)
    config.objective = "token_classification"
    config.task.train = "tfds:conll2003:train"
    config.task.validation = ("tfds:conll2003:dev",)
    config.task.texts = ("tokens",)
    config.task.label = "ner|tags"
    config.task.scores = ("f1", "precision", "recall")
    config.task.max_length = 256
    return config
