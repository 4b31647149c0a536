"""What else is measured on a trained model, one file each (measures/measure.py says what one is).

In: a trained run. Out: numbers for its record. Imports: scoring and below; found by name alone.
"""
