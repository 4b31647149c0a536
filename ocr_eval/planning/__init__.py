"""What a run costs before it runs: work, memory, time; which runs go together; rehearsals at true size.

In: specs. Out: estimates and packs. Imports: records and below.
"""
