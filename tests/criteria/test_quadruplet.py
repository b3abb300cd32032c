import pytest
import torch
import torch.nn.functional as F

from batchminer import Distance, Random
from criteria.quadruplet import Quadruplet
from utilities.structures import References, Triplets

# Uneven classes, a singleton, neither ordered nor contiguous.
LABELS = torch.tensor([7, 3, 7, 40, 3, 7, 12, 12])
TRIPLETS = [(0, 2, 1), (2, 5, 3), (5, 0, 6), (1, 4, 0), (4, 1, 7), (6, 7, 3), (7, 6, 1), (0, 5, 1)]
INTRA = [(0, 2, 5), (2, 5, 0), (1, 4, 4)]  # a miner may give negatives of the anchor's class
SECONDS = [7, 1, 3, 6, 3, 2, 0, 3]  # for each of TRIPLETS one image of a third class


class Given(Random):
    """A miner that returns the triplets it was made with; its generator is a real one."""

    def __init__(self, triplets, seed=0):
        super().__init__(seed)
        self.triplets = Triplets(
            *torch.tensor(triplets, dtype=torch.long).reshape(-1, 3).unbind(dim=1)
        )

    def forward(self, embeds, labels, references=None):
        return self.triplets


class Chosen(Quadruplet):
    """The loss with given second negatives; None where there is none."""

    def __init__(self, triplets, seconds, **margins):
        super().__init__(Given(triplets), **margins)
        self.seconds = torch.tensor([0 if second is None else second for second in seconds])
        self.found = torch.tensor([second is not None for second in seconds])

    def _second_negatives(self, first, second, labels):
        return self.seconds, self.found


