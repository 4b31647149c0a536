"""The symbolic study: one-layer factorized and merged models of out-of-context reasoning.

The task and the models are those of Huang et al., "Generalization or Hallucination? Understanding
Out-of-Context Reasoning in Transformers" (NeurIPS 2025, arXiv 2506.10887). Modules: `task` (tokens,
questions, batches), `model` (forward pass and gradients), `runs` (specifications and results), `train`
(batched training), `statistics` (norms, margins, intervals), `theory` (closed forms and convex optima), `descent`
(gradient descent run to its limit direction), `check` (the paper's claims as numbered checks), `sweep`,
`experiments` (the open questions), `figures`, `files`, `cli` with its `options`. Beyond the paper: `mitigation` and
`remedies` (what removes the transfer, predicted and measured), `completion` (reasoning, reversal and two-hop as one
block completion), `open_side` (Theorem 3, factorized), and systems from other papers: `reversal_curse`,
`attention_svm`, `in_context`, `stages`, `scan_and_snap`, `grokking`; each returns a `report`, which `pictures` draws.
"""
