"Metrics against independent implementations; the recommenders' promises: no padding leak, resume, determinism, clear errors"
import os
from pathlib import Path
import numpy as np, pytest, torch
from semantic_ids.histories import Ragged, split
from semantic_ids.metrics import (content_knn, counts, evaluate, hide, item_knn, last_item, popularity, rank_of, ranks, summarize)
from semantic_ids.runs import InputError
from semantic_ids.sasrec import SASRec, Windows, attention_mask, batches, softmax_loss, train_sasrec
from semantic_ids.semantic_sasrec import SemanticSASRec, random_codes

DATA = Path(os.environ.get('SEMANTIC_IDS_DATA', Path(__file__).resolve().parents[2] / 'shared/data'))
N = 40

@pytest.fixture(scope='module')
def world():
    "Users walk through the items in steps of one to three, so that the next item can be learned"
    rng, rows = np.random.default_rng(0), []
    for _ in range(300):
        steps = rng.integers(1, 4, rng.integers(5, 30))
        rows.append(list(dict.fromkeys(((rng.integers(N) + steps.cumsum()) % N).tolist())))
    return split(Ragged.of(rows + [[1], [2, 3], []]))

# --- metrics ---------------------------------------------------------------------------------------------------------

def brute(scores, target, seen):
    "Rank by sorting a Python list; ties share the mean of their places"
    out = []
    for i, t in enumerate(target):
        row = [-np.inf if j in set(seen[i]) else x for j, x in enumerate(scores[i])]
        places = [p for p, j in enumerate(sorted(range(len(row)), key=lambda j: -row[j]), 1) if row[j] == row[t]]
        out.append(sum(places) / len(places))
    return np.array(out)

@pytest.mark.parametrize('ties', [False, True])
def test_ranks_and_figures_against_brute_force(ties):
    from sklearn.metrics import ndcg_score
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (60, 25)).astype(float) if ties else rng.normal(size=(60, 25))
    target = rng.integers(0, 25, 60)
    seen = [[j for j in rng.choice(25, rng.integers(0, 8), replace=False).tolist() if j != t] for t in target]
    got = rank_of(scores, target, Ragged.of(seen))
    np.testing.assert_allclose(got, brute(scores, target, seen))
    row = summarize(got)
    for k in (1, 5, 10): assert row[f'hit@{k}'] == pytest.approx(np.mean([r <= k for r in got]))
    assert row['mrr'] == pytest.approx(np.mean([1 / r for r in got])) and row['users'] == 60
    if not ties:
        masked = np.where([[j in s for j in range(25)] for s in seen], -1e9, scores)
        for k in (5, 10): assert row[f'ndcg@{k}'] == pytest.approx(ndcg_score(np.eye(25)[target], masked, k=k))

def test_constant_scores_know_nothing():
    assert rank_of(np.zeros((3, 9)), [0, 4, 8]).tolist() == [5, 5, 5]

def test_rank_leaves_the_scores_alone():
    s = torch.zeros(1, 3)
    rank_of(s, [0], Ragged.of([[1]]))
    assert s.tolist() == [[0, 0, 0]]

def test_integer_and_half_scores():
    assert rank_of(np.array([[3, 1, 2]]), [2], Ragged.of([[0]])).tolist() == [1]
    assert rank_of(torch.tensor([[3., 1., 2.]], dtype=torch.bfloat16), [2]).tolist() == [2]

def test_bad_metrics_input():
    with pytest.raises(InputError, match='NaN'): rank_of(np.array([[1., np.nan]]), [0])
    with pytest.raises(InputError, match='no user'): summarize([])

def test_evaluate_says_its_protocol_and_uses_the_right_target(world):
    right = lambda inputs, users: np.eye(N)[world.test[np.searchsorted(world.users, users)]]
    row = evaluate(right, world, batch=37)
    assert row['hit@1'] == 1 and row['protocol'] == 'loo' and row['seen_excluded'] is True and row['users'] == len(world)
    assert evaluate(right, world, 'valid')['hit@1'] < .2
    assert evaluate(right, world, users=50)['users'] == 50

