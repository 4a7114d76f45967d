"""Checkpoints from one layout to another: python -m deberta_jax.convert --from=DIR --to=DIR

--layout=transformers   `model.safetensors`, `config.json`, tokenizer files (the default)
--layout=microsoft      the same tensors as `pytorch_model.bin`, which the original code reads
--layout=orbax          our own parameter tree, sharded as Orbax does

Every tensor of the source is carried over, heads too, in its own type and bit for bit. In the first
layout a masked LM's head is called `cls.predictions.*`, as `transformers` calls it by default;
--head_names=lm_predictions keeps the names of the released checkpoints.
"""

from absl import flags

from deberta_jax import command, storage
from deberta_jax.errors import UserError
from deberta_jax.interop.names import LM_HEAD_NAMES
from deberta_jax.runs.converting import LAYOUTS, convert


def main(parsed) -> None:
    for name in ("from", "to"):
        if not parsed[name].value:
            raise UserError(f"--{name} is missing; it names a directory")
    source, target = (storage.user_path(parsed[name].value) for name in ("from", "to"))
    written = convert(source, target, parsed.layout, parsed.head_names)
    print(f"{source} -> {target} ({parsed.layout}): {', '.join(written)}")


if __name__ == "__main__":
    flags.DEFINE_string("from", None, "Directory to read: a checkpoint or a run.")
    flags.DEFINE_string("to", None, "Directory to write; new or empty.")
    flags.DEFINE_enum("layout", "transformers", list(LAYOUTS), "Layout to write.")
    flags.DEFINE_enum(
        "head_names", LM_HEAD_NAMES[0], LM_HEAD_NAMES, "Names of a masked LM's head in the file."
    )
    command.run(main, workdir=False, needs_config=False)
