"""The probe is scikit-learn's logistic regression, and chooses its cost without seeing the test."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as SkLearn

from evaluation.linear_probe import LabelledFeatures as Labelled
from evaluation.linear_probe import choose_cost, class_accuracies, hold_out, joined, linear_probe
from evaluation.logistic_regression import LogisticRegression, principal_axes


@pytest.fixture(scope="module")
def digits():
    """1,000 handwritten digits to learn from and 797 to test on, (N, 64) pixels, float64."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels, labels = torch.tensor(bunch.data[order]), torch.tensor(bunch.target[order])
    return Labelled(pixels[:1000], labels[:1000]), Labelled(pixels[1000:], labels[1000:])


def problem(points):
    axes = principal_axes(points.features)
    rotated, n_classes = axes.apply(points.features), int(points.labels.max()) + 1
    return LogisticRegression(rotated, points.labels, axes.variances, n_classes), axes


def in_features(fit, axes):
    """The same classifier of the features themselves: weights (C, D) and bias (C,)."""
    weights = fit.weights @ axes.rotation.T
    return weights, fit.bias - weights @ axes.mean


def oracle(points, cost, tolerance=1e-10):
    """scikit-learn by Newton's method: its own L-BFGS is not converged after 1,000 steps."""
    solver = SkLearn(C=cost, solver="newton-cg", tol=tolerance, max_iter=1000)
    return solver.fit(*(part.numpy() for part in points))


def centred(logits):
    """Softmax does not see what all classes share, and two solvers may differ by it."""
    return logits - logits.mean(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("cost", "share"),
    [(1e-2, 1e-6), (1.0, 1e-5), pytest.param(100.0, 2e-3, marks=pytest.mark.slow)],
)
def test_equals_scikit_learn(digits, cost, share):
    """At weak penalties the objective is so level that solvers end apart by some share."""
    train, test = digits
    solver, axes = problem(train)
    fit = solver.fit(cost, tolerance=1e-9)
    assert fit.converged
    ours = fit.logits(axes.apply(test.features))
    newton = oracle(train, cost)
    theirs = torch.tensor(newton.decision_function(test.features.numpy()))
    difference = (centred(ours) - centred(theirs)).abs().max()
    assert difference < share * theirs.abs().max()
    accuracy = (ours.argmax(dim=1) == test.labels).double().mean()
    assert abs(accuracy - newton.score(*(part.numpy() for part in test))) < 1e-3

    weights, bias = in_features(fit, axes)
    torch.testing.assert_close(test.features @ weights.T + bias, ours)


def test_single_precision_and_the_usual_tolerance_give_the_same_accuracy(digits):
    train, test = digits
    exact, axes = problem(train)
    rough, _ = problem(Labelled(train.features.float(), train.labels))
    for cost in (1e-4, 1e-2, 1.0):
        right = []
        for solver, options in ((exact, {"tolerance": 1e-8}), (rough, {})):
            fit = solver.fit(cost, **options)
            points = axes.apply(test.features).to(solver.points)
            right.append((fit.logits(points).argmax(dim=1) == test.labels).double().mean())
        assert abs(right[0] - right[1]) <= 2e-3  # of 797 images, one


def test_two_classes_are_scikit_learns_at_twice_the_cost(digits):
    train, test = (Labelled(*(p[part.labels < 2] for p in part)) for part in digits)
    solver, axes = problem(train)
    logits = solver.fit(0.01, tolerance=1e-9).logits(axes.apply(test.features))
    theirs = torch.tensor(oracle(train, 0.02).decision_function(test.features.numpy()))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], theirs, rtol=1e-4, atol=1e-4)


