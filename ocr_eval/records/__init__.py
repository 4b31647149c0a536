"""What a run leaves on disk: its folder, its record, and how records are found, read and selected.

In: files. Out: Record, RunFolder, and rows of records that may be averaged. Imports: scoring and below.
"""