def test_chunks_change_nothing(world):
    f = item_knn(world, N)
    np.testing.assert_array_equal(ranks(f, world, batch=1000), ranks(f, world, batch=7))
    np.testing.assert_array_equal(ranks(f, world)[[3, 5, 8]], ranks(f, world, users=[3, 5, 8]))

def test_sampled_negatives_flatter(world):
    f = popularity(world, N)
    few, many = (evaluate(f, world, negatives=k) for k in (12, 25))
    assert evaluate(f, world)['hit@10'] < many['hit@10'] < few['hit@10']
    assert few['protocol'] == 'sampled12'

def test_baselines_against_loops(world):
    pop, trans = np.zeros(N), np.zeros((N, N))
    for h in [*world.train, *world.extra]:
        for a in h: pop[a] += 1
        for a, b in zip(h, h[1:]): trans[a, b] += 1
    np.testing.assert_allclose(counts(world, N), pop)
    inputs, users = world.inputs('test').take([0, 1, 2]), world.users[:3]
    np.testing.assert_allclose(popularity(world, N)(inputs, users), np.stack([pop] * 3))
    got = last_item(world, N)(inputs, users)
    np.testing.assert_allclose(got, [trans[h[-1]] + pop / (pop.max() + 1) for h in inputs], rtol=1e-5)
    bought = np.stack([np.isin(np.arange(N), h) for h in [*world.train, *world.extra]]).astype(float)
    cos = bought.T @ bought / np.sqrt(np.outer(bought.sum(0), bought.sum(0)))
    np.fill_diagonal(cos, 0)
    np.testing.assert_allclose(item_knn(world, N)(inputs, users), [cos[h].sum(0) for h in inputs], rtol=1e-4, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.testing.assert_allclose(content_knn(x, 2)(inputs, users), [x[h[-2:]].sum(0) @ x.T for h in inputs], rtol=1e-4, atol=1e-4)

def test_baselines_take_an_empty_history(world):
    empty, x = Ragged.of([[]]), np.eye(N, dtype=np.float32)
    for f in (popularity(world, N), last_item(world, N), item_knn(world, N), content_knn(x)):
        assert np.isfinite(np.asarray(f(empty, np.array([0])))).all()

# --- the model --------------------------------------------------------------------------------------------------------

def models():
    torch.manual_seed(0)
    codes = random_codes(N, 2, 8, 0)
    return [SASRec(N, 16, max_len=8), SemanticSASRec(codes, 8, d_model=16, max_len=8), SemanticSASRec(codes, 8, hash=True, hidden=0, d_model=16, max_len=8)]

@pytest.mark.parametrize('i', range(3))
def test_padding_and_order_change_nothing(i, world):
    m, inputs = models()[i], world.inputs('test').take(range(40))
    whole = m.score(inputs)
    alone = torch.cat([m.score(inputs.take([j])) for j in range(40)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    back = np.arange(40)[::-1]
    torch.testing.assert_close(m.score(inputs.take(back)), whole[back.copy()], rtol=1e-4, atol=1e-5)

def test_later_purchases_and_padding_are_invisible():
    m = models()[0].eval()
    a, b = torch.tensor([[-1, -1, 3, 4, 5]]), torch.tensor([[-1, -1, 3, 4, 9]])
    torch.testing.assert_close(m(a)[:, :4], m(b)[:, :4])
    mask = attention_mask(a)[0]
    assert not mask[2:, :2].any() and mask.any(1).all() and mask[4, 2:].all()

def test_only_the_last_items_count():
    m = models()[0]
    long = list(range(20))
    torch.testing.assert_close(m.score(Ragged.of([long])), m.score(Ragged.of([long[-8:]])))

def test_empty_history_and_unknown_items(world):
    m = models()[0]
    m.prior.copy_(torch.as_tensor(counts(world, N)))
    assert m.score(Ragged.of([[], [1, 2]]))[0].argmax() == counts(world, N).argmax()
    assert m.score(Ragged.of([[]])).shape == (1, N) and m.score(Ragged.of([])).shape == (0, N)
    for bad in (N, -1):
        with pytest.raises(InputError, match=f'holds item {bad}'): m.score(Ragged.of([[0, bad]]))

def test_semantic_vectors_follow_from_codes():
    _, m, h = models()
    assert h.config['hash'] and not m.config['hash']
    extra = lambda m: m.prefix.weight[m.prefixes[3]].sum(0)
    torch.testing.assert_close(h.vectors()[3], h.code.weight[h.codes[3]].sum(0) + extra(h))
    flat = m.joint.weight[m.codes[3]].sum(0)
    torch.testing.assert_close(m.vectors()[3], m.code.weight[m.codes[3]].sum(0) + extra(m) + m.widen(torch.nn.functional.gelu(flat)))
    torch.testing.assert_close(m.vectors(torch.tensor([[3, 1]]))[0], m.vectors()[[3, 1]])
    with pytest.raises(InputError, match='codes run from'): SemanticSASRec([[0, 8]], 8)
    with pytest.raises(InputError, match='multiple'): SASRec(N, 15)

def test_prefixes_are_shared_ones_only():
    from semantic_ids.semantic_sasrec import shared_prefixes
    codes = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 3, 0], [0, 2, 2, 0], [4, 4, 4, 0]])
    at = shared_prefixes(codes)
    assert at[:, 0].tolist() == [1, 1, 1, 0, 0] and at[:, 1].tolist() == [2, 2, 0, 0, 0]
    assert shared_prefixes(codes, 1).max() == 0 and shared_prefixes(codes[:, :2]).shape == (5, 0)

