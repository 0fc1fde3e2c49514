"""kdr: distils object detectors, searches the settings of the distillation on Ray, and answers
questions from the log.

`kdr.__all__` is the stable Python API; docs/python.md shows it. Names are imported when they are
first used, so `import kdr` is instant and needs neither torch nor Ray.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdr.api import (
        KdrError,
        Observer,
        ResultTable,
        Study,
        TrialLog,
        TrialUpdate,
        load_student,
        make_table,
        open_log,
        plan_study,
        read_study,
        run_study,
    )

__version__ = "0.2.0.dev0"
__all__ = [
    "KdrError",
    "Observer",
    "ResultTable",
    "Study",
    "TrialLog",
    "TrialUpdate",
    "load_student",
    "make_table",
    "open_log",
    "plan_study",
    "read_study",
    "run_study",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kdr' has no attribute {name!r}")
    from kdr import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
