"""Versions of the parts that compute a trial's numbers, raised by hand after a fix."""

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
"""Part -> version. Raising a version gives a new key to every trial that uses the part.

Every trial uses `trainer` and `data`; a detector is used as student or teacher; a method is used
when it is on. """
