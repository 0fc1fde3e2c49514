"""The settings reference in docs/."""

from pathlib import Path

from kdr.config.reference import settings_reference

ROOT = Path(__file__).parents[2]


def test_the_reference_on_disk_is_up_to_date() -> None:
    fix = "run: python -m kdr.config.reference > docs/settings.md"
    assert (ROOT / "docs" / "settings.md").read_text() == settings_reference(), fix


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in settings_reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []
