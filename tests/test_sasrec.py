"What every SASRec promises, hash or semantic, comparing vectors or saying codes; and what training promises"
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from semantic_ids.generative import ARSASRec, ParallelSASRec, code_loss
from semantic_ids.histories import Ragged, split
from semantic_ids.ids import SemanticIDs, beam
from semantic_ids.metrics import evaluate
from semantic_ids.runs import InputError, shop_path
from semantic_ids.sasrec import SASRec, Windows, softmax_loss, train_sasrec
from semantic_ids.semantic_sasrec import SemanticSASRec, random_codes

N, K = 40, 8
CODES = random_codes(N, 2, K, 0)
KINDS = dict(hash=lambda: SASRec(N, 16, max_len=8), codes=lambda: SemanticSASRec(CODES, K, d_model=16, max_len=8),
             codes_hash=lambda: SemanticSASRec(CODES, K, hash=True, hidden=0, d_model=16, max_len=8),
             parallel=lambda: ParallelSASRec(CODES, K, d_model=16, max_len=8), ar=lambda: ARSASRec(CODES, K, d_model=16, max_len=8))
GENERATIVE = ['parallel', 'ar']
every = pytest.mark.parametrize('kind', KINDS)
close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

def make(kind, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        m = KINDS[kind]()
        for p in m.parameters(): p.data += .1 * torch.randn_like(p)
    return m.eval()

@pytest.fixture(scope='module')
def world():
    "Users walk through the items in steps of one to three"
    rng, rows = np.random.default_rng(0), []
    for _ in range(200):
        steps = rng.integers(1, 4, rng.integers(5, 30))
        rows.append(list(dict.fromkeys(((rng.integers(N) + steps.cumsum()) % N).tolist())))
    return split(Ragged.of(rows + [[1], [2, 3]]))

# --- the batch does not matter ----------------------------------------------------------------------------------------

histories = st.lists(st.lists(st.integers(0, N - 1), max_size=12), min_size=1, max_size=6)

@every
@settings(max_examples=25, deadline=None)
@given(rows=histories, seed=st.integers(0, 99))
def test_company_and_order_change_no_score(kind, rows, seed):
    m, r = make(kind), Ragged.of(rows)
    whole, order = m.score(r), np.random.default_rng(seed).permutation(len(rows))
    close(m.score(r.take(order)), whole[order])
    for i in range(len(rows)): close(m.score(r.take([i]))[0], whole[i])

@every
@settings(max_examples=25, deadline=None)
@given(rows=histories, pad=st.integers(1, 3))
def test_wider_padding_changes_no_state(kind, rows, pad):
    m = make(kind)
    r = Ragged.of([h[-4:] for h in rows if h] or [[0]])
    n = int(r.lengths.max())
    narrow, wide = (torch.as_tensor(r.last(w)) for w in (n, n + pad))
    real = narrow >= 0
    close(m(wide)[:, pad:][real], m(narrow)[real])

@every
@settings(max_examples=25, deadline=None)
@given(row=st.lists(st.integers(0, N - 1), min_size=2, max_size=8), other=st.integers(0, N - 1), at=st.integers(1, 7))
def test_the_future_changes_nothing_before_it(kind, row, other, at):
    m, at = make(kind), min(at, len(row) - 1)
    changed = row[:at] + [other] * (len(row) - at)
    a, b = (m(torch.tensor([r])) for r in (row, changed))
    close(a[:, :at], b[:, :at])

@every
def test_training_batches_do_not_leak_either(kind, world):
    "The loss of a batch is the mean over its windows, each alone"
    m, w = make(kind), Windows([world.train], 8)
    idx = np.arange(12)
    x, y = w.batch(idx)
    alone = [(m.loss(m, *w.batch(idx[i:i + 1])).item(), int((w.batch(idx[i:i + 1])[1] >= 0).sum())) for i in range(12)]
    assert m.loss(m, x, y).item() == pytest.approx(sum(l * k for l, k in alone) / sum(k for _, k in alone), rel=1e-4)

@every
def test_empty_unknown_and_nobody(kind):
    m = make(kind)
    m.prior.copy_(torch.arange(N).float())
    torch.testing.assert_close(m.score(Ragged.of([[], [3]]))[0], m.prior)
    assert m.score(Ragged.of([])).shape == (0, N)
    with pytest.raises(InputError, match=f'holds item {N}'): m.score(Ragged.of([[N]]))

# --- one interface ----------------------------------------------------------------------------------------------------

@every
def test_logits_paired_and_subsets_agree(kind):
    m, h = make(kind), torch.randn(7, 16)
    s, idx = m.logits(h), torch.tensor([5, 0, 39, 5])
    assert s.shape == (7, N) and s.is_contiguous()
    close(m.logits(h, idx), s[:, idx])
    t = torch.arange(7) * 5
    close(m.paired(h, t), s[torch.arange(7), t])

@every
def test_saved_loaded_counted(kind, tmp_path):
    m = make(kind)
    m.save(tmp_path)
    again = type(m).load(tmp_path)
    torch.testing.assert_close(again.score(Ragged.of([[1, 2]])), m.score(Ragged.of([[1, 2]])), rtol=0, atol=0)
    assert again.config == m.config and again.sizes() == m.sizes() and sum(m.sizes().values()) == sum(p.numel() for p in m.parameters())

def test_of_takes_a_table_of_ids():
    ids = SemanticIDs([f'{i:02}' for i in range(N)], CODES, K)
    for cls in (SemanticSASRec, ParallelSASRec, ARSASRec):
        m = cls.of(ids, d_model=16)
        assert type(m) is cls and m.n_items == N and m.config['codebook_size'] == K
    with pytest.raises(InputError, match='same ID'): ARSASRec([[0, 1], [0, 1]], 2)

def test_the_packaged_weights_load():
    assert SASRec.load(shop_path() / 'sasrec').n_items == 1729
    for name, own in (('codes', False), ('codes_hash', True), ('random', False)):
        m = SemanticSASRec.load(shop_path() / 'semantic_sasrec' / name)
        assert m.n_items == 1729 and m.config['hash'] is own

# --- saying codes -----------------------------------------------------------------------------------------------------

def slow_score(m, h, item):
    "By the definition, one code at a time"
    total, said = 0., torch.zeros(16)
    for l, c in enumerate(CODES[item]):
        logits = m.code_logits(h[None], m.codes[item][None])[0, l] if isinstance(m, ParallelSASRec) else m.head[l] @ m.query(h, said) + m.bias[l]
        total += logits.log_softmax(-1)[c]
        if isinstance(m, ARSASRec): said = said + m.said.weight[l * K + c]
    return total

@pytest.mark.parametrize('kind', GENERATIVE)
def test_exact_scores_by_the_definition(kind):
    m, h = make(kind), torch.randn(2, 16)
    close(m.logits(h), torch.stack([torch.stack([slow_score(m, row, i) for i in range(N)]) for row in h]))

def test_exact_scores_in_small_chunks(monkeypatch):
    "More nodes than fit in one chunk"
    codes = random_codes(3000, 2, 64, 1)
    torch.manual_seed(0)
    m, h = ARSASRec(codes, 64, d_model=8, n_heads=1).eval(), torch.randn(40, 8)
    assert 40 * 64 * max(m.trie.sizes[:-1]) > 2**20
    idx = torch.randint(3000, (40,))
    with torch.no_grad(): close(m.logits(h)[torch.arange(40), idx], m.paired(h, idx))

@pytest.mark.parametrize('kind', GENERATIVE)
def test_code_loss_is_the_mean_of_candidate_likelihoods(kind, world):
    m = make(kind)
    x, y = Windows([world.train], 8).batch(np.arange(9))
    real = y >= 0
    assert code_loss(m, x, y).item() == pytest.approx(-m.paired(m(x)[real], y[real]).mean().item() / CODES.shape[1], rel=1e-4)

def test_no_code_is_padding():
    for kind in ('codes', 'parallel', 'ar'):
        m = make(kind)
        m(torch.tensor([[int(np.flatnonzero(CODES[:, 0] == 0)[0])]])).square().sum().backward()
        assert m.code.weight.grad[0].abs().sum() > 0 and m.code.padding_idx is None

def test_a_wide_beam_is_exact(world):
    m, inputs = make('ar'), world.inputs('test').take(range(30))
    exact = m.score(inputs)
    items, logp = m.generate(inputs, n=10, width=N)
    torch.testing.assert_close(logp, exact.topk(10).values, rtol=1e-4, atol=1e-4)
    close(exact.gather(1, items), logp)
    narrow = m.generate(inputs, n=10)
    close(exact.gather(1, narrow[0].clamp(min=0))[narrow[0] >= 0], narrow[1][narrow[0] >= 0])

def test_the_beam_says_only_what_is_allowed(world):
    m, inputs = make('ar'), world.inputs('test').take(range(3))
    allowed = np.zeros((3, N), bool)
    allowed[0, 5:9], allowed[1, 7] = True, True
    items, logp = m.generate(inputs, 6, width=N, allowed=allowed)
    assert set(items[0].tolist()) == {5, 6, 7, 8, -1} and items[1].tolist() == [7] + [-1] * 5 and (items[2] == -1).all()
    assert (logp[items < 0] == -torch.inf).all() and (logp[items >= 0] > -torch.inf).all()

# --- training ---------------------------------------------------------------------------------------------------------

def bare(log): return {k: v for k, v in log.items() if k not in ('seconds', 'steps')} | dict(steps=[{k: v for k, v in r.items() if k != 'samples_per_second'} for r in log['steps']])

@every
def test_learns_and_repeats(kind, world):
    a, b = make(kind), make(kind)
    la, lb = (train_sasrec(m, world, epochs=6, lr=1e-2, batch=32) for m in (a, b))
    assert bare(la) == bare(lb)
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k
    assert la['loss'][-1] < la['loss'][0] and evaluate(a.score, world)['hit@10'] > .3
    c = make(kind)
    assert train_sasrec(c, world, epochs=6, lr=1e-2, batch=32, seed=43)['loss'] != la['loss']

@pytest.mark.parametrize('kind', ['hash', 'parallel', 'ar'])
def test_killed_and_resumed(kind, world, tmp_path):
    whole = make(kind); own = type(whole).loss
    log = train_sasrec(whole, world, epochs=4, batch=64)
    calls = []
    def dies(*a):
        calls.append(1)
        if len(calls) > 10: raise KeyboardInterrupt
        return own(*a)
    dies.__name__ = own.__name__
    with pytest.raises(KeyboardInterrupt): train_sasrec(make(kind), world, epochs=4, batch=64, checkpoint=tmp_path, loss=dies)
    again = make(kind, seed=8)
    assert bare(train_sasrec(again, world, epochs=4, batch=64, checkpoint=tmp_path)) == bare(log)
    for k, v in whole.state_dict().items(): assert torch.equal(v, again.state_dict()[k]), k

def test_the_log_of_steps(world):
    m = make('hash')
    log = train_sasrec(m, world, epochs=3, batch=64)
    steps = -(-len(Windows([world.train, world.extra], 8)) // 64) * 3
    assert [r['step'] for r in log['steps']] == list(range(1, steps + 1))
    lr = [r['lr'] for r in log['steps']]
    assert lr[-1] < 1e-6 and max(lr) == pytest.approx(2e-3, rel=.05) and all(r['grad_norm'] > 0 and r['samples_per_second'] > 0 for r in log['steps'])

def test_the_logged_norm_is_the_gradients(world):
    norms = []
    def spied(m, *a):
        l = softmax_loss(m, *a)
        norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(l, list(m.parameters()), retain_graph=True)]).norm().item())
        return l
    log = train_sasrec(make('hash'), world, epochs=1, batch=64, loss=spied)
    np.testing.assert_allclose([r['grad_norm'] for r in log['steps']], norms, rtol=1e-4)

