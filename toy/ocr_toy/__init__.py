"""The symbolic study: one-layer factorized and merged models of out-of-context reasoning.

The task and the models are those of Huang et al., "Generalization or Hallucination? Understanding
Out-of-Context Reasoning in Transformers" (NeurIPS 2025, arXiv 2506.10887). Modules: `task` (tokens,
questions, batches), `model` (forward pass and gradients), `runs` (specifications and results), `train`
(batched training), `statistics` (norms, margins, intervals), `theory` (closed forms and convex optima), `descent`
(gradient descent run to its limit direction), `check` (the paper's claims as numbered checks), `sweep`,
`experiments` (the open questions), `figures`, `files`, `cli` with its `options`.
"""
