"""From records to findings: intervals, tests, controls, comparisons, the table. Pure functions of records.

In: records. Out: typed findings. Imports: execution and below.
"""
