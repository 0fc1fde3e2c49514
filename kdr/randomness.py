"""Addressed randomness: every draw has a name, so what happens elsewhere never shifts it.

Augmentation draws from (seed, "augment", epoch, image id), a distillation module from (seed, module
name), the order of images from (seed, "order", epoch). Loader workers, resuming, world size and
neighbouring modules therefore change nothing.
"""

import hashlib


def address(seed: int, *names: str | int) -> int:
    """Returns the seed of one named draw, in [0, 2**63): equal names give equal seeds on every
    machine.

    Args:
        seed: the trial's seed.
        names: what is drawn, coarse to fine, such as `"augment", epoch, image_id`.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
