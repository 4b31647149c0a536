"""The systems beside the paper: closed forms, finite differences, published numbers."""

import math

import numpy as np
import pytest
import torch
from ocr_toy import attention_svm, convex, grokking, in_context, reversal_curse, scan_and_snap, stages
from ocr_toy.report import Check, Report, table
from ocr_toy.task import stream


def quiet(line: str) -> None:
    """Say nothing."""


def failed(report: Report) -> list[str]:
    return [c.name for c in report.checks if not c.passed]


# In-context regression.


def test_the_published_levels() -> None:
    assert in_context.levels(in_context.EIGENVALUES) == pytest.approx([1, 0.6406, 0.3774, 0.2098, 0.1360], abs=5e-5)


def test_a_level_is_the_least_loss_on_its_eigendirections() -> None:
    of = in_context.Population((0.5, 0.3, 0.1), examples=7)
    for m, level in enumerate(in_context.levels(of.eigenvalues, 7)):
        best = np.where(np.arange(3) < m, np.array(of.eigenvalues) / of.s, 0.0)
        assert of.loss(np.diag(best)) == pytest.approx(level)


def test_the_population_loss_is_that_of_data() -> None:
    """Averaged over many draws of tasks and examples."""
    of = in_context.Population((0.6, 0.3), examples=5)
    rng, m = np.random.default_rng(0), np.array([[0.7, 0.2], [-0.1, 0.4]])
    scale = np.sqrt(of.eigenvalues)
    x, query = scale * rng.standard_normal((200_000, 5, 2)), scale * rng.standard_normal((200_000, 2))
    w = rng.standard_normal((200_000, 2))
    beta = np.einsum("bnd,bn->bd", x, np.einsum("bnd,bd->bn", x, w)) / 5
    error = (w * query).sum(axis=1) - np.einsum("bd,de,be->b", beta, m, query)
    assert of.loss(m) == pytest.approx(float((error**2).mean()), abs=4 * float((error**2).std()) / 200_000**0.5)


def test_the_slope_is_half_the_gradient() -> None:
    of, m = in_context.Population((0.6, 0.3)), np.array([[0.7, 0.2], [-0.1, 0.4]])
    for place in np.ndindex(2, 2):
        moved = m.copy()
        moved[place] += 1e-6
        assert of.slope(m)[place] == pytest.approx((of.loss(moved) - of.loss(m)) / 2e-6, abs=1e-5)


def test_separate_stays_at_levels_and_merged_does_not() -> None:
    of = in_context.Population((0.6, 0.2))
    expected = in_context.levels(of.eigenvalues)
    apart = in_context.train_separate(of, heads=3, rank=1, scale=0.01, rate=1.0, steps=6000, seed=0)
    assert in_context.plateaus(apart, expected) == pytest.approx(expected, rel=0.01)
    rng = np.random.default_rng(0)
    v, u = 1e-6 * rng.standard_normal(4), 1e-6 * rng.standard_normal((4, 2, 2))
    merged, _ = in_context.train_merged(of, v, u, rate=1.0, steps=3000)
    assert merged[-1] == pytest.approx(expected[-1], abs=1e-4)
    at_one = [in_context.stays(losses, expected)[1] for losses in (apart, merged)]
    assert at_one[0] > 10 * at_one[1]


def test_heads_of_any_rank_descend_on_half_the_loss() -> None:
    """Against autograd of the loss as the paper writes it, from the same draws."""
    of, scale, rate = in_context.Population((0.6, 0.3, 0.1)), 0.5, 0.7
    ours = in_context.train_separate(of, heads=2, rank=2, scale=scale, rate=rate, steps=4, seed=3)
    rng, lam = stream(3, "init"), torch.diag(torch.tensor(of.eigenvalues, dtype=torch.float64))
    shapes = ((2,), (2, 2, 3), (2, 2, 3))
    v, k, q = parts = [torch.from_numpy(scale * rng.standard_normal(shape)).requires_grad_() for shape in shapes]
    for expected in ours:
        m = torch.einsum("h,hri,hrj->ij", v, k, q)
        s = lam @ lam + (lam @ lam + lam.trace() * lam) / of.examples
        loss = lam.trace() - 2 * (lam @ lam @ m).trace() + (m.T @ s @ m @ lam).trace()
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        slopes = torch.autograd.grad(loss / 2, parts)
        with torch.no_grad():
            for part, slope in zip(parts, slopes, strict=True):
                part -= rate * slope


