"""The run that is kept of every schema: seconds to make, small enough to keep."""

from deberta_jax import schema


def get_config():
    config = schema.default()
    config.data.corpus = "corpus/*.txt"
    config.data.vocab_size = 60
    config.data.sequence_length = 32
    config.data.validation_share = 0.3
    config.data.workers = 1
    config.model.vocab_size = 64
    config.model.hidden_size = 16
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 32
    config.model.max_position_embeddings = 32
    config.model.max_relative_positions = 32
    config.model.position_buckets = 16
    config.train.duration = "6 steps"
    config.train.batch_size = 8
    config.train.log_every = "1 step"
    config.train.eval_every = "0"
    config.train.eval_batches = 2
    config.train.keep_checkpoints = 1
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup = "10%"
    return config
