"""Exact neighbours, against sorted lists of distances."""

import faiss
import pytest
import torch
import torch.nn.functional as F

from utilities.knn import MAX_GPU_K, nearest_neighbours, on_gpu


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cosine", [False, True])
def test_equals_brute_force(cosine):
    queries, gallery = draw(7, 5), draw(30, 5, seed=1)
    if cosine:
        expected = 1 - F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    else:
        expected = torch.cdist(queries.double(), gallery.double()).square().float()
    distances, rows = expected.sort(dim=1)
    found = nearest_neighbours(queries, gallery, 4, cosine=cosine)
    assert found.rows.equal(rows[:, :4])
    torch.testing.assert_close(found.distances, distances[:, :4], rtol=1e-4, atol=1e-5)


def test_leaves_out_the_query_and_not_its_copies():
    points = draw(12, 3)[torch.tensor([0, 1, 0, 2, 0, 3])]  # rows 0, 2 and 4 are copies
    found = nearest_neighbours(points, points, 2, own_rows=torch.arange(6), cosine=True)
    for row, copies in ((0, {2, 4}), (2, {0, 4}), (4, {0, 2})):
        assert set(found.rows[row].tolist()) == copies
        torch.testing.assert_close(found.distances[row], torch.zeros(2), atol=1e-6, rtol=0)
    assert not (found.rows == torch.arange(6)[:, None]).any()


def test_more_copies_than_places_in_the_list():
    """Of 40 copies, the query itself may not even be among the first k + 1."""
    points = torch.ones(40, 4)
    found = nearest_neighbours(points, points, 3, own_rows=torch.arange(40))
    assert not (found.rows == torch.arange(40)[:, None]).any()
    assert all(len(set(row)) == 3 and min(row) >= 0 for row in found.rows.tolist())


def test_queries_from_elsewhere_in_the_gallery():
    gallery = draw(20, 6)
    own = torch.tensor([17, 3])
    found = nearest_neighbours(gallery[own], gallery, 19, own_rows=own)
    for row, left_out in zip(found.rows, own, strict=True):
        assert sorted([*row.tolist(), int(left_out)]) == list(range(20))


def test_fills_up_where_the_gallery_ends():
    points = draw(3, 2)
    found = nearest_neighbours(points, points, 4, own_rows=torch.arange(3))
    assert (found.rows[:, :2] >= 0).all() and (found.rows[:, 2:] == -1).all()
    assert found.distances[:, 2:].isinf().all()


@pytest.mark.parametrize(
    ("device", "number"), [("cuda", 0), ("cuda:3", 3), ("cpu", None), ("xpu:1", None)]
)
def test_faiss_searches_on_the_gpu_that_was_chosen(monkeypatch, device, number):
    """And on none where the CPU was, however many there are."""
    used = []
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 4, raising=False)
    monkeypatch.setattr(
        faiss,
        "index_cpu_to_gpu",
        lambda resources, gpu, index: used.append((resources, gpu)) or index,
        raising=False,
    )
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    points = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    nearest_neighbours(points, points, 2, device=device)
    nearest_neighbours(points, points, MAX_GPU_K + 1, device=device)  # longer than FAISS lists
    assert used == ([] if number is None else [("resources", number)])
    assert len(emptied) == len(used)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert on_gpu("index", torch.device(device)) == "index"
