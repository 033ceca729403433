"""k-means of several problems at once, against its definition."""

from __future__ import annotations

import pytest
import torch

from sah.sparse_attention.kernels import kmeans as kernel
from sah.sparse_attention.kernels.kmeans import kmeans, nearest_centroids
from sah.sparse_attention.randomness import generator_for


def points_of(problems: int, count: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Points around a few centres, so that clusters mean something."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(problems, 9, dim, generator=generator)
    chosen = torch.randint(9, (problems, count), generator=generator)
    noise = torch.randn(problems, count, dim, generator=generator)
    return centres.gather(1, chosen.unsqueeze(-1).expand(-1, -1, dim)) + noise


def error(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Mean squared distance to the nearest centroid of each problem."""
    return torch.cdist(points.double(), centroids.double()).amin(-1).square().mean(-1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 50, 5, 7), (2, 301, 16, 64)])
def test_the_nearest_centroid_is_the_nearest_one(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    problems, count, dim, clusters = shape
    points, centroids = points_of(problems, count, dim).double(), points_of(problems, clusters, dim, seed=1).double()
    expected = torch.stack(
        [
            torch.stack([(point - book).square().sum(-1).argmin() for point in rows])
            for rows, book in zip(points, centroids, strict=True)
        ]
    )
    assert torch.equal(nearest_centroids(points, centroids), expected)
    monkeypatch.setattr(kernel, "BLOCK_NUMBERS", 7 * problems * clusters)
    assert torch.equal(nearest_centroids(points, centroids), expected), "in blocks"


def test_the_error_falls_with_every_step_until_nothing_changes() -> None:
    points = points_of(4, 400, 6)
    errors = [error(points, kmeans(points, 12, steps, generator_for(0))) for steps in range(9)]
    for before, after in zip(errors, errors[1:], strict=False):
        assert (after <= before + 1e-6).all()
    assert (errors[-1] < 0.8 * errors[0]).all()
    done = kmeans(points, 12, 300, generator_for(0))
    means = [points[p][nearest_centroids(points, done)[p] == c].mean(0) for p in range(4) for c in range(12)]
    assert torch.allclose(torch.stack(means).view_as(done), done, atol=1e-5), "each centroid is its points' mean"


def test_each_problem_is_solved_as_if_it_were_alone() -> None:
    points = points_of(3, 200, 5)
    together = kmeans(points, 16, 10, generator_for(7))
    generator = generator_for(7)
    alone = torch.cat([kmeans(points[p : p + 1], 16, 10, generator) for p in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.equal(together, kmeans(points, 16, 10, generator_for(7)))
    assert not torch.allclose(together, kmeans(points, 16, 10, generator_for(8)), atol=1e-2)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_no_more_points_than_clusters_are_their_own_centroids(count: int) -> None:
    points = points_of(2, count, 3)
    assert torch.equal(kmeans(points, 8, 10, generator_for(0)), points if count else torch.zeros(2, 1, 3))


def test_a_cluster_without_points_takes_one_that_lies_far() -> None:
    """Half of the points are one and the same, so that most of the first centroids are."""
    points = points_of(2, 80, 4)
    points[:, :60] = points[:, :1]
    centroids = kmeans(points, 24, 10, generator_for(0))
    assert torch.isfinite(centroids).all()
    assert (error(points, centroids) < 1e-9).all(), "21 different points and 24 centroids"
    same = torch.zeros(1, 40, 4)
    assert torch.equal(kmeans(same, 8, 5, generator_for(0)), torch.zeros(1, 8, 4))
