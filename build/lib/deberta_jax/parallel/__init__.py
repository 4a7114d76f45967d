"""Where it is computed: the device mesh and the rules that lay arrays out on it."""
