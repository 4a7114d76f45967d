"""MNLI: whether a premise entails a hypothesis, contradicts it, or neither.

    python -m deberta_jax.finetune --config=configs/finetune/mnli.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; MNLI's own .jsonl files and GLUE's .tsv files are taken with
--config.task.train and --config.task.validation="('matched=FILE','mismatched=FILE')". Examples that
the annotators did not agree on (label "-") are left out, and counted.
Measured on both development sets; the best checkpoint is that of the matched one.
Published: large 91.1/91.1, base 88.8/88.5, v3 large 91.8/91.9, v3 base 90.6/90.7.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("mnli", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/mnli:train"
    config.task.validation = (
        "matched=tfds:glue/mnli:validation_matched",
        "mismatched=tfds:glue/mnli:validation_mismatched",
    )
    config.task.texts = ("premise|sentence1", "hypothesis|sentence2")
    config.task.label = "label|gold_label"
    config.task.labels = ("entailment", "neutral", "contradiction")
    config.task.skip_labels = ("-",)
    config.task.scores = ("accuracy",)
    config.task.max_length = 256
    return config
