"""Quantizers: one interface, bad input, and what small or strange catalogues do."""
import subprocess, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from semantic_ids.ids import usage
from semantic_ids.quantizers import FSQ, OPQ, RandomCodes, ResidualKMeans, centres, refit, search, to_steps
from semantic_ids.runs import InputError

def vectors(n=300, d=24, seed=0):
    r = np.random.default_rng(seed)
    return (r.normal(size=(12, d))[r.integers(0, 12, n)] + .3*r.normal(size=(n, d))).astype(np.float32)

KINDS = dict(greedy=lambda k=8: ResidualKMeans(3, k), refitted=lambda k=8: ResidualKMeans(3, k, refits=3), beam=lambda k=8: ResidualKMeans(3, k, beam=4), balanced=lambda k=8: ResidualKMeans(3, k, balanced=True),
             opq=lambda k=8: OPQ(3, k), fsq=lambda k=8: FSQ(3, k), random=lambda k=8: RandomCodes(3, k))
kinds = pytest.mark.parametrize('kind', KINDS)

def fitted(kind, x, k=8): return KINDS[kind](k).fit(x, **dict(steps=30) if kind == 'fsq' else {})

@kinds
def test_the_interface(kind, tmp_path):
    x = vectors()
    q = fitted(kind, x)
    codes = q.encode(x)
    assert codes.shape == (300, 3) and codes.min() >= 0 and codes.max() < 8
    assert q.decode(codes).shape == x.shape and np.isfinite(q.decode(codes)).all()
    assert (q.encode(x[17:18]) == codes[17:18]).all()
    q.save(tmp_path)
    again = type(q).load(tmp_path)
    assert (again.encode(x) == codes).all() and np.array_equal(again.decode(codes), q.decode(codes))

@kinds
def test_the_same_seed_gives_the_same_codes(kind):
    x = vectors()
    assert (fitted(kind, x).encode(x) == fitted(kind, x).encode(x)).all()

def test_two_processes_agree():
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport torch; torch.set_num_threads(1)\nfrom test_quantizers import *\nx = vectors()\n"
            "print([fitted(k, x).encode(x).sum(0).tolist() for k in KINDS])")
    out = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert out[0] == out[1] and out[0].startswith('[[')

@kinds
@pytest.mark.parametrize('x', [np.full((5, 4), np.nan, np.float32), np.zeros((0, 4), np.float32), np.zeros(4, np.float32)], ids=['nan', 'empty', 'flat'])
def test_bad_vectors_are_refused(kind, x):
    with pytest.raises(InputError, match='vectors'): fitted(kind, x)

@kinds
@pytest.mark.parametrize('x', [vectors(1), vectors(5), np.tile(vectors(2), (1000, 1)), np.ones((50, 24), np.float32)], ids=['one item', 'fewer than codes', 'a thousand copies', 'constant'])
def test_strange_catalogues_get_codes(kind, x):
    q = fitted(kind, x)
    codes = q.encode(x)
    assert codes.shape == (len(x), 3) and codes.max() < 8
    assert np.isfinite(q.decode(codes)).all()
    same = np.unique(x, axis=0, return_inverse=True)[1].ravel()
    assert len(np.unique(np.column_stack([same, codes]), axis=0)) == same.max() + 1

@pytest.mark.parametrize('kind', ['greedy', 'refitted', 'balanced', 'random'])
def test_a_level_of_one_code(kind):
    x = vectors(40)
    assert (fitted(kind, x, 1).encode(x) == 0).all()

@pytest.mark.parametrize('kind', ['opq', 'fsq'])
@pytest.mark.parametrize('k', [1, 6])
def test_sizes_that_are_no_power_of_two(kind, k):
    with pytest.raises(InputError, match='power of two'): fitted(kind, vectors(60), k)

@kinds
def test_damaged_files(kind, tmp_path):
    q = fitted(kind, vectors())
    q.save(tmp_path)
    f = tmp_path/'model.safetensors'
    f.write_bytes(f.read_bytes()[:100])
    with pytest.raises(InputError, match='fit it again'): type(q).load(tmp_path)
    f.unlink()
    with pytest.raises(InputError): type(q).load(tmp_path)

