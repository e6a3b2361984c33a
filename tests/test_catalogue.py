"Catalogues and histories: bad input, round trips, splits, the frozen shop, real data"
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from semantic_ids.catalogue import FAMILIES, Catalogue, fits, from_frames, load, platforms_of, products, read_table
from semantic_ids.histories import REAL, Ragged, Split, check_no_leak, encode, split, statistics
from semantic_ids.runs import InputError
from semantic_ids.shoppers import oracle_scores, shop_state, simulate

IDS = pl.List(pl.String)

def items(**kw): return pl.DataFrame(dict(item_id=['a', 'b', 'c'], title=['Braid', 'Halo 4', 'Rez']) | kw)
def histories(*rows): return pl.DataFrame(dict(user_id=list(range(len(rows))), item_ids=list(rows)), schema_overrides=dict(item_ids=IDS))
GOOD = histories(['a', 'b', 'c'])

def one_line(f, *wanted):
    "The call fails with an InputError of one line that contains what is wanted"
    with pytest.raises(InputError) as e: f()
    text = str(e.value)
    assert '\n' not in text and len(text) < 400, text
    for w in wanted: assert w in text, f'{w!r} not in {text!r}'
    return text

def folder(path, it=None, hi=None):
    path.mkdir()
    (items() if it is None else it).write_parquet(path/'items.parquet')
    (GOOD if hi is None else hi).write_parquet(path/'histories.parquet')
    return path


# bad input

@pytest.mark.parametrize('it,hi,wanted', [
    (items().drop('item_id'), GOOD, ['items', 'no column item_id', 'title']),
    (items().drop('title'), GOOD, ['items', 'no column title']),
    (items().rename(dict(title='titel')), GOOD, ['rename titel to title']),
    (items(item_id=[1.5, 2.5, 3.5]), GOOD, ['item_id', 'decimal numbers', 'wanted']),
    (items(item_id=['a', 'b', 'a']), GOOD, ["row 3", "'a'", 'row 1']),
    (items(item_id=['a', None, 'c']), GOOD, ['row 2', 'item_id is empty']),
    (items(title=[1, 2, 3]), GOOD, ['title', 'whole numbers', 'wanted text']),
    (items(price=['1', 'cheap', '3']), GOOD, ['row 2', 'price', "'cheap'", 'number']),
    (items(price=[[1.], [2.], [3.]]), GOOD, ['price', 'wanted numbers']),
    (items(genres=[1, 2, 3]), GOOD, ['genres', 'wanted lists of text']),
    (items()[:0], GOOD, ['items', 'no rows']),
    (items(), GOOD[:0], ['histories', 'no rows']),
    (items(), GOOD.drop('user_id'), ['histories', 'no column user_id']),
    (items(), GOOD.drop('item_ids'), ['histories', 'item_ids']),
    (items(), histories(['a', 'b', 'c'], ['a', 'zelda']), ['histories', 'user 1', "'zelda'", 'items']),
    (items(), histories([], []), ['every history is empty']),
    (items(), histories(['a']), ['1 purchase;', 'at least 3']),
    (items(), histories(['a', 'b'], ['a']), ['2 purchases', 'at least 3']),
    (items(), histories(['a', None, 'b']), ['row 1', 'missing id']),
    (items(), pl.concat([GOOD, GOOD]), ['row 2', 'user_id']),
    (items(), GOOD.with_columns(item_ids=pl.Series([[1.5]])), ['item_ids', 'wanted lists']),
])
def test_bad_tables(it, hi, wanted): one_line(lambda: from_frames(it, hi), *wanted)

def test_bad_files(tmp_path):
    one_line(lambda: load(tmp_path/'nowhere'), 'nowhere', 'no such folder')
    one_line(lambda: load((tmp_path/'i.csv', tmp_path/'h.csv')), 'i.csv', 'no such file')
    (tmp_path/'empty').mkdir()
    one_line(lambda: load(tmp_path/'empty'), 'items.parquet', 'found nothing')
    one_line(lambda: load('amazon:Video_Games'), 'amazon:Video_Games')
    one_line(lambda: load((items(),)), 'wanted two')
    one_line(lambda: from_frames(42, GOOD), 'items', 'frame')
    (tmp_path/'x.txt').write_text('x')
    one_line(lambda: read_table(tmp_path/'x.txt'), '.txt', '.parquet or .csv')

