"""What a compiled program costs on a TPU, read from the compiler's output without a TPU."""
