"""Damaged files of torch are found without torch."""

from pathlib import Path

import pytest
import torch

from kdr.results.saved_weights import file_damage
from kdr.storage.local_path import LocalPath


@pytest.fixture
def checkpoint(tmp_path: Path) -> LocalPath:
    path = LocalPath(tmp_path / "checkpoint.pt")
    torch.save({"weights": torch.arange(1000.0), "epoch": 3}, path)
    return path


def test_a_file_written_by_torch_is_intact(checkpoint: LocalPath) -> None:
    assert file_damage(checkpoint) is None


@pytest.mark.parametrize("length", [0, 10, 2000, -1])
def test_a_truncated_file_is_damaged(checkpoint: LocalPath, length: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    for read_all in (True, False):
        assert "is truncated" in (file_damage(checkpoint, read_all=read_all) or "")


def test_a_flipped_bit_is_found_which_torch_ignores(checkpoint: LocalPath) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert file_damage(checkpoint) == "is damaged in its entry checkpoint/data/0"
    assert not torch.load(checkpoint)["weights"].equal(torch.arange(1000.0))


@pytest.mark.parametrize("bit", range(16))
def test_a_damaged_header_raises_no_error(checkpoint: LocalPath, bit: int) -> None:
    content = bytearray(checkpoint.read_bytes())
    flags = content.index(b"PK\x01\x02") + 8  # of the first entry in the archive's directory
    content[flags + bit // 8] ^= 1 << bit % 8
    checkpoint.write_bytes(content)
    assert isinstance(file_damage(checkpoint), str | None)
