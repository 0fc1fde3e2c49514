"""Addressed randomness: every draw has its own seed, which other draws cannot shift.

Augmentation draws from (seed, "augment", epoch, image id), a distillation module from (seed, module
name), the order of images from (seed, "order", epoch). So a draw does not depend on loader workers,
a resume, the world size or other modules.
"""

import hashlib


def address(seed: int, *names: str | int) -> int:
    """Returns the seed of one named draw, in [0, 2**63), the same on every machine.

    Args:
        seed: the trial's seed.
        names: what is drawn, coarse to fine, such as `"augment", epoch, image_id`.
    """
    # Types and a separator are hashed too, so that (1, "1") and ("1", 1), or ("ab", "c") and
    # ("a", "bc"), get different seeds. Python's own `hash` differs between processes.
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
