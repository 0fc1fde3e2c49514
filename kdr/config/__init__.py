"""What can be set: a trial, a study, its search space and resources; and the strict reading of it
from YAML.
"""
