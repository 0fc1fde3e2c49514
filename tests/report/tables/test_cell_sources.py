from kdr.report.tables.cell_sources import cell_sources
from kdr.results.compact import compact
from kdr.results.fragments import files_by_key
from kdr.results.reader import read_log
from tests.conftest import AblationLog


def test_a_cell_leads_to_its_trials_commits_and_files(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", [0.3, 0.31], host="node1")
    ablation_log.arm("baseline", {2: 0.1}, event="failed", dirty=True)
    ablation_log.arm("baseline", {3: None})
    log = read_log(ablation_log.storage)
    files = files_by_key(ablation_log.storage, log.keys_of("ablate"))
    grid = cell_sources(log, "ablate", "baseline", "AP", files)
    rows = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
    assert [
        (row["seed"], row["key"], row["AP (%)"], row["state"], row["commit"]) for row in rows
    ] == [
        (0, "baseline-0", 30.0, "completed", "c1"),
        (1, "baseline-1", 31.0, "completed", "c1"),
        (2, "baseline-2", 10.0, "failed", "c1 (modified)"),
        (3, "baseline-3", None, "not started", None),
    ]
    assert (rows[0]["host"], rows[0]["first batch"], rows[0]["ran in"]) == (
        "node1",
        "batch-0-1",
        "ablate",
    )
    assert len(str(rows[0]["files"]).split()) == 2
    assert rows[3]["files"] == ""


def test_after_a_compaction_the_merged_files_are_named(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", [0.3, 0.31])
    compact(ablation_log.storage, "ablate")
    files = files_by_key(ablation_log.storage, ["baseline-1", "unknown"])
    assert list(files) == ["baseline-1"]
    assert [path.parent.parent.name for path in files["baseline-1"]] == ["trials", "epochs"]
    assert all(path.name.startswith("c-") and path.exists() for path in files["baseline-1"])
