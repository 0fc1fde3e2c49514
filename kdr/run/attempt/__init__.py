"""One attempt at a trial: the Tune actor, its rows in the log, and the request to cancel it."""