def test_rank_two_steps_over_every_second_level() -> None:
    of = in_context.Population((0.4, 0.3, 0.2, 0.1))
    expected = in_context.levels(of.eigenvalues)
    one, two = (in_context.train_separate(of, 5, rank, 5e-3, 1.0, 8000, seed=0) for rank in (1, 2))
    assert in_context.plateaus(two, expected)[2] == pytest.approx(expected[2], rel=1e-3)
    stays = [in_context.stays(losses, expected) for losses in (one, two)]
    assert stays[1][1] < 0.2 * stays[0][1]
    assert in_context.between([5, 1, 7, 2, 9, 9, 9], 2) == 1 + 2
    assert in_context.between([5, 1, 7, 2, 4, 9, 9], 4) == 1 + 7 + 2


def test_white_inputs_follow_the_closed_form() -> None:
    of, w_init, rate = in_context.Population((1.0,) * 3, examples=9), 1e-2, 0.002
    u = np.eye(3)[None] * w_init / math.sqrt(3)
    _, sigma = in_context.train_merged(of, np.array([w_init]), u, rate, 2500)
    expected = in_context.white_closed_form(3, 9, w_init, rate * np.arange(len(sigma)))
    assert np.abs(sigma - expected).max() < 0.02
    assert sigma[-1] == pytest.approx(1 / (1 + 4 / 9), abs=1e-3)


def test_a_plateau_that_is_never_visited_is_not_a_number() -> None:
    assert np.isnan(in_context.plateaus(np.array([1.0, 1.0, 0.0, 0.0]), [1.0, 0.5, 0.0])[1])


# Scan and snap.


def test_the_published_scan_and_snap_log() -> None:
    report = scan_and_snap.report([2], quiet)
    assert failed(report) == []
    assert report.data["published"][:2] == [3.52636, 2.36791]
    assert report.data["runs"][0]["losses"][0] == pytest.approx(math.log(34), abs=1e-5)


def test_token_frequencies_are_those_of_the_log() -> None:
    p = scan_and_snap.frequencies()
    assert p.sum(axis=1) == pytest.approx([1, 1])
    assert p[0, [0, 10, 19, 20]] == pytest.approx([0.0645, 0.0065, 0.0645, 0.0], abs=5e-5)


def test_attention_on_common_tokens() -> None:
    z = np.zeros((2, 30))
    assert scan_and_snap.on_common(z) == pytest.approx([10 / 15.5] * 2)
    z[:, :10] = -np.log(2)
    assert scan_and_snap.on_common(z) == pytest.approx([5 / 10.5] * 2)


def test_order_is_1_for_attention_that_grows_with_frequency_and_minus_1_against_it() -> None:
    z = np.tile(np.arange(30.0), (2, 1))
    assert scan_and_snap.order(z) == pytest.approx(1.0)
    assert scan_and_snap.order(-z) == pytest.approx(-1.0)


# Stages.


def test_pairs_of_subjects_share_every_answer() -> None:
    subject, relation, answer = stages.questions()
    assert len(set(zip(subject, relation, strict=True))) == 64
    assert answer[(subject == 6) & (relation == 2)] == answer[(subject == 7) & (relation == 2)] == [19]
    held = stages.held_out_mask()
    assert held.sum() == 8
    assert set(answer[held]) == set(answer[~held & (relation == 3)])


def test_stages_begin_at_the_published_losses_and_add_up() -> None:
    records = stages.train(True, 0, 64, 64, seed=0)
    first = records[0]
    assert (first.total, first.relation, first.subject) == pytest.approx(
        (math.log(32), math.log(4), math.log(8)), abs=1e-3
    )
    assert first.held_out == pytest.approx(math.log(32), abs=1e-3)
    assert [r.step for r in records] == [0, 64]
    for r in records:
        assert r.total == pytest.approx(r.relation + r.subject, abs=1e-4)


# Grokking.


