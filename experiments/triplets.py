"""Eq. 9 in O(B²) memory: `triplet_loss_large`, for batches of more than about 256 segments."""

import torch
from torch import Tensor


def triplet_loss_large(
    h: Tensor, y: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Eq. 9 as `msfn.triplet_loss`, in O(B² (d + log B)) time and O(B²) memory.

    Inside its hinge the loss is linear: each triplet with d_an < d_ap + δ adds d_ap once, −d_an
    once and δ once. So it is enough to count those triplets, by binary search in each anchor's
    sorted distances: for each positive its negatives, for each negative its positives. At the kink,
    d_an = d_ap + δ, the gradient of a triplet is 0, as in `msfn.triplet_loss`.

    h: (B, d) float, y: (B,) integer classes -> () float32 (float64 if h is), also under autocast; 0
    without a valid triplet. Raises ValueError for other shapes, float classes, another reduction.
    """
    shapes = h.ndim == 2 and y.shape == h.shape[:1]
    if not shapes or y.is_floating_point() or reduction not in ("mean", "sum"):
        needed = "h must be (B, d), y (B,) integers, reduction mean or sum"
        raise ValueError(f"{needed}, not {h.shape}, {y.shape} {y.dtype}, {reduction!r}")
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    d = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    with torch.no_grad():
        negative = y[:, None] != y[None, :]
        positive = ~negative
        positive.fill_diagonal_(False)
        reach = d + margin
        sorted_negatives = d.masked_fill(~negative, torch.inf).sort(dim=1).values
        sorted_reach = reach.masked_fill(~positive, -torch.inf).sort(dim=1).values
        # for each positive the negatives, and for each negative the positives, with d_an < d_ap + δ
        nearer = torch.searchsorted(sorted_negatives, reach, out_int32=True) * positive
        farther = torch.searchsorted(sorted_reach, d, right=True, out_int32=True)
        farther = (len(h) - farther) * negative
        weight = (nearer - farther).to(d.dtype)
        constant = nearer.sum().to(d.dtype) * margin
        valid = (positive.sum(1) * negative.sum(1)).sum().clamp(min=1)
    total = (d * weight).sum() + constant
    return total if reduction == "sum" else total / valid
