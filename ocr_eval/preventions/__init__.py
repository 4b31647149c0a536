"""Ways to prevent the unwanted inference, one file each (methods/prevention.py says what one is).

In: a run in training. Out: other gradients, other weights. Imports: methods and below; found by name alone.
"""