def test_decay_alone_makes_a_large_start_generalize() -> None:
    run = grokking.grok(4.0, 0.01, seed=0, steps=1000)
    assert run.fitted is not None
    assert run.learned is not None
    assert run.learned > 10 * run.fitted
    assert run.time == pytest.approx(run.rate * 0.01 * run.learned)
    never = grokking.grok(4.0, 0.0, seed=0, steps=1000)
    assert (never.learned, never.time) == (None, None)
    small = grokking.grok(0.1, 0.01, seed=0, steps=1000)
    assert small.learned is not None
    assert small.fitted is not None
    assert small.learned < 2 * small.fitted


def test_the_balanced_start_outputs_nothing() -> None:
    assert grokking.grok(4.0, 0.01, seed=0, steps=0).fitted is None


# Attention SVM.


@pytest.mark.parametrize("vector", [False, True])
def test_the_attention_slope_points_along_the_gradient(vector: bool) -> None:
    data = attention_svm.draw(0, 2, vector)
    w = 3 * np.random.default_rng(1).standard_normal((2, data.x.shape[-1], data.z.shape[-1]))

    def loss(r: int, at: np.ndarray) -> float:
        scores = np.einsum("ntd,de,ne->nt", data.x[r], at, data.z[r])
        s = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        f = np.einsum("nt,ntd,d->n", s, data.x[r], data.v[r])
        return float(np.log1p(np.exp(-data.y[r] * f)).mean())

    grad, _ = attention_svm.slope(data, w)
    for r in range(2):
        numeric = np.zeros(w[r].shape)
        for place in np.ndindex(w[r].shape):
            ahead, behind = w[r].copy(), w[r].copy()
            ahead[place] += 1e-5
            behind[place] -= 1e-5
            numeric[place] = (loss(r, ahead) - loss(r, behind)) / 2e-5
        cosine = (numeric * grad[r]).sum() / np.linalg.norm(numeric) / np.linalg.norm(grad[r])
        assert cosine == pytest.approx(1.0, abs=1e-6)


def test_the_attention_slope_survives_underflow() -> None:
    data = attention_svm.draw(0, 2)
    grad, sharp = attention_svm.slope(data, 1e4 * np.random.default_rng(1).standard_normal((2, 10, 10)))
    assert np.isfinite(grad).all()
    assert (np.linalg.norm(grad, axis=(1, 2)) > 0).all()
    assert sharp.min() == pytest.approx(1.0)


def test_the_attention_svm_separates_the_chosen_tokens_by_1() -> None:
    data, chosen = attention_svm.draw(3, 1), np.array([0, 1, 2, 3, 4, 5])
    norms = []
    for nuclear in (False, True):
        w = attention_svm.svm(data.x[0], data.z[0], chosen, nuclear)
        scores = np.einsum("ntd,de,ne->nt", data.x[0], w, data.z[0])
        own = scores[np.arange(6), chosen]
        scores[np.arange(6), chosen] = -np.inf
        assert (own - scores.max(axis=1)).min() == pytest.approx(1.0, abs=1e-5)
        norms.append((np.linalg.norm(w), np.linalg.norm(w, "nuc")))
    assert norms[0][0] < norms[1][0]
    assert norms[1][1] < norms[0][1]


def test_one_pair_of_tokens_is_separated_along_their_difference() -> None:
    """The closed form of p: the gap g of two tokens over ||g||^2; descent turns to it from any start."""
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((3, 1, 2, 5)), np.ones((3, 1, 1))
    data = attention_svm.Data(x, z, rng.standard_normal((3, 5)), np.ones((3, 1)))
    p, sharp = attention_svm.train(data, factorized=False, seed=0, steps=2000)
    assert sharp == pytest.approx(1.0)
    for r in range(3):
        chosen = (x[r, 0] @ p[r, :, 0]).argmax(keepdims=True)
        gap = x[r, 0, chosen[0]] - x[r, 0, 1 - chosen[0]]
        assert attention_svm.svm(x[r], z[r], chosen, False)[:, 0] == pytest.approx(gap / (gap @ gap), abs=1e-5)
        assert p[r, :, 0] @ gap / np.linalg.norm(p[r]) / np.linalg.norm(gap) == pytest.approx(1.0, abs=1e-4)


