"Metrics against torchmetrics and brute force; what must not change a rank; intervals; slices; errors a user may meet"
from dataclasses import replace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from semantic_ids import metrics as M, slices as S
from semantic_ids.catalogue import load
from semantic_ids.histories import Ragged, encode, split, times
from semantic_ids.runs import InputError, results

fast = settings(deadline=None, max_examples=60)
N = 30

@pytest.fixture(scope='module')
def world():
    "Users who walk through the items in small steps"
    rng, rows = np.random.default_rng(0), []
    for _ in range(200):
        rows.append(list(dict.fromkeys(((rng.integers(N) + rng.integers(1, 4, rng.integers(4, 15)).cumsum()) % N).tolist())))
    return Ragged.of([r for r in rows if len(r) > 3] + [[1], [2, 3], []])

@pytest.fixture(scope='module')
def loo(world): return split(world)

@pytest.fixture(scope='module')
def shop(): return load('shop').top(100)

@st.composite
def scored(draw, levels=6):
    "Scores with many ties, a target and some bought items for each row"
    u, n = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    s = draw(arrays(np.float32, (u, n), elements=st.integers(0, levels).map(float)))
    t = draw(arrays(np.int64, u, elements=st.integers(0, n - 1)))
    seen = [draw(st.lists(st.integers(0, n - 1).filter(lambda j, t=x: j != t), max_size=2 * n)) for x in t] # Items may repeat
    return s, t, Ragged.of(seen)


# an independent implementation

@pytest.mark.parametrize('k', [1, 5, 10])
def test_torchmetrics_agrees(k):
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_precision, retrieval_reciprocal_rank
    rng = np.random.default_rng(k)
    scores, target = rng.normal(size=(80, 40)).astype(np.float32), rng.integers(0, 40, 80)
    seen = Ragged.of([[j for j in rng.choice(40, 6, replace=False) if j != t] for t in target])
    r = M.rank_of(scores, target, seen)
    row, want = M.summarize(r, ks=(k, 10)) | M.places(r, ks=(k,)), torch.eye(40, dtype=torch.bool)[target]
    hidden = M.hide(torch.tensor(scores), seen).exp()                                     # torchmetrics takes scores above zero only
    peer = lambda f, **kw: np.mean([float(f(p, w, **kw)) for p, w in zip(hidden, want)])
    assert row[f'hit@{k}'] == pytest.approx(peer(retrieval_hit_rate, top_k=k))
    assert row[f'precision@{k}'] == pytest.approx(peer(retrieval_precision, top_k=k))
    assert row['mrr'] == pytest.approx(peer(retrieval_reciprocal_rank))
    if k > 1: assert row[f'ndcg@{k}'] == pytest.approx(peer(retrieval_normalized_dcg, top_k=k))

def test_torchmetrics_agrees_on_a_recommender(loo):
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG
    g = np.random.default_rng(0).normal(size=(len(loo), N)).astype(np.float32) * 1e-6
    base = M.item_knn(loo, N)
    f = lambda inputs, users: base(inputs, users) + g[np.searchsorted(loo.users, users)]   # No ties: torchmetrics orders them as they come
    s = M.hide(torch.tensor(f(loo.inputs(), loo.users)).double(), loo.inputs()).exp()
    args = s.flatten(), torch.eye(N, dtype=torch.bool)[loo.test].flatten(), torch.arange(len(loo)).repeat_interleave(N)
    row = M.evaluate(f, loo, batch=17)
    for key, peer in {'hit@10': RetrievalHitRate(top_k=10), 'ndcg@10': RetrievalNormalizedDCG(top_k=10), 'mrr': RetrievalMRR()}.items():
        assert row[key] == pytest.approx(float(peer(args[0], args[1], indexes=args[2])), abs=1e-6)


# what a rank is

@fast
@given(scored())
def test_a_rank_is_the_mean_place_over_all_orders_of_ties(data):
    s, t, seen = data
    for i, r in enumerate(M.rank_of(s, t, seen)):
        row = np.where(np.isin(np.arange(s.shape[1]), seen[i]), -np.inf, s[i])
        best, worst = 1 + (row > row[t[i]]).sum(), (row >= row[t[i]]).sum()
        assert r == (best + worst) / 2 and 1 <= r <= s.shape[1]

@fast
@given(scored(), st.randoms())
def test_the_order_of_items_and_users_does_not_matter(data, random):
    s, t, seen = data
    p, q = np.array(random.sample(range(s.shape[1]), s.shape[1])), np.array(random.sample(range(len(s)), len(s)))
    back = np.argsort(p)
    moved = Ragged(back[seen.values], seen.offsets)
    np.testing.assert_array_equal(M.rank_of(s[:, p], back[t], moved), M.rank_of(s, t, seen))
    np.testing.assert_array_equal(M.rank_of(s[q], t[q], seen.take(q)), M.rank_of(s, t, seen)[q])

