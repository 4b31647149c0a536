"""What a run will cost: work, memory, time; which runs are trained together; rehearsals at full size.

In: specs. Out: estimates and packs. Imports: records and below.
"""
