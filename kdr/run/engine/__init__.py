"""How one trial is trained: in the actor's own process, or by a warm gang of Ray Train workers."""