def test_scores_are_cosines_over_a_temperature():
    m = SASRec(N, 16, max_len=8, temperature=.1)
    s = m.score(Ragged.of([[1, 2], [3]]))
    assert s.abs().max() <= 10 + 1e-4
    m.item.weight.data[5].mul_(7)
    torch.testing.assert_close(m.score(Ragged.of([[1, 2], [3]])), s)

def test_weights_of_before_the_temperature_load_as_they_were(tmp_path):
    from semantic_ids.runs import read_json, write_json
    m = SASRec(N, 16, max_len=8, temperature=None)
    m.save(tmp_path)
    config = read_json(tmp_path / 'config.json'); del config['temperature']; write_json(tmp_path / 'config.json', config)
    torch.testing.assert_close(SASRec.load(tmp_path).score(Ragged.of([[1, 2]])), m.score(Ragged.of([[1, 2]])), rtol=0, atol=0)

def test_parameters_are_counted():
    for m in models(): assert sum(m.sizes().values()) == sum(p.numel() for p in m.parameters())
    a, b, c = (m.sizes() for m in models())
    assert a['other'] == b['other'] == c['other'] and c['embedding'] == b['embedding'] - 24 * 32 - 32 * 16 + N * 16

def test_random_codes_are_unique_and_repeat():
    c = random_codes(500, 2, 10, 3)
    assert len(np.unique(c, axis=0)) == 500 and c[:, :2].max() == 9
    np.testing.assert_array_equal(c, random_codes(500, 2, 10, 3))
    assert (c != random_codes(500, 2, 10, 4)).any()

def test_save_and_load(tmp_path):
    for i, m in enumerate(models()):
        m.save(tmp_path / str(i))
        again = type(m).load(tmp_path / str(i))
        torch.testing.assert_close(again.score(Ragged.of([[1, 2]])), m.score(Ragged.of([[1, 2]])), rtol=0, atol=0)
    with pytest.raises(InputError, match='no such file'): SASRec.load(tmp_path / 'nowhere')

# --- training ---------------------------------------------------------------------------------------------------------

def test_every_purchase_is_a_target_once(world):
    w = Windows([world.train, world.extra], 4)
    got = []
    for i in batches(w, 16, torch.Generator().manual_seed(0)):
        x, y = w.batch(i)
        assert ((x >= 0) == (y >= 0)).all() and (x[:, -1] >= 0).all()
        got += list(zip(x[x >= 0].tolist(), y[y >= 0].tolist()))
    want = [(a, b) for h in [*world.train, *world.extra] for a, b in zip(h.tolist(), h[1:].tolist())]
    assert sorted(got) == sorted(want)

def test_sampled_softmax_with_all_items_is_near_the_full_one(world):
    m = SASRec(N, 16, max_len=8, temperature=None).eval()
    x, y = Windows([world.train], 8).batch(np.arange(64))
    torch.manual_seed(0)
    sampled = np.mean([softmax_loss(m, x, y, negatives=N - 1).item() for _ in range(20)])
    assert sampled == pytest.approx(softmax_loss(m, x, y).item(), abs=.1)

