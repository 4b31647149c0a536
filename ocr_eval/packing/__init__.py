"""Packs token sequences into token forests and batches, and reads log-probabilities from their logits.

In: token ids. Out: tensors for a model, and log-probabilities from its logits. Imports: data and below.
"""
