"""kdr: distils object detectors, searches the settings of the distillation on Ray, and answers
questions from the log.
"""

__version__ = "0.2.0.dev0"