@fast
@given(scored())
def test_only_the_order_of_scores_matters(data):
    s, t, seen = data
    for f in (lambda x: 3 * x + 7, lambda x: np.exp(x), lambda x: x.astype(np.int64), lambda x: x.astype(np.float64), lambda x: torch.tensor(x).bfloat16()):
        np.testing.assert_array_equal(M.rank_of(f(s), t, seen), M.rank_of(s, t, seen))

def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    s, t = rng.integers(0, 50, (40, 700_000)).astype(np.float32), rng.integers(0, 700_000, 40)   # A block is one row
    seen = Ragged.of([rng.integers(0, 700_000, i % 5) for i in range(40)])
    got = M.rank_of(s, t, seen)
    for i in (0, 17, 39): assert got[i] == M.rank_of(s[i:i + 1], t[i:i + 1], seen.take([i]))[0]

@fast
@given(st.integers(1, 300), st.booleans())
def test_chunks_change_nothing(batch, ties):
    r = Ragged.of([np.random.default_rng(i).permutation(N)[:4 + i % 6] for i in range(90)])
    s = split(r)
    w = np.random.default_rng(1).integers(0, 5, (N, N)).astype(np.float32) if ties else np.random.default_rng(1).normal(size=(N, N)).astype(np.float32)
    f = lambda inputs, users: w[inputs.last(1)[:, 0]]
    np.testing.assert_array_equal(M.ranks(f, s, batch=batch), M.ranks(f, s))
    if not ties: np.testing.assert_array_equal(M.top_items(f, s, batch=batch), M.top_items(f, s))

def test_infinities_are_scores():
    inf = np.inf
    assert M.rank_of(np.array([[inf, -inf, 0.]]), [0]).tolist() == [1]
    assert M.rank_of(np.array([[inf, -inf, 0.]]), [1], Ragged.of([[2]])).tolist() == [2.5]
    with pytest.raises(InputError, match='NaN'): M.rank_of(np.array([[inf, -inf, np.nan]]), [0])

def test_large_integers_keep_their_order(): assert M.rank_of(np.array([[2**40, 2**40 + 1]]), [0]).tolist() == [2]

def test_a_tensor_or_a_view_is_not_changed():
    c = torch.arange(5.)
    M.rank_of(c.expand(3, -1), torch.tensor([1, 2, 3], dtype=torch.int32), Ragged.of([[4], [], [4, 4]]))
    assert c.tolist() == [0, 1, 2, 3, 4]

def test_no_rows(): assert M.rank_of(np.zeros((0, 4)), np.zeros(0, int)).shape == (0,)

def test_ranks_come_in_the_order_asked_for(loo):
    f = M.item_knn(loo, N)
    every = M.ranks(f, loo)
    for users in ([8, 3, 5], np.arange(len(loo)) % 3 == 1): np.testing.assert_array_equal(M.ranks(f, loo, users=users), every[users])
    np.testing.assert_array_equal(M.top_items(f, loo, users=[8, 3]), M.top_items(f, loo)[[8, 3]])


# lists

@fast
@given(scored(), st.integers(1, 12))
def test_lists_and_ranks_agree(data, k):
    s, t, seen = data
    s = s + np.linspace(0, .5, s.shape[1], dtype=np.float32)                                      # No ties
    cut = split(Ragged.of([[*h, 0, x] if len(h) else [0, 0, x] for h, x in zip(map(list, seen), t)]))
    f = lambda inputs, users: s[users]
    lists, r = M.top_items(f, cut, n=k), M.ranks(f, cut)
    for i in range(len(s)):
        bought, got = set(cut.inputs()[i].tolist()), lists[i][lists[i] >= 0].tolist()
        assert not bought & set(got) and len(got) == min(k, s.shape[1] - len(bought)) == len(set(got))
        if t[i] not in bought: assert (t[i] in got) == (r[i] <= k) and (r[i] > k or got[int(r[i]) - 1] == t[i])

def test_coverage_and_bias_by_hand():
    lists = np.array([[0, 1], [0, -1]])
    assert S.coverage(lists, 4) == .5
    got = S.popularity_bias(lists, [1, 2], [6, 2, 1, 0])
    assert got == dict(recommended=pytest.approx(14 / 3), bought=1.5, ratio=pytest.approx(28 / 9))
    with pytest.raises(InputError, match='no popularity'): S.popularity_bias(lists, [3], [6, 2, 1, 0])
    with pytest.raises(InputError, match='no list'): S.popularity_bias(np.full((2, 2), -1), [1], [6, 2, 1, 0])


# protocols

