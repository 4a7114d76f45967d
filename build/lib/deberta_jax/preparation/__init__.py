"""From text files to packed sequences: corpora, cleaning, hold-out, packing, the pipeline."""