def rows(n=8, dim=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def oracle(embeds, triplets, seconds, alpha_1=0.2, alpha_2=0.2, others=None):
    """Equation 5, one quadruplet at a time, each sum over the number of its terms that count."""
    x = embeds.tolist()
    z = x if others is None else others.tolist()

    def square(p, q):
        return sum((a - b) ** 2 for a, b in zip(p, q, strict=True))

    near, far = [], []
    for (a, p, n), m in zip(triplets, seconds, strict=True):
        near.append(max(0.0, square(x[a], z[p]) - square(x[a], z[n]) + alpha_1))
        if m is not None:
            far.append(max(0.0, square(x[a], z[p]) - square(z[n], z[m]) + alpha_2))
    return sum(sum(hinges) / max(1, sum(hinge > 0 for hinge in hinges)) for hinges in (near, far))


@pytest.mark.parametrize("margins", [(0.2, 0.2), (0.9, 0.4)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_equation(margins, seed):
    embeds = rows(seed=seed)
    seconds = [None, *SECONDS[1:-1], None]
    criterion = Chosen(TRIPLETS, seconds, margin_alpha_1=margins[0], margin_alpha_2=margins[1])
    expected = oracle(embeds, TRIPLETS, seconds, *margins)
    assert criterion(embeds, LABELS).item() == pytest.approx(expected, abs=1e-10)


def test_against_references_equals_the_equation():
    embeds, others = rows(), rows(6, seed=1)
    triplets, seconds = [(0, 5, 4), (1, 0, 5), (7, 3, 2), (7, 3, 2)], [0, 1, 5, 1]
    references = References(others, torch.tensor([3, 40, 3, 12, 12, 7]))
    loss = Chosen(triplets, seconds)(embeds, LABELS, references)
    assert loss.item() == pytest.approx(oracle(embeds, triplets, seconds, others=others), abs=1e-10)


def test_negatives_among_references_only_pull():
    """With the first term out of reach, what is left of the gradient is the positives'."""
    embeds, others = rows().requires_grad_(), rows(6, seed=1)
    references = References(others, torch.tensor([3, 40, 3, 12, 12, 7]))
    criterion = Chosen([(0, 5, 4)], [0], margin_alpha_1=-100, margin_alpha_2=100)
    (grad,) = torch.autograd.grad(criterion(embeds, LABELS, references), embeds)
    expected = torch.zeros_like(embeds)
    expected[0] = 2 * (embeds[0] - others[5]).detach()
    assert torch.allclose(grad, expected, atol=1e-10)


def test_second_negatives_are_all_images_of_third_classes_alike_often():
    first, second = LABELS[[0, 3, 1, 6, 2]], LABELS[[1, 0, 6, 6, 5]]  # the last two are one class
    n = 20_000
    criterion = Quadruplet(Given([], seed=1))
    images, found = criterion._second_negatives(first.repeat(n), second.repeat(n), LABELS)
    assert found.all()
    for row, a, b in zip(images.view(n, 5).T, first, second, strict=True):
        allowed = (a != LABELS) & (b != LABELS)
        share = torch.bincount(row, minlength=8) / n
        expected = allowed / allowed.sum()
        # Five standard deviations of a share are at most 5 sqrt(0.25 / n).
        assert (share - expected).abs().max() < 5 * (0.25 / n) ** 0.5
        assert torch.equal(share > 0, allowed)


def test_second_negatives_of_an_anchor_whose_class_the_references_do_not_have():
    first, second = torch.tensor([5, 50, 1] * 100), torch.tensor([3, 12, 40] * 100)
    images, found = Quadruplet(Given([]))._second_negatives(first, second, LABELS)
    assert found.all()
    assert (LABELS[images] != second).all()
    assert len(images.unique()) == 8


@pytest.mark.parametrize("labels", [[1, 1, 4, 4], [4, 1, 1, 1], [2, 2, 2, 2]])
def test_without_third_classes_there_is_the_first_term_alone(labels):
    labels = torch.tensor(labels)
    first, second = labels[[0, 1, 2]], labels[[3, 3, 3]]
    images, found = Quadruplet(Given([]))._second_negatives(first, second, labels)
    third = [any(x not in (a, b) for x in labels) for a, b in zip(first, second, strict=True)]
    assert found.tolist() == third
    assert ((images >= 0) & (images < 4)).all()

    embeds, triplets = rows(4), [(2, 3, 1), (3, 2, 0)]
    loss = Quadruplet(Given(triplets))(embeds, torch.tensor([1, 1, 4, 4]))
    assert loss.item() == pytest.approx(oracle(embeds, triplets, [None, None]), abs=1e-10)


def test_the_miner_s_generator_draws():
    embeds = rows(8)
    one, same, other = (Quadruplet(Given(TRIPLETS * 4, seed)) for seed in (0, 0, 1))
    drawn = [criterion(embeds, LABELS).item() for criterion in (one, same, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert one(embeds, LABELS).item() != drawn[0]
    resumed = Quadruplet(Given(TRIPLETS * 4, 5))
    resumed.load_state_dict(same.state_dict())
    assert resumed(embeds, LABELS).item() == same(embeds, LABELS).item()


def test_the_batch_as_references_differs_by_the_gradient_of_the_other_three():
    embeds = rows().requires_grad_()
    criterion = Chosen(TRIPLETS, SECONDS)
    inside = criterion(embeds, LABELS)
    beside = criterion(embeds, LABELS, References(embeds.detach(), LABELS))
    assert inside.item() == pytest.approx(beside.item(), abs=1e-12)
    (one_end,) = torch.autograd.grad(beside, embeds)
    (both_ends,) = torch.autograd.grad(inside, embeds)
    assert both_ends.sum(dim=0).abs().max() < 1e-12  # what one image gets the other one gives
    assert not torch.allclose(one_end, both_ends)


def test_batch_order_does_not_matter():
    embeds = rows()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    moved = [tuple(place[list(t)].tolist()) for t in TRIPLETS]
    loss = Chosen(TRIPLETS, SECONDS)(embeds, LABELS)
    there = Chosen(moved, place[SECONDS].tolist())(embeds[order], LABELS[order])
    assert torch.allclose(loss, there)


@pytest.mark.parametrize("triplets", [TRIPLETS, INTRA], ids=["mined", "intra"])
@pytest.mark.parametrize("references", [None, References(rows(seed=1), LABELS)])
def test_gradient(triplets, references):
    criterion = Chosen(triplets, SECONDS[: len(triplets)], margin_alpha_1=0.5, margin_alpha_2=0.7)
    embeds = rows().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, LABELS, references), (embeds,))


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [2, 2, 2, 2], [5]])
def test_no_triplet_gives_a_differentiable_zero(labels):
    embeds = rows(len(labels)).requires_grad_()
    loss = Quadruplet(Distance(0))(embeds, torch.tensor(labels))
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_no_active_term_gives_a_differentiable_zero():
    embeds = torch.eye(4).repeat_interleave(2, dim=0).requires_grad_()
    labels = torch.arange(4).repeat_interleave(2)
    loss = Quadruplet(Distance(0, upper_cutoff=3.0))(embeds, labels)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == 0
    assert torch.equal(grad, torch.zeros_like(embeds))


def test_a_collapsed_batch_has_both_margins_and_no_direction():
    embeds = rows(1, dtype=torch.float32).repeat(8, 1).requires_grad_()
    loss = Quadruplet(Given(TRIPLETS), margin_alpha_1=0.2, margin_alpha_2=0.1)(embeds, LABELS)
    (grad,) = torch.autograd.grad(loss, embeds)
    assert loss.item() == pytest.approx(0.3)
    assert torch.allclose(grad, torch.zeros_like(embeds), atol=1e-7)
