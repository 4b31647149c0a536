"""Weights from hub, package or folder become the frozen base; its architecture, precision and kernels.

In: a ModelSpec. Out: a Base, or sizes without weights. Imports: packing and below.
"""
