"""Engines: train a trial in the actor's own process, or on a warm gang of Ray Train workers."""
