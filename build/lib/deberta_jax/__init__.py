"""deberta_jax: pre-train DeBERTa with JAX and Flax, from one CPU to a TPU pod.

The functions are those of `deberta_jax.api`. The verbs (`python -m deberta_jax.train`) are modules
of the same names: run them, and import nothing from them.
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = [
    "UserError", "convert", "evaluate", "export", "finetune", "load_pretrained", "load_tokenizer",
    "open_run", "prepare", "read_checkpoint", "save_pretrained", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from deberta_jax.api import (
        UserError,
        convert,
        evaluate,
        export,
        finetune,
        load_pretrained,
        load_tokenizer,
        open_run,
        prepare,
        read_checkpoint,
        save_pretrained,
        train,
    )


def __getattr__(name: str):
    # Imported when asked for: the command line starts without what it does not need.
    if name in __all__:
        from deberta_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
