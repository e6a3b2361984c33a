"""The quantizer: gradients against float64, bad input, resume, files."""
import json, subprocess, sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from semantic_ids.rqvae import CURES, RQVAE, Watch, beam_codes, colliding, movie, new_prices, perplexity, residual_codes, rotate, straight
from semantic_ids.runs import InputError

SIZE = dict(hidden=(32,), d_latent=8, codebook_size=16)

# gradients

def reference(z, q):
    "Lambda times the rotation in the plane of z and q, built from an orthonormal basis; float64"
    a = z / np.linalg.norm(z); b = q / np.linalg.norm(q)
    across = b - (a @ b) * a
    across /= np.linalg.norm(across)
    cos, sin = a @ b, across @ b
    turn = np.outer(a, a) * (cos - 1) + np.outer(across, across) * (cos - 1) + sin * (np.outer(across, a) - np.outer(a, across))
    return np.linalg.norm(q) / np.linalg.norm(z) * (np.eye(len(z)) + turn)

@given(st.integers(0, 2**31), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_both_gradients_agree_with_a_float64_reference(seed, d):
    g = torch.Generator().manual_seed(seed)
    z, q, up = (torch.randn(5, d, generator=g, dtype=torch.float64) for _ in range(3))
    for cure, matrix in ((straight, lambda a, b: np.eye(d)), (rotate, reference)):
        v = z.clone().requires_grad_()
        out = cure(v, q)
        torch.testing.assert_close(out.detach(), q, rtol=1e-9, atol=1e-9)
        out.backward(up)
        wanted = np.stack([matrix(a, b).T @ u for a, b, u in zip(z.numpy(), q.numpy(), up.numpy())])
        np.testing.assert_allclose(v.grad.numpy(), wanted, rtol=1e-7, atol=1e-7)

def test_float32_rotation_gives_q():
    z, q = torch.randn(100, 64), torch.randn(100, 64)
    torch.testing.assert_close(rotate(z, q), q, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('z, q', [([0., 0.], [1., 0.]), ([1., 0.], [0., 0.]), ([1., 0.], [-1., 0.]), ([1., 0.], [1., 0.])])
def test_rotation_stays_finite_at_its_edges(z, q):
    v = torch.tensor([z], requires_grad=True)
    rotate(v, torch.tensor([q])).sum().backward()
    assert v.grad.isfinite().all()

# search and prices

def test_one_beam_without_prices_is_greedy():
    z, books = torch.randn(300, 6), torch.randn(3, 8, 6)
    assert (beam_codes(z, books, torch.zeros(3, 8), 1) == residual_codes(z, list(books))[0]).all()

def test_enough_beams_find_the_best_sum():
    torch.manual_seed(0)
    z, books, prices = torch.randn(40, 4), torch.randn(3, 4, 4), torch.rand(3, 4)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    sums, paid = sum(b[i] for b, i in zip(books, every.T)), sum(p[i] for p, i in zip(prices, every.T))
    best = every[(torch.cdist(z, sums).square() + paid).argmin(1)]
    assert (beam_codes(z, books, prices, 64) == best).all()

def test_prices_even_out_the_use():
    torch.manual_seed(0)
    z, books, prices = torch.randn(2000, 2) ** 3, torch.randn(1, 8, 2), torch.zeros(1, 8)
    before = perplexity(beam_codes(z, books, prices), 8)
    for _ in range(300): prices = new_prices(prices, torch.bincount(beam_codes(z, books, prices)[:, 0], minlength=8)[None] / 2000, torch.tensor([.5]), .02)
    assert perplexity(beam_codes(z, books, prices), 8) > before and prices.mean().abs() < 1e-5

def test_no_pair_of_equal_vectors_collides():
    assert not len(colliding(torch.zeros(5, 3, dtype=torch.long), torch.ones(5, 2)))

# training

def test_alone_or_in_company_an_item_gets_the_same_codes(x, model):
    assert (np.concatenate([model.encode(x[i:i + 1]) for i in range(50)]) == model.encode(x)[:50]).all()

@pytest.mark.parametrize('option', [dict(gradient='rotation'), dict(ema=True), dict(accumulate=3, batch=64), dict(held=.1), dict(dtype='bfloat16'), dict(cures=()), dict(clip=1e-3)])
def test_options_train(x, option):
    q = RQVAE(24, **SIZE).fit(x, steps=40, **option)
    assert q.encode(x).shape == (400, 3) and all(np.isfinite(h['error']) for h in q.history)

def test_ema_brings_every_code_into_use_and_no_cure_does_not(x):
    used = lambda **kw: len(np.unique(RQVAE(24, **SIZE).fit(x, steps=80, **kw).encode(x)[:, 0]))
    assert used(ema=True) == 16

def test_restart_clears_the_optimizers_memory(x):
    q = RQVAE(24, **SIZE); opt = torch.optim.AdamW(q.parameters())
    q(torch.tensor(x))[2].backward(); opt.step()
    used = torch.ones(3, 16); used[1, 3] = 0
    q.prices[1, 3] = 5.
    assert [m.tolist() for m in q.restart_dead(q.to_latent(torch.tensor(x)), used, opt)] == [[], [3], []]
    assert opt.state[q.codebooks]['exp_avg_sq'][1, 3].sum() == 0 and opt.state[q.codebooks]['exp_avg_sq'].sum() > 0 and q.prices[1, 3] == 0

def test_the_history_says_what_happened(x, model):
    assert [h['step'] for h in model.history] == [20, 40, 60, 80]
    assert set(model.history[-1]) == {'step', 'lr', 'error', 'codebook', 'commitment', 'gradient_norm', 'used', 'batch_perplexity', 'unique', 'perplexity', 'cosine', 'id_score'}
    json.dumps(model.history)

@pytest.mark.parametrize('option, match', [(dict(cures=('scael',)), "'scael'"), (dict(gradient='x'), 'rotation'), (dict(held=1.), 'held'), (dict(steps=0), 'steps'), (dict(batch=0), 'batch')])
def test_bad_options_are_refused(x, option, match):
    with pytest.raises(InputError, match=match): RQVAE(24, **SIZE).fit(x, **option)

# bad vectors

@pytest.mark.parametrize('few', [lambda x: x[:1], lambda x: x[:5], lambda x: np.repeat(x[:1], 1000, 0), lambda x: np.zeros((50, 24)), lambda x: np.repeat(x[:3], 40, 0)],
                         ids=['one item', 'fewer items than codes', 'one vector a thousand times', 'zeros', 'three vectors'])
def test_poor_sets_get_codes_and_equal_vectors_equal_codes(x, few):
    v = few(x).astype(np.float32)
    q = RQVAE(24, **SIZE).fit(v, steps=30)
    codes = q.encode(v)
    assert codes.min() >= 0 and codes.max() < 16 and np.isfinite(q.decode(codes)).all()
    _, of = np.unique(v, axis=0, return_inverse=True)
    assert len(np.unique(np.column_stack([of.ravel(), codes]), axis=0)) == of.max() + 1

def test_levels_of_one_code(x):
    codes = RQVAE(24, hidden=(32,), d_latent=8, codebook_size=1).fit(x, steps=20).encode(x)
    assert (codes == 0).all()

def test_latents_longer_than_the_vectors(x):
    assert len(np.unique(RQVAE(24, hidden=(32,), d_latent=40, codebook_size=16).fit(x, steps=40).encode(x), axis=0)) > 200

@pytest.mark.parametrize('spoil, match', [(lambda x: np.where(np.arange(400)[:, None] == 7, np.nan, x), 'first row 7'), (lambda x: x[:, :5], '5 dimensions')])
def test_bad_vectors_are_refused_by_fit_and_encode(x, model, spoil, match):
    with pytest.raises(InputError, match=match): RQVAE(24, **SIZE).fit(spoil(x), steps=2)
    with pytest.raises(InputError, match=match): model.encode(spoil(x))

# files

def test_saved_is_bit_identical(x, model, tmp_path):
    model.save(tmp_path)
    again = RQVAE.load(tmp_path)
    np.testing.assert_array_equal(again.encode(x), model.encode(x))
    np.testing.assert_array_equal(again.decode(again.encode(x)), model.decode(model.encode(x)))

def test_files_of_the_first_format_load(x, tmp_path):
    old = RQVAE(24, **SIZE, linear=False, beams=0).fit(x, steps=40, cures=('scale', 'kmeans', 'restart', 'repair'))
    old.save(tmp_path)
    from safetensors.torch import load_file, save_file
    kept = load_file(tmp_path / 'model.safetensors'); del kept['prices']
    save_file(kept, tmp_path / 'model.safetensors')
    about = json.loads((tmp_path / 'config.json').read_text())
    for new in ('linear', 'beams'): del about['config'][new]
    (tmp_path / 'config.json').write_text(json.dumps(about))
    assert (RQVAE.load(tmp_path).encode(x) == old.encode(x)).all()

@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_a_cut_file_is_refused(model, tmp_path, name):
    model.save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:len(data) // 2])
    with pytest.raises(InputError): RQVAE.load(tmp_path)

class Killed(Exception): pass

def kill(at):
    def watch(model, row):
        if row['step'] == at: raise Killed
    return watch

@pytest.mark.parametrize('option', [{}, dict(ema=True), dict(batch=64, accumulate=2, held=.1)], ids=['plain', 'ema', 'minibatches'])
def test_a_killed_fit_goes_on_to_the_same_codes(x, tmp_path, option):
    whole = RQVAE(24, **SIZE).fit(x, steps=100, **option)
    with pytest.raises(Killed): RQVAE(24, **SIZE).fit(x, steps=100, checkpoints=tmp_path, watch=kill(60), **option)
    assert [p.name for p in tmp_path.iterdir()] == ['last.safetensors']
    steps = []
    again = RQVAE(24, **SIZE).fit(x, steps=100, checkpoints=tmp_path, watch=lambda m, row: steps.append(row['step']), **option)
    assert steps == [80, 100] and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(again.encode(x), whole.encode(x))
    assert [h['step'] for h in again.history] == [h['step'] for h in whole.history]

def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_used(x, tmp_path):
    with pytest.raises(Killed): RQVAE(24, **SIZE).fit(x, steps=60, checkpoints=tmp_path, watch=kill(40))
    steps = []
    watch = lambda m, row: steps.append(row['step'])
    RQVAE(24, **SIZE).fit(x, seed=7, steps=60, checkpoints=tmp_path, watch=watch)
    (tmp_path / 'last.safetensors').write_bytes(b'broken')
    RQVAE(24, **SIZE).fit(x, steps=60, checkpoints=tmp_path, watch=watch)
    assert steps == [20, 40, 60] * 2

PROCESS = """
import numpy as np, torch
torch.set_num_threads(1); torch.manual_seed({noise})
from semantic_ids.rqvae import RQVAE
x = np.random.default_rng(0).normal(size=(300, 24)).astype('f')
print(RQVAE(24, codebook_size=16).fit(x, seed=5, steps=60, batch=128).encode(x).tolist())
"""

def test_the_same_seed_gives_the_same_codes_in_two_processes():
    runs = [subprocess.run([sys.executable, '-c', PROCESS.format(noise=n)], capture_output=True, text=True, check=True).stdout for n in (1, 2)]
    assert runs[0] == runs[1]

# pictures

def test_the_movie_moves_codewords_only(x):
    watch = Watch(np.tile(x, (5, 1)))
    watch.handle = type('Handle', (), dict(update=lambda self, fig: None))()
    RQVAE(24, **SIZE).fit(x, steps=900, watch=watch)
    fig = movie(watch)
    assert len(fig.data[0].x) == 1000 and 1 < len(fig.frames) <= 40
    assert all(len(f.data) == 1 and f.traces == (1,) and len(f.data[0].x) == 16 for f in fig.frames)
    assert len(fig.layout.sliders[0].steps) == len(fig.frames) and fig.layout.updatemenus[0].buttons[0].label == 'Play'
    assert all(round(v, 3) == v for f in fig.frames for v in f.data[0].x)