def test_the_minimum_is_of_the_squared_penalty():
    """Written out, with finite differences: C Σ −log p + ½ |W|² is level there, and lowest."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64) * 2 + 1
    labels = torch.randint(3, (40,), generator=generator)
    cost = 0.3
    solver, axes = problem(Labelled(features, labels))
    weights, bias = in_features(solver.fit(cost, tolerance=1e-10), axes)

    def objective(flat, penalty):
        w, b = flat[:9].view(3, 3), flat[9:]
        total = 0.0
        for x, y in zip(features, labels, strict=True):
            logits = [float(w[c] @ x + b[c]) for c in range(3)]
            largest = max(logits)
            log_sum = largest + np.log(sum(np.exp(v - largest) for v in logits))
            total += log_sum - logits[y]
        return cost * total + penalty(float(w.square().sum()))

    flat = torch.cat([weights.reshape(-1), bias])
    level = objective(flat, lambda square: square / 2)
    slopes, unsquared = [], []
    for place in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[place] = 1e-5
        for found, penalty in (
            (slopes, lambda square: square / 2),
            (unsquared, lambda square: square**0.5),
        ):
            found.append((objective(flat + step, penalty) - objective(flat - step, penalty)) / 2e-5)
        assert objective(flat + 100 * step, lambda square: square / 2) > level
    assert np.abs(slopes).max() < 1e-5
    assert np.abs(unsquared).max() > 0.1  # the released code's penalty has its minimum elsewhere


def test_blocks_of_rows_change_nothing(digits, monkeypatch):
    train, test = digits
    solver, axes = problem(train)
    whole = solver.fit(0.01)
    monkeypatch.setattr(
        "evaluation.logistic_regression.BLOCK", 640
    )  # 64 rows of logits, 10 of features
    torch.testing.assert_close(axes.apply(test.features), problem(train)[1].apply(test.features))
    torch.testing.assert_close(solver.fit(0.01).weights, whole.weights)


def test_more_dimensions_than_points_and_a_feature_that_never_varies():
    features = torch.randn(30, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[:, 7] = 3.0
    points = Labelled(features, torch.arange(30) % 3)
    solver, axes = problem(points)
    assert len(axes.variances) == 29
    weights, _ = in_features(solver.fit(0.1, tolerance=1e-10), axes)
    expected = torch.tensor(oracle(points, 0.1).coef_)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert weights[:, 7].abs().max() < 1e-10


def test_many_points_take_their_axes_from_some_and_keep_the_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + torch.randn(200, generator=generator)).gt(0).long()
    features[::16, 2] = 0  # the rows that are looked at for the axes do not differ in it
    labels[5::7] = 2
    points = Labelled(features, labels)
    solver, axes = problem(points)
    assert axes.variances[0] == 0
    weights, _ = in_features(solver.fit(1.0, tolerance=1e-10), axes)
    expected = torch.tensor(oracle(points, 1.0).coef_)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


class Hill:
    """Fits whose score is highest at one exponent; notes which were asked for."""

    def __init__(self, top):
        self.top, self.asked = top, []

    def fit(self, cost, start):
        exponent = float(np.log10(cost))
        self.asked.append((round(exponent, 4), start))
        return exponent

    def score(self, exponent):
        return -abs(exponent - self.top)


def test_the_search_ends_at_the_best_eighth_of_a_decade():
    hill = Hill(top=1.37)
    cost, fit, score = choose_cost(hill.fit, hill.score)
    assert np.log10(cost) == pytest.approx(1.375) and fit == pytest.approx(1.375)
    assert score == pytest.approx(-0.005)
    exponents = [exponent for exponent, _ in hill.asked]
    assert exponents[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert exponents[7:] == [1, 3, 0.5, 1.5, 1.25, 1.75, 1.125, 1.375]
    starts = [start for _, start in hill.asked]
    assert starts[0] is None and starts[1] == -6  # each from the nearest before it
    assert starts[9] in (0, 1) and starts[-1] in (1.25, 1.5)


@pytest.mark.parametrize(("top", "expected"), [(-9, 1e-6), (9, 1e6)])
def test_the_search_stays_within_its_bounds(top, expected):
    hill = Hill(top)
    assert choose_cost(hill.fit, hill.score)[0] == pytest.approx(expected)
    assert all(-6 <= exponent <= 6 for exponent, _ in hill.asked)
    assert choose_cost(hill.fit, lambda _: 0.5)[0] == pytest.approx(1e-6)  # smallest among equals


def test_the_whole_protocol_equals_scikit_learns(digits, monkeypatch):
    """The same search with scikit-learn's solver, then refitted on train and validation."""
    monkeypatch.setattr("evaluation.linear_probe.EXPONENTS", (-4, -2, 0))
    train, test = digits
    train = Labelled(train.features[:500], train.labels[:500])
    part, val = hold_out(train, 0)
    cost, _, validation = choose_cost(
        lambda cost, _: oracle(part, cost, 1e-8), lambda fit: fit.score(*(p.numpy() for p in val))
    )
    accuracy = oracle(joined(part, val), cost, 1e-8).score(*(p.numpy() for p in test))

    found = linear_probe(part, val, test)
    assert found.cost == pytest.approx(cost) and found.validation == pytest.approx(validation)
    assert abs(found.accuracy - accuracy) < 1e-3 and accuracy > 0.94
    assert found.accuracy == pytest.approx(float(found.correct.double().mean()))
    given = linear_probe(train, None, test)  # draws the same validation images
    assert given.cost == found.cost and given.accuracy == pytest.approx(found.accuracy, abs=1e-3)


