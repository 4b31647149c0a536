"""The symbolic study: one-layer factorized and merged models of out-of-context reasoning.

The task and the models are those of Huang et al., "Generalization or Hallucination? Understanding
Out-of-Context Reasoning in Transformers" (NeurIPS 2025, arXiv 2506.10887). Modules: `task` (tokens,
questions, batches), `model` (forward pass and gradients), `runs` (specifications and
results), `train` (batched training), `descent`
(gradient descent run to its limit direction), `theory` (closed forms and convex optima), `check`
(the paper's claims as numbered checks), `sweep`, `experiments`, `figures`, `cli`.
"""
