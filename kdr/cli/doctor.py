"""`doctor`: checks what a study needs, with a fix for each failure."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.options import (
    DEFAULT_STORAGE,
    AddressOption,
    JsonOption,
    PreflightOption,
    SendCodeOption,
    SetOption,
    StorageOption,
)


def command(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY",
            help="Study file; its requirements are checked, too.",
            show_default=False,
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    address: AddressOption = None,
    send_code: SendCodeOption = False,
    preflight: PreflightOption = True,
    json_: JsonOption = False,
) -> None:
    """Check installation, machine, storage, Ray and a study's needs.

    For a study: data, weights, feature levels, resources, and a pre-flight of its base trial: the
    teacher's AP, and masks, losses and gradients of the first step.

    With --address, every node of the cluster is checked: versions, GPUs, the storage, and the
    study's data and weights.

    Each failure comes with a fix. Exit code 0: nothing failed; 2: something did.

    Example: kdr doctor search_spaces/quickstart.yaml
    """
    import dataclasses

    from rich.console import Console

    from kdr.cli.checks import all_checks, run_checks
    from kdr.cli.output import print_finding
    from kdr.config.study import read_study
    from kdr.errors import ConfigError
    from kdr.report.formatting import json_text
    from kdr.storage.layout import Storage
    from kdr.training.findings import Finding

    findings: list[Finding] = []
    console = Console()

    def note(finding: Finding) -> None:
        findings.append(finding)
        if not json_:
            print_finding(console, finding)

    chosen = None
    if study is not None:
        try:
            chosen = read_study(study, set_ or ())
        except ConfigError as error:
            note(Finding("study", "failed", str(error)))
    place = Storage.at(storage)
    # an invalid study file does not stop the checks of the machine
    for finding in run_checks(
        all_checks(place, address=address, study=chosen, send_code=send_code, preflight=preflight)
    ):
        note(finding)
    failed = sum(finding.state == "failed" for finding in findings)
    if json_:
        print(
            json_text(
                {
                    "findings": [dataclasses.asdict(finding) for finding in findings],
                    "failed": failed,
                }
            )
        )
    else:
        console.out(f"\n{failed or 'Nothing'} failed", highlight=False)
    if failed:
        raise typer.Exit(2)
