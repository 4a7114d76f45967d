"""RTE: whether a text entails a sentence.

    python -m deberta_jax.finetune --config=configs/finetune/rte.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)".
Published: large 88.3, begun from an MNLI checkpoint: --init takes a fine-tuned run too.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("rte", size)
    config.objective = "classification"
    config.task.train = "tfds:glue/rte:train"
    config.task.validation = ("tfds:glue/rte:validation",)
    config.task.texts = ("sentence1|premise", "sentence2|hypothesis")
    config.task.label = "label"
    config.task.labels = ("entailment", "not_entailment")
    config.task.scores = ("accuracy",)
    config.task.max_length = 320
    return config
