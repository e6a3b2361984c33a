"Histories: Ragged against plain lists, histories by rule, three protocols, every leak caught, real counts"
from collections import Counter
from dataclasses import replace
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings, strategies as st
from semantic_ids.catalogue import from_frames, load
from semantic_ids.histories import ORIGINAL, Ragged, check_no_leak, cut, encode, gini, in_order, length_table, split, times
from semantic_ids.runs import InputError

IDS = list('abcdef')
ITEMS = pl.DataFrame(dict(item_id=IDS, title=[x*3 for x in IDS]))
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=8)
fast = settings(max_examples=60, deadline=None)
lists = lambda r: [x.tolist() for x in r]

def one_line(f, *wanted):
    "The call fails with an InputError of one line that contains what is wanted"
    with pytest.raises(InputError) as e: f()
    for w in wanted: assert w in str(e.value), f'{w!r} not in {str(e.value)!r}'
    assert '\n' not in str(e.value)


# Ragged

@fast
@given(ROWS, st.integers(0, 9), st.integers(0, 8))
def test_ragged_against_lists(rows, limit, drop):
    r = Ragged.of(rows)
    assert lists(r.keep(r.values > limit)) == [[x for x in h if x > limit] for h in rows]
    assert lists(r.head(drop)) == [h[:max(len(h) - drop, 0)] for h in rows]
    assert list(zip(*map(list, r.pairs()))) == [p for h in rows for p in zip(h, h[1:])]
    for x in (r, r.head(drop), r.keep(r.values > limit), r.append(np.zeros(len(rows), int))): assert x.values.dtype == x.offsets.dtype == np.int64


# ids

def test_encode_names_what_is_missing():
    cat = from_frames(ITEMS, pl.DataFrame(dict(user_id=[1], item_ids=[['a', 'b', 'c']])), name='toy')
    assert lists(encode(cat, [['f', 'a'], [], ['b']])) == [[5, 0], [], [1]]
    one_line(lambda: encode(cat, [['v', 'a', 'w'], ['x', 'y', 'v']]), '5 purchases are of 4 items', 'toy', "'v', 'w', 'x', ...")
    broken = replace(cat, items=cat.items[:2])
    one_line(lambda: encode(broken), '1 purchases', "'c'")


# histories by rule

REVIEWS = st.lists(st.tuples(st.sampled_from('uvw'), st.sampled_from(IDS + ['z']), st.integers(0, 4), st.sampled_from([1., 3., 5., None])), min_size=1, max_size=40)

def frame(rows): return pl.DataFrame(rows, schema=dict(user_id=pl.String, item_id=pl.String, timestamp=pl.Int64, rating=pl.Float64), orient='row')

def by_hand(rows, least, last, repeats, stars):
    "`cut` in plain loops"
    out = {}
    for u, i, t, s in in_order(frame(rows)).rows():
        h = out.setdefault(u, [])
        if stars is not None and (s is None or s < stars) or i == 'z': continue
        if repeats == 'first' and i in h or repeats == 'merge' and h[-1:] == [i]: continue
        h.append(i)
    return {u: h if last is None else h[-last:] for u, h in out.items() if len(h) >= least}

@settings(max_examples=150, deadline=None)
@given(REVIEWS, st.integers(1, 4), st.none() | st.integers(4, 6), st.sampled_from(['keep', 'merge', 'first']), st.sampled_from([None, 3]))
def test_cut_against_loops(rows, least, last, repeats, stars):
    want = by_hand(rows, least, last, repeats, stars)
    try: cat = cut(frame(rows), ITEMS, least, last, repeats, stars)
    except InputError: return assert_hopeless(want)
    assert dict(cat.histories.select('user_id', 'item_ids').iter_rows()) == want
    gone = sum(n for why, n in cat.dropped.items() if 'purchases' in why)
    assert cat.purchases + gone == len(rows)
    assert cat.dropped.get('users left out', 0) + len(want) == len({r[0] for r in rows})

def assert_hopeless(want): assert all(len(h) < 3 for h in want.values())

@fast
@given(REVIEWS, st.randoms())
def test_order_of_rows_does_not_matter(rows, rng):
    mixed = rows[:]
    rng.shuffle(mixed)
    key = ['user_id', 'timestamp', 'item_id']
    a, b = in_order(frame(rows)).select(key), in_order(frame(mixed)).select(key)
    assert a.equals(b)
    assert a['user_id'].is_sorted() and all(x['timestamp'].is_sorted() for x in a.partition_by('user_id'))

def test_order_without_times_is_that_of_the_file():
    assert cut(frame([('u', x, 0, 1.) for x in 'cab']).drop('timestamp'), ITEMS).histories['item_ids'][0].to_list() == ['c', 'a', 'b']

