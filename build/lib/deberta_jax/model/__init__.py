"""What is computed: pure Flax modules over plain functions, no I/O."""