def test_test_labels_choose_nothing(digits):
    train, test = digits
    train = Labelled(train.features[:150], train.labels[:150])
    honest = linear_probe(train, None, test)
    shuffled = test.labels[torch.randperm(797, generator=torch.Generator().manual_seed(0))]
    poisoned = linear_probe(train, None, Labelled(test.features, shuffled))
    assert poisoned.cost == honest.cost and poisoned.validation == honest.validation
    assert poisoned.accuracy < 0.2 < 0.8 < honest.accuracy
    # and validation labels do
    part, val = hold_out(train, 0)
    wrong = Labelled(val.features, (val.labels + 1) % 10)
    assert linear_probe(part, wrong, test).validation < honest.validation


def test_labels_need_not_be_contiguous_and_strangers_are_wrong(digits):
    train, test = digits
    train = Labelled(train.features[:300], train.labels[:300] * 3 + 5)
    test = Labelled(test.features[:20], torch.cat([test.labels[:10] * 3 + 5, torch.full((10,), 4)]))
    found = linear_probe(train, None, test)
    assert found.correct[:10].double().mean() >= 0.8 and not found.correct[10:].any()


def test_mean_class_accuracy(digits):
    train, test = digits
    few = (test.labels != 3) | (torch.arange(797) % 10 == 0)  # a rare class weighs as much
    test = Labelled(test.features[few], test.labels[few])
    train = Labelled(train.features[:200], train.labels[:200])
    found = linear_probe(train, None, test, per_class=True)
    by_hand = []
    for label in range(10):
        rows = [row for row in range(len(test.labels)) if test.labels[row] == label]
        by_hand.append(sum(bool(found.correct[row]) for row in rows) / len(rows))
    assert found.accuracy == pytest.approx(sum(by_hand) / 10)
    by_class = class_accuracies(test.labels, found.correct, 11)
    assert by_class[:10].tolist() == pytest.approx(by_hand) and by_class[10].isnan()


def test_held_out_images_are_of_all_classes_alike():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [3])
    points = Labelled(torch.arange(33.0)[:, None], labels)
    train, val = hold_out(points, 0)
    assert val.labels.bincount(minlength=4).tolist() == [4, 2, 1, 0]
    assert sorted(torch.cat([train.features, val.features])[:, 0].tolist()) == list(range(33))
    assert hold_out(points, 0)[1].features.equal(val.features)
    assert not hold_out(points, 1)[1].features.equal(val.features)


def test_refuses_what_cannot_be_probed():
    points = Labelled(torch.randn(6, 2), torch.arange(6))
    with pytest.raises(ValueError, match="no validation image"):
        linear_probe(points, None, points)
    alike = Labelled(torch.randn(6, 2), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="at least two classes; got 1"):
        linear_probe(alike, None, alike)
    broken = Labelled(torch.full((6, 2), torch.nan), torch.arange(6) % 2)
    with pytest.raises(ValueError, match=r"finite features.*--precision fp32"):
        linear_probe(broken, None, broken)


def test_says_when_it_has_not_converged(digits, caplog):
    train, test = digits
    linear_probe(Labelled(train.features[:200], train.labels[:200]), None, test, iterations=1)
    assert "has not converged after 1 iterations" in caplog.text