def test_ties_are_broken_without_a_pattern():
    rows = frame([(f'u{u:04}', f'i{i:02}', 0, 1.) for u in range(600) for i in range(10)])
    place = in_order(rows).with_columns(place=pl.int_range(pl.len()).over('user_id'))
    mean = place.group_by('item_id').agg(pl.col('place').mean())['place']
    assert len(mean) == 10 and abs(mean - 4.5).max() < .6   # an id's place is a coin's: 4.5, five standard errors

def test_times_written_as_text():
    want = ['b', 'a', 'c']
    for days in (['10', '9', '100'], ['2023-02-02', '2023-02-01', '2023-03-01'], ['2023-02-01 10:00:00', '2023-02-01 09:59:59', '2023-02-02 00:00:00']):
        got = cut(pl.DataFrame(dict(user_id=[1]*3, parent_asin=['a', 'b', 'c'], timestamp=days)), ITEMS.rename(dict(item_id='parent_asin')))
        assert got.histories['item_ids'][0].to_list() == want

def test_cut_from_lists_and_catalogues_agree():
    shop = load('shop')
    a, b = cut(shop, least=10, last=12), cut(shop.histories, shop.items, least=10, last=12)
    assert a.histories.equals(b.histories) and a.items.equals(b.items) and a.dropped == b.dropped and a.name == 'shop'
    n = a.histories['item_ids'].list.len()
    assert (n.min(), n.max()) == (10, 12) and (times(a).lengths == n.to_numpy()).all()
    assert cut(shop).hash == shop.hash and cut(shop).dropped == {}

def test_bad_rules():
    good = frame([('u', x, 0, 1.) for x in 'abc'])
    one_line(lambda: cut(good, ITEMS, repeats='some'), 'some', 'merge')
    one_line(lambda: cut(good, ITEMS, least=0), 'least=0')
    one_line(lambda: cut(good, ITEMS, least=4, last=3), 'last=3')
    one_line(lambda: cut(good, ITEMS, least=4), 'no user has 4 purchases', 'fewer than 4')
    one_line(lambda: cut(good), 'item table is missing')
    one_line(lambda: cut(good, ITEMS.rename(dict(item_id='thing'))), 'no column item_id', 'thing')
    one_line(lambda: cut(good.drop('rating'), ITEMS, stars=4), 'no column rating')
    one_line(lambda: cut(good.drop('user_id'), ITEMS), 'no column user_id')
    one_line(lambda: cut(good.with_columns(timestamp=pl.lit('soon')), ITEMS), "'soon'", 'wanted numbers or dates')
    one_line(lambda: cut(good.with_columns(timestamp=pl.Series([1, None, 2])), ITEMS), 'row 2', 'timestamp is empty')
    one_line(lambda: cut(good.to_dicts(), ITEMS), 'source is a list')
    uneven = pl.DataFrame(dict(user_id=[1], item_ids=[['a', 'b', 'c']], timestamps=[[1, 2]]))
    one_line(lambda: cut(uneven, ITEMS), 'lists of the same lengths')


# three protocols

@st.composite
def dated(draw):
    "Histories with a day for each purchase"
    rows = draw(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=2, max_size=10))
    assume(any(len(h) >= 3 for h in rows))
    days = [np.cumsum(draw(st.lists(st.integers(0, 3), min_size=len(h), max_size=len(h)))).tolist() for h in rows]
    return rows, days

def flat(r): return Counter(r.values.tolist())

@fast
@given(dated(), st.integers(0, 99), st.floats(.05, .45))
def test_new_users_are_new(data, seed, share):
    rows, _ = data
    r = Ragged.of(rows)
    s = split(r, 'new_users', share, seed)
    check_no_leak(s, r)
    assert lists(s.train) == [h for i, h in enumerate(rows) if i not in s.users]
    assert lists(s.inputs('test').append(s.test)) == [rows[u] for u in s.users] and lists(s.inputs('valid')) == [rows[u][:-2] for u in s.users]
    assert len(s) == max(1, round(share*sum(len(h) > 2 for h in rows)))
    assert flat(s.train) + flat(s.inputs('valid')) + Counter(s.valid.tolist()) + Counter(s.test.tolist()) == flat(r)
    assert np.array_equal(split(r, 'new_users', share, seed).users, s.users)

