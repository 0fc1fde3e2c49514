import pytest
import torch

from kdr.results.saved_weights import what_is_torn
from kdr.storage.local_path import LocalPath


@pytest.fixture
def checkpoint(tmp_path):
    path = LocalPath(tmp_path / "checkpoint.pt")
    torch.save({"weights": torch.arange(1000.0), "epoch": 3}, path)
    return path


def test_what_torch_wrote_is_whole(checkpoint):
    assert what_is_torn(checkpoint) is None


@pytest.mark.parametrize("length", [0, 10, 2000, -1])
def test_a_file_that_is_cut_off_is_torn(checkpoint, length):
    checkpoint.write_bytes(checkpoint.read_bytes()[:length])
    for read_all in (True, False):
        assert "is cut off" in what_is_torn(checkpoint, read_all=read_all)


def test_a_changed_bit_is_found_which_torch_does_not_look_for(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert "is damaged in its part checkpoint/data/0" in what_is_torn(checkpoint)
    assert not torch.load(checkpoint)["weights"].equal(torch.arange(1000.0))


@pytest.mark.parametrize("bit", range(16))
def test_a_damaged_header_never_escapes_as_another_error(checkpoint, bit):
    content = bytearray(checkpoint.read_bytes())
    flags = content.index(b"PK\x01\x02") + 8  # of the first entry in the archive's directory
    content[flags + bit // 8] ^= 1 << bit % 8
    checkpoint.write_bytes(content)
    assert isinstance(what_is_torn(checkpoint), str | None)
