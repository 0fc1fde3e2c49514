"""A search as Ray Tune sees it: proposals from Optuna, early stopping, the order of trials and
their history.
"""