def test_early_stopping(world, tmp_path):
    a = dict(epochs=60, lr=3e-2, batch=32, patience=2, checkpoint=tmp_path)
    m = make('hash')
    log = train_sasrec(m, world, **a)
    best = max(v['ndcg@10'] for v in log['valid'])
    assert log['best_epoch'] <= len(log['loss']) < 60
    assert [v['ndcg@10'] < best for v in log['valid'][-2:]] == [True, True] or best == log['valid'][-3]['ndcg@10']
    assert evaluate(m.score, world, 'valid')['ndcg@10'] == pytest.approx(best)
    again = make('hash')
    assert train_sasrec(again, world, **a)['loss'] == log['loss']
    for k, v in m.state_dict().items(): assert torch.equal(v, again.state_dict()[k]), k

def test_divergence_is_one_clear_error(world, tmp_path):
    with pytest.raises(InputError, match='loss became nan at step .*lower lr'): train_sasrec(make('hash'), world, lr=1e30, checkpoint=tmp_path)
    m = make('hash'); m.item.weight.data[3] = torch.nan
    with pytest.raises(InputError, match='at step 1'): train_sasrec(m, world)

def test_a_large_catalogue_needs_no_large_tensor():
    "Neither a step nor a validation holds (targets, items)"
    rng, n = np.random.default_rng(0), 300_000
    s = split(Ragged.of([rng.integers(0, n, 8).tolist() for _ in range(400)]))
    m, sizes = SASRec(n, 4, n_layers=1, n_heads=1), []
    whole = m.logits
    m.logits = lambda h, idx=None: sizes.append((m.training, whole(h, idx).shape)) or whole(h, idx)
    train_sasrec(m, s, epochs=1)
    assert {t for t, _ in sizes} == {True, False}
    assert all(shape[1] == 512 for train, shape in sizes if train) and max(shape.numel() for _, shape in sizes) <= 2**25

@pytest.mark.parametrize('kind', GENERATIVE)
def test_codes_train_on_either_loss(kind, world):
    for loss in (code_loss, softmax_loss):
        log = train_sasrec(make(kind), world, epochs=2, batch=64, loss=loss, negatives=12 if kind == 'parallel' and loss is softmax_loss else None)
        assert np.isfinite(log['loss']).all()

@every
def test_half_precision(kind, world):
    log = train_sasrec(make(kind), world, epochs=2, batch=64, dtype='bfloat16')
    assert np.isfinite(log['loss']).all() and log['loss'][-1] < log['loss'][0] + .1