def test_truncated_parquet(tmp_path):
    d = folder(tmp_path/'d')
    whole = (d/'items.parquet').read_bytes()
    for n in (0, 3, len(whole)//2, len(whole) - 1):
        (d/'items.parquet').write_bytes(whole[:n])
        one_line(lambda: load(d), 'items.parquet', 'cut short')

def test_empty_and_ragged_csv(tmp_path):
    (tmp_path/'histories.csv').write_text('user_id,item_ids\n1,a|b|c\n')
    (tmp_path/'items.csv').write_text('')
    one_line(lambda: load(tmp_path), 'items.csv')
    (tmp_path/'items.csv').write_text('item_id,title\na,Braid\nb,Halo,4,x\n')
    one_line(lambda: load(tmp_path), 'items.csv')
    (tmp_path/'items.csv').write_text('item_id,title,price\na,Braid,1\nb,Halo,x\n')
    one_line(lambda: load(tmp_path), 'items.csv, line 3', "'x'")

def test_unwritable(tmp_path):
    cat = from_frames(items(), GOOD)
    (tmp_path/'file').write_text('in the way')
    one_line(lambda: cat.save(tmp_path/'file'/'deep'), 'cannot be written')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file']

def test_html_and_control_characters():
    cat = from_frames(items(title=['<script>alert(1)</script>', 'Ha\x00lo\u202e 4\x1b', ' two\n lines ']), GOOD)
    assert cat.items['title'].to_list() == ['<script>alert(1)</script>', 'Halo 4', 'two lines']
    assert cat.dropped == {'title values rid of control characters': 1}
    assert '<script>' not in cat._repr_markdown_()

def test_short_histories_are_counted():
    cat = from_frames(items(), histories(['a', 'b', 'c'], [], ['b'], ['c', 'a']))
    assert cat.dropped == {'empty histories left out': 1, 'histories of one or two, for training only': 2}
    s = split(encode(cat))
    assert len(s) == 1 and [list(x) for x in s.extra] == [[1], [2, 0]]

def test_wishes():
    it = products()
    assert fits(it, dict(platform='Xbox')).sum() == it['platform'].is_in(FAMILIES['Xbox']).sum()
    assert fits(it, dict(platform='Xbox 360')).sum() == (it['platform'] == 'Xbox 360').sum()
    both = fits(it, dict(genre=['Shooter', 'RPG']))
    assert (both == (fits(it, dict(genre='shooter')) & fits(it, dict(genre='rpg')))).all()
    assert not (fits(it, dict(not_platform='PlayStation')) & fits(it, dict(platform='PlayStation'))).any()
    assert it.filter(fits(it, dict(price_max=20)))['price'].max() <= 20
    one_line(lambda: fits(it, dict(genre='Shoter')), 'Shooter')
    one_line(lambda: fits(it, dict(colour='red')), 'colour', 'platform')
    one_line(lambda: fits(it, dict(price_max='low')), 'low', 'number')
    assert platforms_of('xbox') == FAMILIES['Xbox'] and platforms_of('Switch') == ['Nintendo Switch']


# properties

NAME = st.text(st.characters(codec='utf-8', exclude_categories=('C', 'Z')), min_size=1, max_size=6)

@st.composite
def catalogues(draw):
    ids = draw(st.lists(NAME, min_size=3, max_size=9, unique=True))
    n = len(ids)
    some = lambda s: st.lists(s, min_size=n, max_size=n)
    it = pl.DataFrame(dict(item_id=ids, title=draw(some(NAME)), price=draw(some(st.none() | st.floats(0, 500))), genres=draw(some(st.lists(NAME, max_size=3)))),
                      schema=dict(item_id=pl.String, title=pl.String, price=pl.Float64, genres=IDS))
    rows = [draw(st.lists(st.sampled_from(ids), min_size=3, max_size=8))] + draw(st.lists(st.lists(st.sampled_from(ids), max_size=8), max_size=6))
    return from_frames(it, histories(*rows), name='drawn')

@settings(max_examples=40, deadline=None)
@given(catalogues())
def test_round_trip(tmp_path_factory, cat):
    d = tmp_path_factory.mktemp('c')/'saved'
    cat.save(d)
    back = Catalogue.load(d)
    assert back.items.equals(cat.items) and back.histories.equals(cat.histories)
    assert (back.hash, back.name, back.dropped) == (cat.hash, cat.name, cat.dropped)
    shuffled = from_frames(cat.items.reverse(), cat.histories.reverse())
    assert shuffled.hash == cat.hash

@settings(max_examples=40, deadline=None)
@given(catalogues(), st.integers(1, 10))
def test_top(cat, n):
    try: small = cat.top(n, least=2)
    except InputError: return
    assert len(small) == min(n, len(cat)) and small.items['item_id'].is_sorted()
    keep, old = set(small.items['item_id']), dict(cat.histories.select('user_id', 'item_ids').iter_rows())
    for user, h in small.histories.select('user_id', 'item_ids').iter_rows():
        assert h == [x for x in old[user] if x in keep] and len(h) >= 2
    count = lambda x: sum(h[:max(len(h)-2, 0)].count(x) for h in old.values())
    out = set(cat.items['item_id']) - keep
    assert not out or min(map(count, keep)) >= max(map(count, out))

@settings(max_examples=40, deadline=None)
@given(catalogues())
def test_split_has_no_leak(cat):
    r = encode(cat)
    s = split(r)
    check_no_leak(s, r)
    for i, u in enumerate(s.users):
        h = list(r[u])
        assert list(s.train[i]) == h[:-2] and s.valid[i] == h[-2] and s.test[i] == h[-1]
        assert list(s.inputs('valid')[i]) == h[:-2] and list(s.inputs('test')[i]) == h[:-1]
    leaks = Split('loo', r.take(s.users).head(1), s.valid, s.test, s.users, s.extra)
    with pytest.raises(AssertionError): check_no_leak(leaks, r)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=8), st.integers(1, 9))
