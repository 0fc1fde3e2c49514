"""Decodes any image file to an RGB tensor, including CMYK, palette, 16-bit and EXIF rotation."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_image

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")
"""First bytes of JPEG and PNG files; names and their endings are not trusted."""


def decode_rgb(path: Path, *, orient: bool) -> Tensor:
    """Returns the image as (3, H, W) uint8, without transparency, 16 bits reduced to 8.

    torchvision decodes JPEG and PNG, PIL all other formats (of an animation, the first frame).

    Args:
        path: the file.
        orient: apply the EXIF orientation.

    Raises:
        OSError: if the file does not exist, or PIL cannot read it.
        RuntimeError: if torchvision cannot decode it.
    """
    content = path.read_bytes()
    if not content.startswith(_SIGNATURES):
        with Image.open(io.BytesIO(content)) as image:
            rotated = ImageOps.exif_transpose(image) if orient else image
            return torch.from_numpy(np.array(rotated.convert("RGB"))).permute(2, 0, 1).contiguous()
    with warnings.catch_warnings():
        # torchvision 0.29 deprecates its decoders in favour of torchcodec (pytorch/vision#9609).
        # torchcodec 0.16 always applies the EXIF orientation (meta-pytorch/torchcodec#1560), so it
        # cannot replace this call until `orient=False` has an equivalent there.
        warnings.simplefilter("ignore", DeprecationWarning)
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels: Tensor = decode_image(encoded, mode="RGB", apply_exif_orientation=orient)
    if pixels.dtype == torch.uint16:
        # torch has no right shift for uint16
        pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
    return pixels
