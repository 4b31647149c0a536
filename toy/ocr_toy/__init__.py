"""The symbolic study: one-layer factorized and merged models of out-of-context reasoning."""