def test_sampled_by_brute_force(world):
    "With all other items of the pool as negatives, the sample is the pool"
    s = split(world, 'new_users', .3)
    pool = np.unique(np.concatenate([s.inputs().values, s.test]))
    w = np.random.default_rng(0).normal(size=(N, N))
    f = lambda inputs, users: w[inputs.last(1)[:, 0]]
    got = M.sampled1000(f, s, negatives=len(pool) - 1)
    for i, (h, t) in enumerate(zip(s.inputs(), s.test)): assert got[i] == 1 + (w[h[-1]][pool] > w[h[-1]][t]).sum()   # Bought items stay in
    few = M.sampled1000(f, s, negatives=5)
    assert (few <= got).all() and few.max() <= 6 and np.array_equal(few, M.sampled1000(f, s, negatives=5)) and not np.array_equal(few, M.sampled1000(f, s, negatives=5, seed=1))

def test_sampled_reads_the_newest_purchases(world):
    s = split(world, 'new_users', .3)
    def f(inputs, users):
        assert inputs.lengths.max() <= 3 and all(a[-1] == s.inputs()[np.searchsorted(s.users, u)][-1] for a, u in zip(inputs, users))
        return np.zeros((len(inputs), N))
    assert (M.sampled1000(f, s, negatives=9, last=3) == 5.5).all()

def test_sampled_errors(world, loo):
    f = M.popularity(loo, N)
    with pytest.raises(InputError, match="wanted 'new_users'"): M.sampled1000(f, loo)
    with pytest.raises(InputError, match='wanted fewer'): M.sampled1000(f, split(world, 'new_users', .3))

def test_results_of_the_original_protocol():
    rows = {r['model']: r for r in results('original_protocol')['rows']}
    for m in ('popularity', 'last_item', 'item_knn', 'sasrec'): assert rows[m]['protocol'] == 'sampled1000' and rows[m]['hit@10'] > 2 * rows[m]['full hit@10']
    assert rows['sasrec']['hit@10'] >= .33 and rows['sasrec']['ndcg@10'] >= .20 and rows['sasrec']['mrr'] >= .17
    assert max(r['hit@10'] for m, r in rows.items() if m.startswith('semantic')) >= rows['sasrec']['hit@10']

def test_popularity_on_the_original_sequences(data_folder):
    "The stored row, made again; .151 and .037 are the figures of an independent count with other held-out users"
    r = encode(load(data_folder / 'video_games_2023'))
    items, values = np.unique(r.values, return_inverse=True)
    s, stored = split(Ragged(values, r.offsets), 'new_users'), next(x for x in results('original_protocol')['rows'] if x['model'] == 'popularity')
    f = M.popularity(s, len(items))
    sampled, full = M.summarize(M.sampled1000(f, s))['hit@10'], M.evaluate(f, s)['hit@10']
    assert sampled == pytest.approx(stored['hit@10'], abs=.003) and full == pytest.approx(stored['full hit@10'], abs=1e-6)
    assert abs(sampled - .151) < .01 and abs(full - .037) < .005

def test_oracle_answers_for_the_last_purchase_only(shop):
    r, f = encode(shop), M.oracle(shop)
    assert M.evaluate(f, split(r))['hit@10'] > .3 and M.evaluate(f, split(r, 'new_users'))['hit@10'] > .3
    for s, which in ((split(r, 'time', timestamps=times(shop)), 'test'), (split(r), 'valid'), (split(r, 'new_users'), 'valid')):
        with pytest.raises(InputError, match='last purchase'): M.evaluate(f, s, which)

def test_half_the_catalogue_scored_is_said(loo):
    f = M.item_knn(loo, N)
    with pytest.raises(InputError, match=f'only items 0 to {N - 11} have scores'): M.ranks(lambda i, u: f(i, u)[:, :-10], loo)
    with pytest.raises(InputError, match='targets; wanted one row for each'): M.ranks(lambda i, u: f(i, u)[:-1], loo)
    with pytest.raises(InputError, match='wanted one row of scores'): M.rank_of([1., 2.], [0])
    with pytest.raises(InputError, match='item -1'): M.rank_of(np.eye(3), [0, -1, 1])
    with pytest.raises(InputError, match='NaN'): M.top_items(lambda i, u: f(i, u) * np.nan, loo)

def test_a_split_without_users(loo):
    none = replace(loo, train=loo.train.take([]), valid=loo.valid[:0], test=loo.test[:0], users=loo.users[:0])
    f = lambda i, u: np.zeros((len(i), N))
    for call in (lambda: M.evaluate(f, none), lambda: M.places([]), lambda: S.bootstrap([]), lambda: S.unknown(none, N)):
        with pytest.raises(InputError, match='no user|no ranks'): call()
    assert M.top_items(f, none).shape == (0, 10)


# intervals

def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, truth, held = np.random.default_rng(0), .3, 0
    for i in range(200):
        low, high = S.bootstrap(np.where(rng.random(150) < truth, 1, 99), n=300, seed=i)
        held += low <= truth <= high
    assert .89 <= held / 200 <= .99