def test_codes_that_no_codebook_has():
    q = fitted('greedy', vectors())
    for c in ([[0, 0, 8]], [[-1, 0, 0]]):
        with pytest.raises(InputError, match='wanted 0 to 7'): q.decode(np.array(c))

def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(InputError, match=r'semantic-ids\[faiss\]'): OPQ(3, 8).fit(vectors())

def test_opq_codes_are_those_of_faiss():
    "Without a rotation to learn, our greedy search over padded codewords is product quantization"
    import faiss
    x = vectors(400, 24)
    q = OPQ(3, 8).fit(x)
    whole = torch.cdist(torch.tensor(x - x.mean(0)), torch.stack([q.books[0][a] + q.books[1][b] + q.books[2][c] for a in range(8) for b in range(8) for c in range(8)]))
    best = whole.argmin(1).numpy()
    assert (q.encode(x) == np.stack([best//64, best//8 % 8, best % 8], 1)).mean() > .99

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_a_beam_of_everything_is_the_best_sum(n, k, d, seed):
    "Against every combination of two levels"
    g = torch.Generator().manual_seed(seed)
    x, books = torch.randn(n, d, generator=g), torch.randn(2, k, d, generator=g)
    codes, left = search(x, books, torch.zeros(2, k), beam=k*k)
    sums = (books[0][:, None] + books[1][None]).view(-1, d)
    assert torch.allclose(left.norm(dim=1), torch.cdist(x, sums).min(1).values, atol=1e-3)
    assert torch.allclose(x - books[0][codes[:, 0]] - books[1][codes[:, 1]], left, atol=1e-5)

@settings(deadline=None, max_examples=20)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_refit_is_least_squares(n, k, levels, d, seed):
    "Against numpy's solution of the same system; the hundredth on the diagonal costs little"
    g = torch.Generator().manual_seed(seed)
    r, codes = torch.randn(n, d, generator=g), torch.randint(k, (n, levels), generator=g)
    books = refit(r, codes, k)
    uses = torch.nn.functional.one_hot(codes, k).flatten(1).double()
    penalty = lambda w: (r.double() - uses @ w).square().sum() + .01 * w.square().sum()
    best = torch.as_tensor(np.linalg.lstsq(np.vstack([uses, .1 * np.eye(levels * k)]), np.vstack([r.double(), np.zeros((levels * k, d))]), rcond=None)[0])
    assert torch.isclose(penalty(books.flatten(0, 1).double()), penalty(best), rtol=1e-5, atol=1e-7)
    assert (books.flatten(0, 1)[uses.sum(0) == 0] == 0).all()

def test_fitting_together_lowers_the_error():
    x = vectors(1000, 80)
    z, books = torch.tensor(x - x.mean(0)), []
    r = z
    for l in range(3):
        books.append(centres(r, 8, 42 + l))
        r = search(r, books[-1:], torch.zeros(1, 8))[1]
    q = fitted('refitted', x)
    assert np.square(x - q.decode(q.encode(x))).sum() < r.square().sum().item()

def test_centres_are_means_of_their_vectors():
    "More directions than k-means looks at"
    r = torch.tensor(vectors(500, 100))
    book = centres(r - r.mean(0), 12)
    code = torch.cdist(r - r.mean(0), book).argmin(1)
    for c in code.unique(): assert torch.allclose(book[c], (r - r.mean(0))[code == c].mean(0), atol=.1)

def test_prices_and_refits_exclude_each_other():
    with pytest.raises(InputError, match='exclude'): ResidualKMeans(3, 8, balanced=True, refits=1)

def test_balance_evens_out():
    x = vectors(2000)
    even, greedy = (usage(fitted(kind, x).encode(x), 8)[1] for kind in ('balanced', 'greedy'))
    assert (even > greedy).all()

def test_steps_pass_the_gradient_straight_through():
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None].requires_grad_()
    to_steps(z, torch.tensor([4.])).sum().backward()
    assert torch.allclose(z.grad, 1.5*(1 - torch.tanh(z.detach())**2))
