"""A search on Ray Tune: proposals from Optuna, early stopping, the order of trials, their past."""