@fast
@given(dated(), st.floats(.05, .45))
def test_time_never_looks_ahead(data, share):
    rows, days = data
    r, t = Ragged.of(rows), Ragged.of(days)
    try: s = split(r, 'time', share, timestamps=t)
    except InputError as e:
        assert 'nobody bought before' in str(e)
        return
    check_no_leak(s, r, t)
    t1, t2 = s.cuts
    assert flat(s.train) == Counter(x for h, d in zip(rows, days) for x, y in zip(h, d) if y < t1)
    for i, u in enumerate(s.users):
        known = [x for x, d in zip(rows[u], days[u]) if d < t2]
        assert lists(s.inputs('test'))[i] == known and s.test[i] == rows[u][len(known)] and days[u][len(known) - 1] >= t1

@fast
@given(dated())
def test_loo_accounts_for_everything(data):
    r = Ragged.of(data[0])
    s = split(r)
    assert flat(s.train) + flat(s.extra) + Counter(s.valid.tolist()) + Counter(s.test.tolist()) == flat(r)

def test_bad_splits():
    r = Ragged.of([[1, 2, 3], [4, 5, 6]])
    one_line(lambda: split(r, 'random'), "'random'", 'loo', 'new_users', 'time')
    one_line(lambda: split(r, 'new_users', share=1.2), 'share=1.2')
    one_line(lambda: split(Ragged.of([[1], [2, 3]])), 'three purchases')
    one_line(lambda: split(r, 'time'), 'no timestamps')
    one_line(lambda: split(r, 'time', timestamps=Ragged.of([[1, 2], [3, 4, 5]])), '5 timestamps for 6 purchases')
    one_line(lambda: split(r, 'time', timestamps=Ragged.of([[1, 3, 2], [1, 2, 3]])), '1 purchases are older')
    one_line(lambda: split(r, 'time', timestamps=Ragged.of([[1]*3]*2)), 'nobody bought before')
    one_line(lambda: times(replace(load('shop'), histories=load('shop').histories.drop('timestamps'))), 'no timestamps')
    with pytest.raises(InputError, match='valid'): split(r).inputs('train')


# every leak is caught

def a_split(protocol):
    rng = np.random.default_rng(5)
    rows = [rng.permutation(30)[:n].tolist() for n in rng.integers(1, 12, 60)]
    days = [np.sort(rng.integers(0, 99, len(h))).tolist() for h in rows]
    r, t = Ragged.of(rows), Ragged.of(days)
    return split(r, protocol, .2, timestamps=t), r, t

def plus(a, b): return Ragged.of([*a, *b])
def swap(x): return np.concatenate([x[1:], x[:1]])

LEAKS = dict(
    test_in_training=lambda s, r, t: replace(s, extra=plus(s.extra, s.test[:3, None])),
    valid_in_training=lambda s, r, t: replace(s, extra=plus(s.extra, s.valid[:1, None])),
    everything=lambda s, r, t: replace(s, train=r),
    one_purchase=lambda s, r, t: replace(s, train=Ragged.of([*list(s.train)[:-1], [*s.train[len(s.train)-1], s.test[0]]])),
    lost=lambda s, r, t: replace(s, train=s.train.head(1) if s.protocol != 'loo' else Ragged.of([h[:1] for h in s.train])),
    test_in_inputs=lambda s, r, t: replace(s, past=s.inputs('test').append(s.test).head(1)),
    another_target=lambda s, r, t: replace(s, test=swap(s.test)),
    another_validation=lambda s, r, t: replace(s, valid=swap(s.valid)),
    valid_and_test_swapped=lambda s, r, t: replace(s, valid=s.test, test=s.valid),
    other_users=lambda s, r, t: replace(s, users=swap(s.users)))

@pytest.mark.parametrize('protocol', ['loo', 'new_users', 'time'])
@pytest.mark.parametrize('leak', LEAKS)
def test_injected_leak_is_caught(protocol, leak):
    s, r, t = a_split(protocol)
    check_no_leak(s, r, t)
    with pytest.raises(AssertionError, match=protocol + '|numbers of users|no purchase|left out'): check_no_leak(LEAKS[leak](s, r, t), r, t)

def test_the_check_says_what_leaked():
    s, r, t = a_split('loo')
    with pytest.raises(AssertionError, match=rf'{len(s)} purchases that it must not know, of {len(s)} users \(first: row {s.users[0]}, item {s.valid[0]}\)'):
        check_no_leak(replace(s, train=r.take(s.users).head(1)), r)
    s, r, t = a_split('new_users')
    with pytest.raises(AssertionError, match=f'{len(s)} of {len(s)} held-out users'): check_no_leak(replace(s, train=r), r)
    s, r, t = a_split('time')
    with pytest.raises(AssertionError, match=f'bought at {s.cuts[0]} or later'): check_no_leak(replace(s, train=r.keep(t.values < s.cuts[1])), r, t)
    with pytest.raises(AssertionError, match='different numbers'): check_no_leak(replace(s, test=s.test[1:]))

