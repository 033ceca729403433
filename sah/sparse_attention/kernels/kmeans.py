"""k-means of many small problems at once, and the nearest centroid of points."""

from __future__ import annotations

import torch

BLOCK_NUMBERS = 1 << 20
"""Products of points and centroids computed at once: they stay near the processor."""


@torch.no_grad()
def kmeans(points: torch.Tensor, clusters: int, iterations: int, generator: torch.Generator) -> torch.Tensor:
    """Find centroids by Lloyd's iterations from random points.

    A cluster that loses all its points takes the point that lies farthest from its centroid, the next such cluster the
    next one. A problem's result does not depend on the others, but for the points that it starts from.

    Args:
        points: (problems, n, dim), float32.
        clusters: Centroids of each problem at most.
        iterations: Steps at most; 0 leaves the centroids at the random points.
        generator: Chooses the points to start from, other ones for each problem in turn.

    Returns:
        (problems, min(clusters, n) but at least 1, dim), float32. With n <= clusters every point is a centroid;
        without points the one centroid is 0.
    """
    problems, count, dim = points.shape
    if count <= clusters:
        return points.clone() if count else points.new_zeros(problems, 1, dim)
    first = torch.stack([torch.randperm(count, generator=generator)[:clusters] for _ in range(problems)])
    centroids = points.gather(1, first.to(points.device).unsqueeze(-1).expand(-1, -1, dim))
    before: torch.Tensor | None = None
    for _ in range(iterations):
        nearest = nearest_centroids(points, centroids)
        if before is not None and torch.equal(nearest, before):
            break
        centroids, refilled = _means(points, nearest, centroids)
        before = None if refilled else nearest
    return centroids


def nearest_centroids(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Find the nearest centroid of every point by Euclidean distance, the first one of equally near ones.

    Args:
        points: (problems, n, dim).
        centroids: (problems, clusters, dim), of the same type.

    Returns:
        (problems, n), int64.
    """
    problems, count, _ = points.shape
    # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the nearest centroid has the largest bracket.
    half_squares = centroids.square().sum(-1).unsqueeze(-2) / 2
    nearest = torch.empty(problems, count, dtype=torch.long, device=points.device)
    step = max(1, BLOCK_NUMBERS // (problems * centroids.shape[1]))
    for start in range(0, count, step):
        block = points[:, start : start + step]
        nearest[:, start : start + step] = torch.baddbmm(half_squares, block, centroids.mT, beta=-1).argmax(-1)
    return nearest


def _means(points: torch.Tensor, nearest: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the mean of each cluster's points, and whether a cluster without points took one."""
    problems, clusters, dim = centroids.shape
    places = (nearest + clusters * torch.arange(problems, device=points.device).unsqueeze(-1)).flatten()
    sums = points.new_zeros(problems * clusters, dim).index_add_(0, places, points.flatten(0, 1))
    sizes = torch.bincount(places, minlength=problems * clusters)
    means = (sums / sizes.clamp(min=1).unsqueeze(-1)).view_as(centroids)
    empty = (sizes == 0).view(problems, clusters)
    losers: list[int] = empty.any(-1).nonzero().flatten().tolist()
    for problem in losers:
        mine = empty[problem].nonzero().flatten()
        distances = (points[problem] - centroids[problem, nearest[problem]]).square().sum(-1)
        means[problem, mine] = points[problem, distances.argsort(descending=True, stable=True)[: len(mine)]]
    return means, bool(losers)
