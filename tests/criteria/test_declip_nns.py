import io
from collections import deque

import pytest
import torch

from criteria.declip_nns import DeCLIPNNS
from tests.criteria.caption_losses import CAPTIONS, DIM, batch, clip, views


def make(name, embed_dim, **chosen):
    assert (name, embed_dim) == ("clip", 3)
    return clip(**chosen)


def declip(seed=0, **chosen):
    return DeCLIPNNS(lambda *of: make(*of, seed=seed), 3, **{"queue_size": 10, **chosen}).double()


def step(criterion, seed, captions=CAPTIONS):
    return criterion.compute(views(seed=seed, n=len(captions)), batch(captions))


WORDS = ("sun", "moon", "star", "planet", "comet", "dust", "sky", "cloud", "rain", "snow", "ice")


def captions_of(i):
    return tuple(WORDS[(5 * i + j) % len(WORDS)] for j in range(4))


@pytest.mark.parametrize("weight", [{}, {"weight": 0.0}, {"weight": 0.7}, {"weight": 1.0}])
@pytest.mark.parametrize("size", [1, 3, 4, 10, 100])
def test_a_queue_and_its_nearest_text_written_as_loops(weight, size):
    criterion, alone = declip(queue_size=size, **weight), clip()
    w = weight.get("weight", 0.2)
    memory = deque(maxlen=size)
    for i in range(6):
        given = views(seed=i, n=4)
        images, texts = alone.project(given, batch(captions_of(i)))
        expected = alone.contrast(images, texts)
        if memory:
            nearest = [max(memory, key=lambda q, t=t: float(q @ t)) for t in texts.detach()]
            of_neighbours = alone.contrast(images, torch.stack(nearest).detach())
            expected = (1 - w) * expected + w * of_neighbours
        loss = criterion.compute(given, batch(captions_of(i)))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12), i
        memory.extend(texts.detach())


def test_the_weights_are_those_of_the_paper():
    criterion, given = declip(), views()
    step(criterion, 1, WORDS[:7])
    criterion.eval()
    images, texts = criterion.clip.project(given, batch())
    stored = criterion.queue.rows[-7:]
    nearest = stored[(texts @ stored.T).argmax(dim=1)]
    assert not torch.allclose(nearest, texts)
    expected = 0.8 * criterion.clip.contrast(images, texts)
    expected = expected + 0.2 * criterion.clip.contrast(images, nearest)
    assert criterion.compute(given, batch()).item() == pytest.approx(expected.item(), rel=1e-12)


def test_first_in_first_out():
    criterion, alone = declip(queue_size=6), clip()
    stored = []
    for i in range(4):
        step(criterion, i, captions_of(i))
        stored += list(alone.project(views(n=4), batch(captions_of(i)))[1].detach())
        assert torch.equal(
            criterion.queue.rows[-criterion.queue.filled :], torch.stack(stored[-6:])
        )


def test_neighbours_move_the_images_and_not_the_texts():
    criterion, given = declip(weight=1.0), views()
    step(criterion, 1, WORDS[:7])
    criterion.compute(given, batch()).backward()
    assert given[0].features.grad.any()
    assert criterion.clip.log_scale.grad.any()
    assert not criterion.clip.reader.projection.weight.grad.any()
    assert not criterion.queue.rows.requires_grad


def test_a_caption_does_not_find_itself_in_its_own_batch():
    criterion, given = declip(weight=1.0), views()
    step(criterion, 0, WORDS[:7])
    of_itself = clip().compute(given, batch())
    assert abs(criterion.compute(given, batch()) - of_itself) > 1e-3
    assert criterion.compute(given, batch()).item() == pytest.approx(of_itself.item(), rel=1e-12)


def test_an_opposite_text_is_nearer_than_an_empty_place():
    criterion, given = declip(weight=1.0), views(n=2)
    images, texts = criterion.clip.project(given, batch(("fox", "fox")))
    criterion.queue.push(-texts[:1])
    expected = criterion.clip.contrast(images, -texts)
    loss = criterion.compute(given, batch(("fox", "fox")))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_backward_pass_outlives_a_write():
    criterion = declip(queue_size=7)
    step(criterion, 0)
    loss = step(criterion, 1, WORDS[:7])  # writes over all that it read
    loss.backward()
    assert criterion.clip.projection.weight.grad.isfinite().all()


def test_evaluation_leaves_the_queue():
    criterion = declip()
    step(criterion, 0)
    rows, filled = criterion.queue.rows.clone(), criterion.queue.filled
    step(criterion.eval(), 1)
    assert torch.equal(criterion.queue.rows, rows)
    assert criterion.queue.filled == filled


@pytest.mark.parametrize("done", [1, 3])
def test_resumes_exactly(done):
    criterion = declip()
    for i in range(done):
        step(criterion, i, captions_of(i))
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    resumed = declip(seed=9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for i in range(done, done + 4):
        assert torch.equal(step(resumed, i, captions_of(i)), step(criterion, i, captions_of(i)))


def test_captions_without_an_embedding_are_not_stored():
    criterion = declip()
    step(criterion, 0, ("", "fox", "", "sea"))
    assert criterion.queue.filled == 2
    torch.testing.assert_close(
        criterion.queue.rows.norm(dim=1), torch.tensor([0.0] * 8 + [1.0] * 2).double()
    )


def test_half_precision():
    criterion = DeCLIPNNS(lambda *of: make(*of, dtype=torch.float32), 3, queue_size=10)
    for i in range(3):
        given = views(seed=i, dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion.compute(given, batch())
    loss.backward()
    assert loss.dtype == criterion.queue.rows.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in criterion.parameters())


def test_groups_and_clamp_are_clips():
    criterion = declip()
    held = [p for group in criterion.param_groups(0.1) for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, criterion.parameters()))
    with torch.no_grad():
        criterion.clip.log_scale.fill_(9.0)
    criterion.after_step(torch.nn.Identity())
    assert criterion.clip.log_scale.exp().item() == pytest.approx(100)
    assert criterion.queue.rows.shape == (10, DIM)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="weight must be in"):
        declip(weight=weight)


def test_an_empty_queue():
    with pytest.raises(ValueError, match="queue_size must be finite and >= 1; got 0"):
        declip(queue_size=0)


def test_missing_captions():
    with pytest.raises(ValueError, match="needs a caption of each image"):
        declip().compute(views(), batch((), n=7))