@fast
@given(dated(), st.data())
def test_any_foreign_purchase_in_training_is_caught(data, more):
    r = Ragged.of(data[0])
    s = split(r)
    i = more.draw(st.integers(0, len(s) - 1))
    rows = lists(s.train)
    rows[i].insert(more.draw(st.integers(0, len(rows[i]))), int(more.draw(st.sampled_from([s.valid[i], s.test[i]]))))
    with pytest.raises(AssertionError, match='leaks'): check_no_leak(replace(s, train=Ragged.of(rows)), r)


# every protocol serves every model

@pytest.mark.parametrize('protocol', ['loo', 'new_users', 'time'])
def test_protocols_serve_the_recommenders(protocol):
    from semantic_ids import metrics as m
    from semantic_ids.sasrec import SASRec, train_sasrec
    shop = load('shop').top(100)
    r = encode(shop)
    s = split(r, protocol, .1, timestamps=times(shop))
    rows = dict(popularity=m.popularity(s, 100), last_item=m.last_item(s, 100), item_knn=m.item_knn(s, 100))
    if protocol != 'time': rows['oracle'] = m.oracle(shop)   # the oracle knows the last purchase only
    got = {k: m.evaluate(f, s) for k, f in rows.items()}
    assert all(g['protocol'] == protocol and g['users'] == len(s) for g in got.values())
    if protocol != 'time': assert got['oracle']['hit@10'] == max(g['hit@10'] for g in got.values())
    assert m.counts(s, 100).sum() == len(s.train.values) + len(s.extra.values)
    model = SASRec(100, d_model=16, n_layers=1, n_heads=1, max_len=20)
    train_sasrec(model, s, epochs=1)
    assert m.evaluate(model.score, s)['users'] == len(s)

def test_new_users_stay_out_of_conversations():
    from semantic_ids.conversations import build
    from semantic_ids.ids import SemanticIDs
    from semantic_ids.runs import shop_path
    shop, ids = load('shop'), SemanticIDs.load(shop_path()/'ids')
    r = encode(shop)
    s = split(r, 'new_users')
    users = build(shop, ids, s, 300)['user']
    assert users.max() < len(s.train) and (users >= 0).any()


# figures

def test_length_table_by_hand():
    row = length_table(x=Ragged.of([[0]*n for n in (3, 3, 4, 13)])).row(0, named=True)
    assert row == dict(name='x', users=4, shortest=3, median=3.5, mean=5.75, longest=13, three=.5, upto4=.75, upto12=.75)

@fast
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_gini_is_half_the_mean_difference(c):
    c = np.array(c, float)
    assert gini(c) == pytest.approx(np.abs(c[:, None] - c).mean()/2/c.mean(), abs=1e-9)


# real data

@pytest.mark.parametrize('name,items,users,purchases', [('video_games', 16859, 50546, 452989), ('video_games_2023', 14662, 78643, 514515)])
def test_real_counts(data_folder, name, items, users, purchases):
    cat = load(data_folder/name)
    r = encode(cat)
    assert (len(np.unique(r.values)), len(r), len(r.values)) == (items, users, purchases)
    assert all(len(np.unique(h)) == len(h) for h in r)
    for p in ('loo', 'new_users'): check_no_leak(split(r, p), r)
    held, rest = (lambda s: (r.take(s.users).lengths, s.train.lengths))(split(r, 'new_users'))
    assert len(held) == round(.1*users) and abs(held.mean()/rest.mean() - 1) < .05

def test_the_originals_counts(data_folder):
    "Its cut leaves its own file as it is; the length table is the one it prints; its language model's pairs are all users'"
    cat = load(data_folder/'video_games_2023')
    again = cut(cat, least=3, last=100, repeats='first')
    assert again.histories.equals(cat.histories) and not [k for k in again.dropped if 'purchases' in k]
    row, r = length_table(x=encode(again)).row(0, named=True), encode(again)
    for k in ('users', 'shortest', 'median', 'longest'): assert row[k] == ORIGINAL[k]
    for k in ('three', 'upto4', 'upto12'): assert round(row[k], 3) == ORIGINAL[k]
    assert round(row['mean'], 1) == ORIGINAL['mean'] and (r.lengths == 100).sum() == 28
    assert (r.lengths - 2).sum() == 357229 and len(split(r, 'new_users')) == 7864
    counts = np.bincount(r.values, minlength=len(cat))
    assert counts.max() == 2226 and ((counts > 0) & (counts < 5)).sum() == 960
