"""DeBERTa v1 base (138.6M parameters), the paper's base recipe (arXiv 2006.03654, table 9).

    python -m deberta_jax.prepare --config=configs/deberta_v1_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'
    python -m deberta_jax.train --config=configs/deberta_v1_base.py --workdir=W \
        --config.data.corpus='/text/*.jsonl.gz'

The paper trained on 78 GB of text, on 64 V100 for 10 days. Meant for a TPU v5e-64 or larger.
To expect: MNLI 88.8/88.5 after fine-tuning (published). Not yet measured with this code.
The published checkpoint reads GPT-2 BPE tokens; a run from text trains a SentencePiece vocabulary
of the same size instead.
"""

from deberta_jax import schema


def get_config():
    config = schema.default()

    config.data.vocab_size = 50_000
    config.data.sequence_length = 512
    config.masking.max_ngram = 3

    config.model.model_type = "deberta"
    config.model.vocab_size = 50_304
    config.model.hidden_size = 768
    config.model.num_hidden_layers = 12
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 3072
    config.model.position_buckets = 0
    config.model.max_relative_positions = 512
    config.model.share_att_key = False
    config.model.norm_rel_ebd = "none"
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"

    config.train.duration = "1M steps"
    config.train.batch_size = 2048
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = "10k steps"
    config.optimizer.bias_correction = False
    return config
