"""What users specify, frozen and validated: association, model, run, grid. Also names of people and published numbers.

In: YAML files and flags. Out: specs, whose hash names a run. Imports: common.
"""