def small(cls=SASRec):
    torch.manual_seed(3)
    return SASRec(N, 16, max_len=8) if cls is SASRec else SemanticSASRec(random_codes(N, 2, 8, 0), 8, hash=True, d_model=16, max_len=8)

@pytest.mark.parametrize('cls', [SASRec, SemanticSASRec])
def test_training_learns_and_repeats(cls, world):
    a, b = small(cls), small(cls)
    la, lb = (train_sasrec(m, world, epochs=10, lr=1e-2, batch=32) for m in (a, b))
    assert la['loss'] == lb['loss'] and la['valid'] == lb['valid']
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k
    assert la['loss'][-1] < la['loss'][0]
    assert evaluate(a.score, world)['hit@10'] > 1.3 * evaluate(popularity(world, N), world)['hit@10']
    assert la['best_epoch'] == max(la['valid'], key=lambda v: v['ndcg@10'])['epoch']

def test_training_leaves_the_global_seed_alone(world):
    torch.manual_seed(0); want = torch.rand(3)
    torch.manual_seed(0); train_sasrec(_fixed(), world, epochs=1)
    assert torch.equal(torch.rand(3), want)

def _fixed():
    with torch.random.fork_rng(): return small()

def test_resume_gives_the_same_curve(world, tmp_path):
    whole = small(); log = train_sasrec(whole, world, epochs=5, batch=64)
    calls = []
    def softmax_loss_that_dies(*a):
        calls.append(1)
        if len(calls) > 12: raise KeyboardInterrupt
        return softmax_loss(*a)
    softmax_loss_that_dies.__name__ = 'softmax_loss'
    with pytest.raises(KeyboardInterrupt): train_sasrec(small(), world, epochs=5, batch=64, checkpoint=tmp_path, loss=softmax_loss_that_dies)
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.safetensors']
    seen = []
    def counted(*a):
        seen.append(1)
        return softmax_loss(*a)
    counted.__name__ = 'softmax_loss'
    again = small(); torch.manual_seed(99)
    log2 = train_sasrec(again, world, epochs=5, batch=64, checkpoint=tmp_path, loss=counted)
    assert log2['loss'] == log['loss'] and log2['valid'] == log['valid'] and log2['best_epoch'] == log['best_epoch']
    assert 0 < len(seen) < 5 * -(-len(Windows([world.train, world.extra], 8)) // 64)
    for k, v in whole.state_dict().items(): assert torch.equal(v, again.state_dict()[k]), k

def test_a_checkpoint_of_other_settings_is_not_used(world, tmp_path):
    train_sasrec(small(), world, epochs=2, checkpoint=tmp_path)
    other = train_sasrec(small(), world, epochs=2, lr=1e-3, checkpoint=tmp_path)
    assert other['loss'] == train_sasrec(small(), world, epochs=2, lr=1e-3)['loss']

def test_nothing_to_learn_is_an_error():
    with pytest.raises(InputError, match='nothing to learn'): train_sasrec(small(), split(Ragged.of([[1, 2, 3], [4, 5, 6]])))

def test_tiny_catalogues_train():
    s = split(Ragged.of([[0, 1, 2, 3]] * 3))
    assert len(train_sasrec(SASRec(4, 8), s, epochs=10)['loss']) == 10

def test_real_histories():
    if not (DATA / 'video_games').exists(): pytest.skip(f'no real data at {DATA}')
    import polars as pl
    rows = pl.read_parquet(DATA / 'video_games/sequences.parquet')['item_ids'][:3000].to_list()
    names, flat = np.unique(np.concatenate(rows), return_inverse=True)
    s = split(Ragged(flat.astype(np.int64), np.cumsum([0] + [len(r) for r in rows])))
    base = {k: evaluate(f(s, len(names)), s)['hit@10'] for k, f in dict(popularity=popularity, last=last_item, knn=item_knn).items()}
    assert base['popularity'] < base['last'] and base['popularity'] < base['knn'] < .3
    assert s.train.lengths.min() >= 3 and len(s) == 3000
