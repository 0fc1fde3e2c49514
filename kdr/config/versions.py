"""The numbers that make old results incomparable: one per part, raised by hand when a fix changes
what a trial computes.
"""

RESULTS_VERSION: dict[str, int] = {
    "trainer": 1,
    "data": 1,
    "retinanet": 1,
    "fcos": 1,
    "faster_rcnn": 1,
    "kdr": 2,
    "fitnet": 1,
    "reviewkd": 1,
    "defeat": 1,
    "fgd": 1,
    "mgd": 1,
    "pkd": 1,
    "cwd": 1,
    "frs": 1,
}
"""Part -> version. Raising one gives new keys to the trials that use the part, and to no other.

`trainer` and `data` are part of every trial; a detector counts as student and as teacher; a method
where it is on. """
