"""deberta_jax: pre-train DeBERTa with JAX and Flax, from one CPU to a TPU pod."""

__version__ = "0.1.0"
__all__ = ["load_pretrained", "load_tokenizer", "save_pretrained"]


def __getattr__(name):
    # Imported when asked for: the command line starts without them.
    if name in __all__:
        from deberta_jax.runs import loading as pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
