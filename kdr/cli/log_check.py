"""`log check`: finds problems in the trial log, and quarantines damaged files."""

from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, JsonOption, StorageOption


def command(
    storage: StorageOption = DEFAULT_STORAGE,
    quarantine: Annotated[
        bool,
        typer.Option(
            "--quarantine",
            help="Move damaged and orphaned files to log/quarantine, with the reason beside each.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check every file of the trial log.

    Reports damaged and leftover files, files of a newer version, and contradictions. Deletes
    nothing. Exit code 0: no problem; 1: problems.

    Example: kdr log check --quarantine
    """
    from kdr.report.formatting import json_text
    from kdr.results import check
    from kdr.results.fragments import logged_studies, num_fragments
    from kdr.storage.layout import Storage

    place = Storage.at(storage)
    findings = check.check_log(place)
    moved = [
        path for finding in findings if quarantine for path in check.quarantine(place, finding)
    ]
    problems = [finding for finding in findings if finding.is_problem]
    num_files = sum(num_fragments(place, study) for study in logged_studies(place))
    if json_:
        rows = [
            {"kind": finding.kind, "where": finding.where, "what": finding.what}
            for finding in findings
        ]
        print(
            json_text(
                {
                    "files": num_files,
                    "findings": rows,
                    "problems": len(problems),
                    "moved": list(map(str, moved)),
                }
            )
        )
    else:
        for finding in findings:
            print(f"{finding.kind}: {finding.where}: {finding.what}")
        for path in moved:
            print(f"moved: {path}")
        print(
            f"{place.log}: {num_files} files of the log, {len(problems) or 'no'} "
            f"problem{'' if len(problems) == 1 else 's'}"
        )
    if problems:
        raise typer.Exit(1)
