"""`doctor`: whether everything is there that a study needs, and how to mend what is not."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, JsonOption, SetOption, StorageOption

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def command(
    study: Annotated[Path | None, typer.Argument(help="Study file whose needs are looked at, too.", show_default=False)] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster to join, or `auto`; without it Ray starts on this machine.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Check the installation, the machine, the storage and Ray; with a study also its data, weights, levels and resources.

    Each failure says how to mend it. Exit code 0: nothing failed; 2: something did.

    Example: python orchestrate.py doctor search_spaces/quickstart.yaml
    """
    import dataclasses

    from rich.console import Console

    from kdr.cli.checks import Finding, all_checks, run_checks
    from kdr.cli.output import json_text
    from kdr.config.study import read_study
    from kdr.errors import ConfigError
    from kdr.storage import Storage

    findings: list[Finding] = []
    console = Console()

    def note(finding: Finding) -> None:
        findings.append(finding)
        if not json_:
            console.print(f"{finding.state:<8}", style=STYLES[finding.state], end="")
            console.out(f"{finding.name:<16}{finding.text}", highlight=False)
            if finding.mend:
                console.out(f"{'':<24}{finding.mend}", highlight=False)

    chosen = None
    if study is not None:
        try:
            chosen = read_study(study, set_ or ())
        except ConfigError as error:
            note(Finding("study", "failed", str(error)))
    for finding in run_checks(all_checks(Storage.at(storage), address=address, study=chosen)):
        note(finding)
    failed = sum(finding.state == "failed" for finding in findings)
    if json_:
        print(json_text({"findings": [dataclasses.asdict(finding) for finding in findings], "failed": failed}))
    else:
        console.out(f"\n{failed or 'Nothing'} failed", highlight=False)
    if failed:
        raise typer.Exit(2)