# The reversal curse.


def test_the_bilinear_curse_is_exact_with_orthonormal_embeddings() -> None:
    taught, asked = reversal_curse.bilinear(np.eye(14), 7)
    assert asked == pytest.approx(math.log(14), abs=1e-9)
    assert taught[0] == pytest.approx(math.log(14))
    assert taught[-1] < reversal_curse.TARGET


def test_coefficients_move_as_theta_does() -> None:
    """Three steps of descent on Theta itself, [d, d], from the same embeddings."""
    v = np.random.default_rng(0).standard_normal((6, 5)) / math.sqrt(5)
    theta, losses = np.zeros((5, 5)), []
    for _ in range(3):
        f = v @ theta @ v.T
        p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
        losses.append(float(-np.log(p[3, 0])))
        for given, answer in ((0, 3), (1, 4), (2, 5), (4, 1), (5, 2)):
            error = p[given] - np.eye(6)[answer]
            theta -= np.outer(v[given], error @ v)
    _, asked = reversal_curse.bilinear(v @ v.T, 3)
    assert asked[:3] == pytest.approx(losses)


def test_the_exponent_by_hand() -> None:
    assert reversal_curse.exponent(np.array([1.0, 0.1]), np.array([2.0, 2 * 0.1**0.25])) == pytest.approx(0.25)


def test_questions_are_the_papers() -> None:
    for chain, taught_rows, entities in ((False, 340, 400), (True, 540, 600)):
        taught, asked = reversal_curse.questions(chain, 140, 60, np.random.default_rng(0))
        assert (len(taught), len(asked)) == (taught_rows, 60)
        whole = {tuple(row) for row in np.concatenate([taught, asked])}
        assert len(whole) == taught_rows + 60
        assert {place for row in whole for place in (row[0], row[2])} == set(range(entities))
        if chain:  # every x ~> z is what its two taught hops lead to
            hop = {given: answer for given, arrow, answer in taught if arrow == 0}
            assert all(hop[hop[given]] == answer for given, arrow, answer in whole if arrow == 1)
        else:
            assert all((answer, 1 - arrow, given) in whole for given, arrow, answer in whole)
            assert 10 < asked[:, 1].sum() < 50


@pytest.mark.parametrize("chain", [False, True])
def test_probabilities_of_the_one_layer_model_are_those_of_autograd(chain: bool) -> None:
    of, asked, right = reversal_curse.one_layer(chain, 2, 1)
    w = torch.zeros(12, of.phi.shape[1], dtype=torch.float64, requires_grad=True)
    phi, answers, inputs = (torch.from_numpy(values) for values in (of.phi, of.right, asked))
    largest = 0.0
    for _ in range(3):
        torch.nn.functional.cross_entropy(phi @ w.T, answers, reduction="sum").backward()
        with torch.no_grad():
            w -= w.grad
            w.grad.zero_()
            largest = max(largest, float(torch.softmax(inputs @ w.T, dim=1)[:, right].max()))
            taught = float(torch.softmax(phi @ w.T, dim=1)[range(len(phi)), answers].min())
    assert reversal_curse.likeliest(of, asked, right, 12, steps=3) == pytest.approx((largest, taught))
    assert largest < 1 / 12


def test_the_optima_of_a_chain_do_not_compose() -> None:
    of, asked, right = reversal_curse.one_layer(True, 3, 2)
    for kind, over_all, inside in (("nuclear", -1.255, -1.255), ("frobenius", -1.0, -0.876)):
        w = convex.least_norm(of, kind)
        assert reversal_curse.largest_margin(w, asked, right) == pytest.approx(over_all, abs=1e-3)
        assert reversal_curse.largest_margin(w[10:], asked, right - 10) == pytest.approx(inside, abs=1e-3)


def test_no_norm_and_no_descent_reverses_a_pair_that_shares_nothing() -> None:
    assert failed(reversal_curse.report([0], quiet)) == []


def test_tables_are_aligned() -> None:
    assert table(("a", "bc"), [("xyz", "1")]) == ["a    bc", "xyz  1"]
    assert not Check("x", "", 0.0, float("nan"), 1.0).passed