def test_ragged(rows, n):
    r = Ragged.of(rows)
    assert [list(x) for x in r] == rows and list(r.lengths) == [len(x) for x in rows]
    assert r.last(n).tolist() == [[-1]*(n - len(x[-n:])) + x[-n:] for x in rows]
    assert [list(x) for x in r.head(2)] == [x[:max(len(x)-2, 0)] for x in rows]
    assert [list(x) for x in r.append(np.arange(len(rows)))] == [x + [i] for i, x in enumerate(rows)]
    order = list(range(len(rows)))[::-1]
    assert [list(x) for x in r.take(order)] == [rows[i] for i in order]


# the frozen shop

def test_shop_is_frozen():
    meta, shop, shoppers = shop_state()
    assert meta['hash'] == shop.hash and len(shoppers) == len(shop.histories) == meta['shoppers']
    assert shop.items.equals(products())
    again, who = simulate(products(), 60, meta['seed'])
    assert again['item_ids'].to_list() == shop.histories['item_ids'][:60].to_list()
    assert who.equals(shoppers[:60])
    n = shop.histories['item_ids'].list.len()
    assert len(n) >= 6000 and n.min() >= 5 and n.max() <= 30

def test_shop_statistics():
    shop = load('shop')
    ours = statistics(shop).row(0, named=True)
    assert abs(ours['gini']/REAL['gini'] - 1) < .2 and abs(ours['same_series']/REAL['same_series'] - 1) < .2
    s = split(encode(shop))
    truth, popular = oracle_scores(shop, s.users), np.bincount(s.train.values, minlength=len(shop)).astype(float)
    hits = lambda score: np.mean([(score[i] > score[i, s.test[i]]).sum() < 10 for i in range(len(s))])
    seen = np.tile(popular, (len(s), 1))
    for i, h in enumerate(s.inputs('test')):
        assert truth[i, h].max() == 0
        seen[i, h] = -1
    assert .03 <= hits(seen) <= .08 and .4 <= hits(truth) <= .7

def test_oracle_of_a_smaller_shop():
    shop = load('shop')
    small = shop.top(400)
    assert len(small.histories) >= 2500
    users = np.arange(0, len(small.histories), 40)
    p = oracle_scores(small, users)
    assert p.shape == (len(users), 400) and np.allclose(p.sum(1), 1, atol=1e-4)
    last = encode(small).take(users).last(1)[:, 0]
    assert (p[np.arange(len(users)), last] > 0).all()
    one_line(lambda: oracle_scores(from_frames(items(), GOOD), [0]), 'only the simulated shop')


# real data

@pytest.mark.parametrize('name,n_items,users,purchases', [('video_games', 16859, 50546, 452989), ('video_games_2023', 66124, 78643, 514515),
                                                          ('video_games_2023_sample', 1000, 526, 1822), ('beauty', 12101, 22363, 198502)])
def test_real_sets_load_as_they_lie(data_folder, name, n_items, users, purchases):
    cat = load(data_folder/name)
    assert (len(cat), len(cat.histories), cat.purchases) == (n_items, users, purchases)
    assert cat.items.schema['item_id'] == pl.String and cat.items['title'].null_count() == 0
    r = encode(cat)
    check_no_leak(split(r), r)

def test_the_real_figures_of_the_page(data_folder):
    row = statistics(load(data_folder/'video_games')).row(0, named=True)
    for k in ('items', 'users', 'purchases', 'median', 'longest'): assert row[k] == REAL[k]
    for k in ('mean', 'density', 'gini', 'same_series'): assert row[k] == pytest.approx(REAL[k], rel=2e-3)

def test_real_values_are_typed_and_mapped(data_folder):
    sample = load(data_folder/'video_games_2023_sample')
    assert sample.items.schema['price'] == pl.Float64 and sample.items['price'].drop_nulls().len() > 500
    assert {'genres', 'series', 'rating', 'vectors'} <= set(sample.items.columns)
    games = load(data_folder/'video_games', top=2000)
    assert len(games) == 2000 and games.histories['item_ids'].list.len().min() >= 5
    assert load(data_folder/'video_games_2023').dropped == {'missing titles filled from attributes': 58389}
