"""Further measurements of a trained model, one file each (measures/measure.py defines a measure).

In: a trained run. Out: numbers for its record. Imports: scoring and below. Measures are looked up by name.
"""
