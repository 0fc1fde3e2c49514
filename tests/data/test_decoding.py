from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdr.data.decoding import decode_rgb


@pytest.fixture
def rgb() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((60, 40), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("RGB", suffix) for suffix in ("jpg", "png", "bmp", "tiff", "webp", "gif")),
        *(("L", suffix) for suffix in ("jpg", "png", "bmp")),
        ("CMYK", "jpg"),
        ("P", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
    ],
)
def test_every_kind_of_file_decodes_as_pil_does(
    rgb: Image.Image, tmp_path: Path, mode: str, suffix: str
) -> None:
    path = tmp_path / f"image.{suffix}"
    rgb.convert(mode).save(path)
    decoded = decode_rgb(path, orient=False)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert decoded.shape == (3, 40, 60)
    # other builds of libjpeg may round differently
    assert np.abs(decoded.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_transparency_is_dropped(rgb: Image.Image, tmp_path: Path) -> None:
    rgb.putalpha(40)
    rgb.save(tmp_path / "image.png")
    decoded = decode_rgb(tmp_path / "image.png", orient=False)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(rgb)[..., :3])


def test_sixteen_bits_are_reduced_to_eight(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "image.png")
    decoded = decode_rgb(tmp_path / "image.png", orient=False)
    assert all(np.array_equal(channel.numpy(), deep >> 8) for channel in decoded)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_exif_orientation_is_applied_only_on_request(
    rgb: Image.Image, tmp_path: Path, suffix: str, orientation: int
) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    if suffix == "webp":
        rgb.save(path, exif=tags, lossless=True)
    else:
        rgb.save(path, exif=tags)
    with Image.open(path) as stored:
        variants = ((False, stored.copy()), (True, ImageOps.exif_transpose(stored)))
    for orient, expected in variants:
        decoded = decode_rgb(path, orient=orient).permute(1, 2, 0).numpy()
        pixels = np.asarray(expected.convert("RGB"))
        assert decoded.shape == pixels.shape
        assert np.abs(decoded.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
@pytest.mark.parametrize("kept", [0, 20, 0.5])
def test_a_truncated_file_is_an_error_and_never_half_a_picture(
    rgb: Image.Image, tmp_path: Path, suffix: str, kept: float
) -> None:
    path = tmp_path / f"image.{suffix}"
    rgb.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept < 1 else int(kept)])
    with pytest.raises((OSError, RuntimeError), match=r"(?i)decode|identify|truncated|incomplete"):
        decode_rgb(path, orient=False)
