"""Your own classification: two files with named columns, .tsv, .csv or .jsonl.

    python -m deberta_jax.finetune --config=configs/finetune/custom.py --init=CHECKPOINT \
        --workdir=W --config.task.train=train.csv --config.task.validation="('dev.csv',)" \
        --config.task.texts="('title','body')" --config.task.label=category

The labels are those of the training file. For several labels of one text
--config.objective=multi_label and --config.task.scores="('micro_f1','macro_f1')"; for numbers
--config.objective=regression and --config.task.scores="('pearson',)"; for other tasks begin with a
recipe of the same kind.
"""

from deberta_jax.configs.finetune import settings


def get_config(size="base"):
    config = settings.of("custom", size)
    config.objective = "classification"
    config.task.scores = ("accuracy", "macro_f1")
    config.task.max_length = 256
    return config
