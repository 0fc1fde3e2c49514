"""Which trials to run: the search space, trial keys. Pure: no torch, no ray, no files but the ones
it is given.
"""