@pytest.mark.parametrize('stat', ['hit@10', 'ndcg@10', 'mrr', 'mean_rank', 'median_rank', 'precision@5'])
def test_intervals_are_around_the_figure(stat):
    r = np.random.default_rng(0).geometric(.05, 400)
    low, high = S.bootstrap(r, stat)
    value = (M.summarize(r, ks=(5, 10)) | M.places(r, ks=(5,)))[stat]
    assert low <= value <= high and low < high and S.bootstrap(r, stat) == (low, high) != S.bootstrap(r, stat, seed=1)
    if stat != 'median_rank': assert (high - low) / 2 == pytest.approx(1.96 * S.gain(r, stat).std() / 20, rel=.15)

def test_a_difference_is_paired():
    r = np.random.default_rng(0).geometric(.05, 300).astype(float)
    assert S.bootstrap(r, against=r) == (0, 0)
    low, high = S.bootstrap(np.maximum(r - 1, 1), 'mrr', against=r)
    assert 0 < low < high < np.ptp(S.bootstrap(r, 'mrr')) * 2
    with pytest.raises(InputError, match='same users'): S.bootstrap(r, against=r[1:])
    for bad in ('recall@10', 'hit', 'hit@', 'hit@x', 'hit@0', ''):
        with pytest.raises(InputError, match='unknown'): S.bootstrap(r, bad)


# slices

@pytest.mark.parametrize('protocol', ['loo', 'new_users', 'time'])
@pytest.mark.parametrize('which', ['test', 'valid'])
def test_groups_hold_each_user_once(shop, protocol, which):
    s = split(encode(shop), protocol, timestamps=times(shop))
    r = M.ranks(M.popularity(s, 100), s, which)
    for groups in (S.history_length(s, which), S.popularity_band(s, 100, which), S.cold(s, 100, which)):
        assert (np.sum(list(groups.values()), 0) == 1).all()
        rows = S.by_group(r, groups).rows.values()
        assert sum(x['users'] for x in rows) == len(s)
        assert sum(x['users'] * x['hit@10'] for x in rows if x['users']) == pytest.approx(len(s) * M.summarize(r)['hit@10'])

@fast
@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 20)).filter(lambda c: c.sum() > 0))
def test_bands(c):
    b = S.bands(c)
    assert ((b == 3) == (c == 0)).all()
    order = np.argsort(-c, kind='stable')
    assert (np.diff(b[order]) >= 0).all()
    for i in (0, 1): assert c[b <= i].sum() * 3 >= (i + 1) * c.sum()   # The item that crosses a third belongs to the band it began in

def test_lengths_by_hand(loo):
    n = loo.inputs().lengths
    g = S.history_length(loo, edges=(5, 4))
    assert list(g) == ['under 4', '4', '5 or more'] and g['4'].tolist() == (n == 4).tolist()

def test_group_errors():
    assert S.by_group([1., 2.], dict(none=[False, False]))['none'] == dict(users=0)
    assert S.by_group([1., 3.], dict(all=[True, True]), 'hit@2')['all']['hit@2'] == .5
    for mask in ([True], [1, 0], [[True, False]]):
        with pytest.raises(InputError, match='booleans'): S.by_group([1., 2.], dict(bad=mask))
    with pytest.raises(InputError, match='no purchase'): S.bands([0, 0])
    with pytest.raises(InputError, match="'valid' or 'test'"): S.cold(split(Ragged.of([[0, 1, 2]])), 3, 'train')

def test_unknown_by_hand():
    r = Ragged.of([[0, 1, 2], [0, 1, 5], [0, 4, 2], [3]])
    s = split(r)                                                                     # Training holds 0, 0, 0 and 3
    got = S.unknown(s, 6)
    assert got == dict(items=4 / 6, targets=1., history=.5, users_without_known=0., users=3)
    t = replace(s, train=Ragged.of([[0], [], [5]]), past=Ragged.of([[], [1], [5]]), valid=np.array([1, 1, 0]))
    assert S.unknown(t, 6)['users_without_known'] == pytest.approx(2 / 3)

def test_histogram_counts_everyone():
    for n in (1, 2, 7, 8, 9, 1729):
        edges, share = S.rank_histogram(np.arange(1, n + 1), n)
        assert share.sum() == pytest.approx(1) and edges[0] == 1 and edges[-1] > n

def test_plots_close_and_draw(loo):
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    r = dict(popularity=M.ranks(M.popularity(loo, N), loo))
    a, b = S.plot_ranks(r, N), S.plot_groups(r, S.history_length(loo), 'ndcg@10', 'length')
    assert len(a.axes) == 2 and b.axes[0].get_ylabel() == 'ndcg@10'
    plt.close('all')
