"""Every field of a `config.json`: used, refused unless it is plain, or known to change nothing.

What is in none of the three lists is refused where it is set: it may change what a model computes.
"""

from collections.abc import Mapping
from typing import Any

from deberta_jax.errors import UserError

# Fields that mean the same and are named the same in `config.json` and in `ModelConfig`.
SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "max_position_embeddings", "initializer_range", "layer_norm_eps", "position_biased_input",
)  # fmt: skip
# Fields that are read into others of `ModelConfig`. `pooling` is Microsoft's name of the pooler's
# settings; its training describes two models, each in a section of its own.
USED = (
    "model_type", "relative_attention", "pos_att_type", "max_relative_positions",
    "position_buckets", "share_att_key", "norm_rel_ebd", "conv_kernel_size", "conv_act",
    "pooler_hidden_act", "pooling", "enhanced_mask_decoder", "causal",
    "generator", "discriminator",
)  # fmt: skip
# Fields that would change the model. Each has one value here, which `plain_value` gives.
REFUSED_UNLESS_PLAIN = (
    "type_vocab_size", "conv_groups", "embedding_size", "attention_head_size", "talking_head",
    "pooler_hidden_size", "is_decoder", "is_encoder_decoder", "add_cross_attention",
    "pruned_heads", "quantization_config",
)  # fmt: skip
# Fields that change no number that a model computes.
CHANGES_NOTHING = {
    # The names of the head's tensors, and whether its matrix is the word table: the tensors show.
    "legacy", "tie_word_embeddings",
    # Dropout of classifiers: `finetune.classifier_dropout` is ours.
    "pooler_dropout", "cls_dropout", "summary_last_dropout",
    # The type of the file's tensors: the tensors show.
    "dtype", "torch_dtype", "use_bfloat16",
    # Ids of tokens and settings of the tokenizer: the tokenizer has them.
    "pad_token_id", "padding_idx", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "tokenizer_class", "vocab_type",
    "model_max_length",
    # A classifier's labels: their number is that of the tensor's rows.
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    # Which program wrote the file, for which of its classes, and how that is run.
    "architectures", "transformers_version", "output_attentions",
    "output_hidden_states", "return_dict", "use_return_dict", "output_past", "torchscript",
    "chunk_size_feed_forward", "gradient_checkpointing", "use_cache", "tf_legacy_loss",
    "task_specific_params", "custom_pipelines", "sentence_transformers", "prefix",
    "tie_encoder_decoder", "cross_attention_hidden_size", "is_composition", "attn_implementation",
    # Generation, of which a DeBERTa does none; transformers 4 wrote them into every file.
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip
# Beginnings of names: private to a program, or sentence-transformers' own.
_CHANGE_NOTHING = ("_", "sbert_")
_KNOWN = {*SHARED, *USED, *REFUSED_UNLESS_PLAIN, *CHANGES_NOTHING}


def check_fields(stated: Mapping[str, Any]) -> None:
    """Raises `UserError` for a field that states what no DeBERTa here can be, or is not known."""
    for field in REFUSED_UNLESS_PLAIN:
        value, plain = stated.get(field), plain_value(field, stated)
        if field == "type_vocab_size" and isinstance(value, int) and value < 0:
            continue  # as Microsoft's code spells none
        if value and value != plain:
            raise UserError(
                f"{field} is {value}; only {plain}, as in every released DeBERTa, is read"
            )
    for field, value in stated.items():
        if field not in _KNOWN and not field.startswith(_CHANGE_NOTHING) and value:
            raise UserError(
                f"{field} is {value!r}, and deberta_jax has no such field: it may change what the "
                "model computes; if it does not, remove it"
            )


def plain_value(field: str, stated: Mapping[str, Any]) -> Any:
    """The value of a field of `REFUSED_UNLESS_PLAIN` that is read."""
    width = stated["hidden_size"]
    plain = {
        "type_vocab_size": 0,
        "conv_groups": 1,
        "embedding_size": width,
        "pooler_hidden_size": width,
        "attention_head_size": width // max(1, stated["num_attention_heads"]),
        "pruned_heads": None,
        "quantization_config": None,
    }
    return plain.get(field, False)
