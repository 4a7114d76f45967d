"""GoEmotions: which of 27 emotions, or none of them, a comment shows; some show several.

    python -m deberta_jax.finetune --config=configs/finetune/goemotions.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; the authors' own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Published by the authors: BERT base 46 (macro F1, test set).
"""

from deberta_jax.configs.finetune import settings

# In the order of the numbers of the authors' files.
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity",
    "desire", "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear",
    "gratitude", "grief", "joy", "love", "nervousness", "optimism", "pride", "realization",
    "relief", "remorse", "sadness", "surprise", "neutral",
)  # fmt: skip


def get_config(size="base"):
    config = settings.of("goemotions", size)
    config.objective = "multi_label"
    config.task.train = "tfds:goemotions:train"
    config.task.validation = ("tfds:goemotions:validation",)
    config.task.header = ("text", "label", "id")
    config.task.texts = ("text|comment_text",)
    config.task.label = "label"
    config.task.labels = tuple(f"{name}|{number}" for number, name in enumerate(EMOTIONS))
    config.task.separator = ","
    config.task.scores = ("macro_f1", "micro_f1", "accuracy")
    config.task.thresholds = ()
    config.task.max_length = 64
    return config
