"""How far apart two float32 results may be that are equal in mathematics."""

import torch


def rounding(terms: int, total: float = 1.0) -> float:
    """Return four times the largest difference between two orders of adding the same numbers.

    Each addition rounds by at most half an eps of the magnitudes added so far, so two orders, two
    vector widths or two numbers of threads differ by at most terms * eps * total. The factor of
    four leaves room for terms that are rounded themselves.

    Args:
        terms: how many numbers are added.
        total: sum of their magnitudes; 1 for a mean of numbers up to 1, or the product of two unit
            vectors.
    """
    return 4 * terms * torch.finfo(torch.float32).eps * total
