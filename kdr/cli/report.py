"""`report`: writes the report page of a study, one HTML file that needs no network."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdr.cli.logged_study import NOT_IN_TABLES, MetricOption, StudyInLog
from kdr.cli.options import DEFAULT_STORAGE, StorageOption

if TYPE_CHECKING:
    from kdr.report.page.html import Page

WATCH_EVERY_S = 15.0


def command(
    study: StudyInLog,
    storage: StorageOption = DEFAULT_STORAGE,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; by default STUDY.html.", show_default=False
        ),
    ] = None,
    metric: MetricOption = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help=("Rewrite the page until the study is over; an open page reloads. Ctrl-C stops."),
        ),
    ] = False,
) -> None:
    """Write the report page of a study, one HTML file.

    The page needs no network. It shows the study's question, table, figures, budget, failures and
    provenance. Given the study file instead of the name, it opens with the comment at the head of
    the file.

    For example:

    kdr report search_spaces/quickstart.yaml -o quickstart.html

    kdr report ablate_kdr --metric AP75 -o ap75.html

    kdr report quickstart --watch
    """
    path = output or Path(f"{_name(study)}.html")
    while True:
        page = _page(study, storage, path, metric, WATCH_EVERY_S if watch else None)
        _write(page, path)
        # None once the study is over: the last page does not reload itself
        if page.reload_s is None:
            break
        time.sleep(WATCH_EVERY_S)
    print(
        f"Written to {path} ({path.stat().st_size / 2**20:.1f} MiB). Open it in a browser; it "
        "needs no network"
    )


def _name(study: str) -> str:
    from kdr.cli.logged_study import study_name

    return study_name(study)


def _page(
    study: str, storage: str, path: Path, metric: str | None, reload_s: float | None
) -> "Page":
    from kdr.cli.logged_study import read_logged_study
    from kdr.report.page.study_page import study_page
    from kdr.report.study_facts import question_of
    from kdr.results.schema import utc_now
    from kdr.storage.layout import Storage

    log, name = read_logged_study(
        study, storage, leave_out=(*NOT_IN_TABLES, "ap_per_class", "extras")
    )
    question = question_of(Path(study).read_text(encoding="utf-8")) if Path(study).is_file() else ()
    # the page shows the command that wrote it
    asked = f" --metric {metric}" if metric else ""
    asked += f" --storage {shlex.quote(storage)}" if storage != DEFAULT_STORAGE else ""
    return study_page(
        log,
        name,
        now=utc_now(),
        log_folder=Storage.at(storage).log,
        question=question,
        metric=metric,
        command=(f"kdr report {shlex.quote(study)}{asked} -o {shlex.quote(str(path))}"),
        reload_s=reload_s,
    )


def _write(page: "Page", path: Path) -> None:
    from kdr.cli.output_file import write_output
    from kdr.report.page.html import page_html

    write_output(page_html(page), path, option="--output")
