"""One image file as an RGB tensor, whatever its kind: greyscale, CMYK, palette, transparent, 16
bit, turned by EXIF.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_image

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")


def decode_rgb(path: Path, *, orient: bool) -> Tensor:
    """The image as (3, H, W) uint8; transparency is left out, 16 bits are brought to 8.

    torchvision decodes JPEG and PNG, PIL any other kind (an animation: its first frame).

    Args:
        path: the file.
        orient: turn the image as its EXIF orientation says.

    Raises:
        OSError: if there is no such file, or PIL cannot read it.
        RuntimeError: if torchvision cannot decode it.
    """
    content = path.read_bytes()
    if not content.startswith(_SIGNATURES):
        with Image.open(io.BytesIO(content)) as image:
            turned = ImageOps.exif_transpose(image) if orient else image
            return torch.from_numpy(np.array(turned.convert("RGB"))).permute(2, 0, 1).contiguous()
    with warnings.catch_warnings():
        # since torchvision 0.29: a note that torchcodec will take over
        warnings.simplefilter("ignore", DeprecationWarning)
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels: Tensor = decode_image(encoded, mode="RGB", apply_exif_orientation=orient)
    if pixels.dtype == torch.uint16:
        pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
    return pixels
