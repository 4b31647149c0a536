"""Token sequences become token forests and batches of them; log-probabilities where they are read.

In: token ids. Out: tensors for a model, and log-probabilities from its logits. Imports: data and below.
"""
