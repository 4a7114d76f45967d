"""STS-B: how alike two sentences are, from 0 to 5.

    python -m deberta_jax.finetune --config=configs/finetune/stsb.py:large \
        --init=CHECKPOINT --workdir=W --seeds=3

The examples come from TFDS; GLUE's own files are taken with --config.task.train=train.tsv and
--config.task.validation="('dev.tsv',)". The benchmark's own files end in .csv, part at tabs, have
no line of names, and further cells in some rows; they need --config.task.format=tsv,
--config.task.header="('genre','file','year','index','score','sentence1','sentence2')" and
--config.task.uneven_rows=keep too.
Published: large 92.8 (Pearson).
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("stsb", size)
    config.objective = "regression"
    config.task.train = "tfds:glue/stsb:train"
    config.task.validation = ("tfds:glue/stsb:validation",)
    config.task.texts = ("sentence1", "sentence2")
    config.task.label = "label|score"
    config.task.scores = ("pearson", "spearman")
    config.task.max_length = 128
    return config
