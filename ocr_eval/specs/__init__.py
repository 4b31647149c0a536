"""What a user states, frozen and validated: association, model, run, grid; names of people; published numbers.

In: YAML files and flags. Out: specs, which hash and name a run. Imports: common.
"""
