"Catalogues and histories: bad input, round trips, splits, the frozen shop, real data"
from datetime import date, datetime, timezone
from decimal import Decimal
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from semantic_ids.catalogue import FAMILIES, Catalogue, fits, from_frames, load, platforms_of, products, read_table
from semantic_ids.histories import REAL, Ragged, Split, check_no_leak, encode, split, statistics
from semantic_ids.runs import InputError, quiet
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
    one_line(lambda: load('amazon:'), 'amazon:Video_Games')
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


# guesses and overrides

SALES = pl.DataFrame(dict(Customer=['x', 'x', 'y', 'x'], product=['c', 'a', 'a', 'b'], Date=['03.01.2024', '01.01.2024', '01.01.2024', '02.01.2024']))

@pytest.mark.parametrize('names,title', [(('Product ID', 'Product Name'), 'Product Name'), (('productId', 'NAME'), 'NAME'), (('SKU', 'Title'), 'Title'), (('id', 'product'), 'product'),
                                         (('asin', 'name'), 'name'), (('Artikelnummer', 'Bezeichnung'), 'Bezeichnung'), (('product', 'title'), None)])
def test_guessed_columns(names, title, capfd):
    quiet(False)
    try: cat = from_frames(items().rename(dict(item_id=names[0], title=names[1])), SALES)
    finally: quiet(True)
    said = capfd.readouterr().err.splitlines()
    assert cat.guessed['items.item_id'] == f'column {names[0]!r}' and cat.guessed.get('items.title') == (f'column {title!r}' if title else None)
    assert said == [f'{k}: {v}' for k, v in cat.guessed.items()] and len(said) == len(set(said))
    assert cat.histories['item_ids'].to_list() == [['a', 'b', 'c'], ['a']]
    assert cat.histories['timestamps'].to_list()[0] == [date(2024, 1, d) for d in (1, 2, 3)]

def test_names_of_ours_need_no_guess(capfd):
    assert from_frames(items(asin=['x', 'y', 'z'], Name=['p', 'q', 'r']), GOOD).guessed == {}
    assert capfd.readouterr().err == ''

def test_a_mere_id_in_histories_is_the_row():
    sales = SALES.with_columns(id=pl.Series([1, 2, 3, 4]))
    assert from_frames(items(), sales).histories.equals(from_frames(items(), SALES).histories)
    one_line(lambda: from_frames(items(), sales.drop('product')), 'histories', 'item_ids')

def test_ambiguity_names_both_and_the_override():
    two = items().rename(dict(item_id='sku')).with_columns(asin=pl.Series(['p', 'q', 'r']))
    one_line(lambda: from_frames(two, GOOD), "'sku'", "'asin'", 'item_id', 'columns=dict(item_id=')
    assert from_frames(two, GOOD, columns=dict(item_id='sku')).items['item_id'].to_list() == ['a', 'b', 'c']
    one_line(lambda: from_frames(items(), SALES.with_columns(time=pl.lit('12:00'))), "'Date'", "'time'", 'timestamp')

def test_overrides():
    it, hi = items().rename(dict(item_id='Art.-Nr.', title='Was')), SALES.rename(dict(product='Ware'))
    cat = from_frames(it, hi, columns=dict(items=dict(item_id='Art.-Nr.', title='Was'), histories=dict(item_id='Ware')))
    assert cat.items['title'].to_list() == ['Braid', 'Halo 4', 'Rez'] and len(cat.histories) == 2
    long = from_frames(items(Long=['x', 'y', 'z']), GOOD, columns=dict(title='Long'))
    assert long.items['title'].to_list() == ['x', 'y', 'z'] and 'Long' not in long.items.columns
    for bad, words in [(dict(title='Wo'), ['title', "'Wo'", 'item_id']), (dict(titel='title'), ["'titel'"]), ('title', ['dict']), (dict(items='x'), ['dict']), (dict(items=dict(title='Wo')), ["'Wo'"]),
                       (dict(histories=dict(item_id=3)), ['3']), ({3: 'title'}, ['3']), (dict(title=['title']), ['title']), (dict(title=None), ['None'])]:
        one_line(lambda: from_frames(items(), GOOD, columns=bad), *words)

def test_unknown_items_are_dropped_when_asked():
    hi = histories(['a', 'zelda', 'b', 'c'], ['mario', 'zelda'], ['c', 'a', 'b'], [])
    one_line(lambda: from_frames(items(), hi), "'zelda'", '3 such purchases')
    cat = from_frames(items(), hi, unknown='drop')
    assert cat.histories['item_ids'].to_list() == [['a', 'b', 'c'], ['c', 'a', 'b']]
    assert cat.dropped == {'empty histories left out': 1, 'purchases of unknown items left out': 3, 'items that were bought but are not in the table': 2,
                           'histories of unknown items only left out': 1}
    one_line(lambda: from_frames(items(), histories(['x', 'y', 'z']), unknown='drop'), 'every history is empty')
    one_line(lambda: from_frames(items(), hi, unknown='keep'), "'raise' or 'drop'")

def test_saved_guesses_come_back(tmp_path):
    cat = from_frames(items().rename(dict(title='Name')), SALES)
    cat.save(tmp_path/'c')
    back = Catalogue.load(tmp_path/'c')
    assert back.guessed == cat.guessed != {} and back.hash == cat.hash
    for note in ('[]', '{"dropped": 3}', '{"name": ["x"]}', '{'):
        (tmp_path/'c'/'catalogue.json').write_text(note)
        one_line(lambda: load(tmp_path/'c'), 'catalogue.json')


# numbers and times

@pytest.mark.parametrize('prices,wanted', [
    (['4,50 €', '€ 0,45', ''], [4.5, .45, None]), (['1.234,50', '3,5', '2'], [1234.5, 3.5, 2]), (['$1,234.50', '$3', None], [1234.5, 3, None]), (['1,234', '5', '6'], [1234, 5, 6]),
    (['EUR 4.50', '5 eur', 'nan'], None), (['CHF 1’234.50', '5', '6'], [1234.5, 5, 6]), ([1, 2, 3], [1, 2, 3]), ([float('nan'), 2., 0.], [None, 2, 0]), ([Decimal('1.5'), None, Decimal(2)], [1.5, None, 2]),
    (['4,50', '4.50', '1'], None), (['$4', '4 €', '1'], None), ([1., float('inf'), 2.], None), (['inf', '1', '2'], None), ([-1, 2, 3], None), (['-4,50', '1', '2'], None), ([True, False, True], None)])
def test_prices(prices, wanted):
    get = lambda: from_frames(items(price=prices), GOOD).items['price'].to_list()
    if wanted is None: one_line(get, 'price', 'wanted')
    else: assert get() == wanted

DAYS, MOMENTS = [date(2024, 5, 31), date(2024, 6, 1), date(2024, 6, 2)], [datetime(2024, 5, 31, 14, 5), datetime(2024, 6, 1), datetime(2024, 6, 2)]
SECONDS = [int(d.replace(tzinfo=timezone.utc).timestamp()) for d in MOMENTS]

@pytest.mark.parametrize('times,wanted', [
    (DAYS, DAYS), ([str(d) for d in DAYS], DAYS), ([f'{d:%d.%m.%Y}' for d in DAYS], DAYS), ([f'{d:%Y%m%d}' for d in DAYS], DAYS), ([int(f'{d:%Y%m%d}') for d in DAYS], DAYS), (['2024-05-31', '2024/06/01', '02.06.2024'], DAYS),
    (MOMENTS, MOMENTS), ([d.isoformat() for d in MOMENTS], MOMENTS), (['2024-05-31T14:05:00Z', '2024-06-01T02:00:00+02:00', '2024-06-02'], MOMENTS), (['31.05.2024 14:05', '2024-06-01 00:00', '2024-06-02'], MOMENTS),
    (SECONDS, MOMENTS), ([s*1000 for s in SECONDS], MOMENTS), ([s*10**6 for s in SECONDS], MOMENTS), ([s*10**9 for s in SECONDS], MOMENTS), ([float(s) for s in SECONDS], MOMENTS), ([str(s) for s in SECONDS], MOMENTS),
    ([d.replace(tzinfo=timezone.utc) for d in MOMENTS], MOMENTS), ([1, 2, 3], None), (['1', '9', '10'], None), ([.5, 1.5, 2], None), ([None, None, None], None)])
def test_times(times, wanted):
    order = [2, 0, 1]
    hi = pl.DataFrame(dict(user_id=['u']*3, item_id=['abc'[i] for i in order], ts=[times[i] for i in order]), strict=False)
    cat = from_frames(items(), hi)
    assert cat.histories['item_ids'].to_list() == ([['a', 'b', 'c']] if times[0] is not None else [['c', 'a', 'b']])
    assert (cat.histories['timestamps'].to_list()[0] if wanted else 'timestamps' not in cat.histories.columns) == (wanted or True)
    again = from_frames(cat.items, cat.histories)
    assert again.histories.equals(cat.histories) and again.hash == cat.hash

@pytest.mark.parametrize('times,row', [(['2024-05-31', 'yesterday', '2024-06-01'], 'row 2'), (['2024-05-31', '', '2024-06-01'], 'row 2'), (['2024-05-31', '05/06/24', '2024-06-01'], 'row 2'), (['2024-02-30', '2024-05-31', '2024-06-01'], 'row 1'),
    ([1717164300, 3, 1717164301], 'row 2'), ([1717164300, 1717164300000, 1717164301], 'row 1'), ([1717164300, -1717164300, 1717164301], 'row 2'), ([float('nan'), 1717164300., 1717164301.], 'row 1'), ([float('inf'), 1., 2.], 'row'),
    ([True, False, True], 'timestamp'), ([[1], [2], [3]], 'timestamp'), ([date(1, 1, 1), date(2024, 1, 1), date(2024, 1, 1)], 'row 1'), ([10**19, 1, 2], 'row')])
def test_bad_times(times, row):
    hi = pl.DataFrame(dict(user_id=['u']*3, item_id=['a', 'b', 'c'], timestamp=pl.Series(times, strict=False)))
    one_line(lambda: from_frames(items(), hi), 'histories', row, 'timestamp', 'wanted')

def test_times_beside_lists():
    hi = pl.DataFrame(dict(user_id=[1, 2, 3], item_ids=[['c', 'a', 'b'], [], ['a']], timestamps=[[3*10**8, 10**8, 2*10**8], [], [10**8]]))
    cat = from_frames(items(), hi)
    assert cat.histories['item_ids'].to_list() == [['a', 'b', 'c'], ['a']] and cat.dropped['histories put in the order of their times'] == 1
    one_line(lambda: from_frames(items(), hi.with_columns(timestamps=pl.lit([10**9]))), 'row 1', '1 timestamps for 3 purchases')
    one_line(lambda: from_frames(items(), hi.with_columns(timestamps=pl.lit('x'))), 'timestamps', 'wanted lists')
    assert 'timestamps' not in from_frames(items(), hi.with_columns(timestamps=pl.Series([[1, 2, 3], [], [1]]))).histories.columns


# files as people have them

ITEMS_CSV = 'item_id;title;price\na;Pokémon;4,50 €\nb;"Halo; 4";1,00 €\nc;Rez;\n'
SALES_CSV = 'user_id\titem_id\tdate\n1\tb\t02.01.2024\n1\ta\t01.01.2024\n1\tc\t03.01.2024\n'

@pytest.mark.parametrize('encoding,said', [('utf-8', 'UTF-8'), ('utf-8-sig', 'UTF-8'), ('cp1252', 'Windows-1252'), ('utf-16', 'UTF-16')])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_separators_and_encodings(tmp_path, encoding, said, end):
    (tmp_path/'items.csv').write_bytes(ITEMS_CSV.replace('\n', end).encode(encoding))
    (tmp_path/'histories.csv').write_bytes(SALES_CSV.replace('\n', end).encode(encoding))
    cat = load(tmp_path)
    assert cat.items['title'].to_list() == ['Pokémon', 'Halo; 4', 'Rez'] and cat.items['price'].to_list() == [4.5, 1, None]
    assert cat.histories['item_ids'].to_list() == [['a', 'b', 'c']]
    assert cat.guessed['items.csv'] == f"separator ';', encoding {said}" and "'\\t'" in cat.guessed['histories.csv']
    pair = load((tmp_path/'items.csv', str(tmp_path/'histories.csv')))
    mixed = load((tmp_path/'items.csv', pl.DataFrame(dict(user=[1]*3, item=['a', 'b', 'c'], date=DAYS))))
    assert pair.hash == cat.hash and mixed.items.equals(cat.items)

GARBAGE = {'empty': b'', 'blank': b'\n\n \n', 'header only': b'item_id,title\n', 'ragged': b'item_id,title\na,Braid\nb,Halo,4\n', 'short row': b'item_id,title,price\na,Braid,1\nb\n', 'twice': b'item_id,title,title\na,Braid,x\n',
           'binary': bytes(range(256))*4, 'NULs': b'item_id,title\n\0\0,\0\n', 'NUL and Latin': b'item_id,title\n\xe9\0,x\n', 'open quote': b'item_id,title\na,"Braid\nb,Halo\n', 'half of UTF-16': b'\xff\xfei\0t\0e', 'one column': b'item_id\na\nb\nc\n',
           'numbers': b'1,2,3\n4,5,6\n', 'no names': b',,\n1,2,3\n', 'not cp1252': b'item_id,title\n\x81,\x8d\n', 'parquet': b'PAR1\0\0PAR1', 'zero width': 'item_id,title\na\u200b,Braid\n'.encode(), 'line separator': 'item_id,title\na\u2028x,Braid\n'.encode()}

@pytest.mark.parametrize('name', GARBAGE)
@pytest.mark.parametrize('end', ['csv', 'parquet'])
@pytest.mark.parametrize('which', ['items', 'histories'])
def test_garbage_files(tmp_path, name, end, which):
    d = folder(tmp_path/'d')
    (d/f'{which}.parquet').unlink()
    (d/f'{which}.{end}').write_bytes(GARBAGE[name])
    one_line(lambda: load(d), which)

def test_odd_paths(tmp_path):
    d = folder(tmp_path/'d')
    one_line(lambda: load((d, d)), 'folder')
    (d/'items.parquet').unlink()
    (d/'items.parquet').mkdir()
    one_line(lambda: load(d), 'items.parquet', 'folder')
    for odd in (42, None, items(), {}, b'x', 1.5, [], [1], [1, 2], [[1, 2], [3]], [[[1]], [[2]]], [None, None], ['', ''], 'x'*5000, 'a\0b', 'amazon:', ['a\0.csv', 'b'], [b'a.csv', b'b.csv'], ['x'*5000, 'y'], object(), (items(), 'nowhere.csv')):
        one_line(lambda: load(odd))

def test_pandas():
    pd = pytest.importorskip('pandas')
    it, hi = items(price=[1., None, 3.]).to_pandas(), pd.DataFrame(dict(user=[1, 1, 1], item=['c', 'a', 'b'], ts=pd.to_datetime(['2024-03-03', '2024-03-01', '2024-03-02'])))
    assert from_frames(it.astype(dict(item_id='category', title=object)), hi).histories['item_ids'].to_list() == [['a', 'b', 'c']]
    for bad in (it.assign(item_id=[1, 'b', 2.5]), it.assign(item_id=[1, None, 3]), it.assign(title=[['x'], 3, {}]), it.assign(x=[object()]*3), it.assign(x=[b'x']*3), it['title'], it[['item_id', 'title', 'title']],
                it.iloc[:0], it[[]], it.set_axis([0, 1, 2], axis=1), it.assign(item_id=pd.NaT), it.assign(title=[1, 'x', None]), it.assign(x=[1 + 2j]*3)):
        one_line(lambda: from_frames(bad, hi), 'items')


# whatever a user gives: a catalogue that keeps its promises, or one line

def promises(cat):
    ids = cat.items['item_id']
    assert len(ids) and ids.n_unique() == len(ids) and ids.is_sorted() and not ids.has_nulls() and cat.items['title'].null_count() == 0
    assert all(i.strip() == i != '' for i in ids) and all(t.isprintable() or '\xad' in t for t in cat.items['title'] if t.isascii())
    assert cat.histories['user_id'].n_unique() == len(cat.histories) and cat.histories['item_ids'].list.len().min() > 0
    assert set(cat.histories['item_ids'].explode()) <= set(ids) and cat.histories['item_ids'].list.len().max() >= 3
    if 'price' in cat.items.columns: assert all(0 <= p < float('inf') for p in cat.items['price'].drop_nulls())
    if 'timestamps' in cat.histories.columns: assert all(t == sorted(t) and len(t) == len(i) for t, i in cat.histories.select('timestamps', 'item_ids').iter_rows())
    assert len(cat.hash) == 16 and all(n > 0 for n in cat.dropped.values())

def either(f):
    "A catalogue or an InputError of one line; any other exception fails"
    try: cat = f()
    except InputError as e:
        assert len(str(e).splitlines()) == 1 and 10 < len(str(e)) < 600, str(e)
        return
    promises(cat)
    back = from_frames(cat.items, cat.histories)
    assert back.items.equals(cat.items) and back.histories.equals(cat.histories) and back.guessed == {}

WILD = st.sampled_from(['', ' ', 'a', 'b', 'c', 'A', 'a|b', '|', '007', '7', 'é', '🎮', 'שלום', '\u202eabc', '\0', 'a\nb', '\u2028', 'NaN', 'inf', '-1', '1,5', '1.5', '€', '1e400', '<b>', "o'b", '"', 'x'*3000, '\ufeffa', '\x1b[31m']) | st.text(max_size=5)
CELL = {'text': WILD.filter(lambda s: not any('\ud800' <= c <= '\udfff' for c in s)), 'good': st.sampled_from('abcdef'), 'int': st.integers(-2**63, 2**63 - 1), 'small': st.integers(0, 5), 'float': st.floats(), 'bool': st.booleans(), 'date': st.dates(), 'datetime': st.datetimes(),
        'decimal': st.decimals(-99, 99, places=2), 'bytes': st.binary(max_size=3), 'texts': st.lists(st.sampled_from(['a', 'b', 'c', '', 'é|', '\0']), max_size=4), 'ints': st.lists(st.integers(0, 3), max_size=4),
        'nested': st.lists(st.lists(st.sampled_from('abc'), max_size=2), max_size=2), 'struct': st.fixed_dictionaries(dict(a=st.integers(0, 3))), 'null': st.none(), 'object': st.builds(object), 'mixed': st.sampled_from([1, 'a', None, 2.5, [], {}])}
COLUMNS = ['item_id', 'title', 'price', 'genres', 'categories', 'year', 'platform', 'vectors', 'asin', 'sku', 'Product ID', 'name', 'user_id', 'item_ids', 'timestamps', 'timestamp', 'date', 'product', 'user', 'id', 'x\ny', '', ' ', 'ITEM_ID', 'rating', 'description', 'series']

def wild(draw, name, n):
    "A column of any type"
    cell = CELL[draw(st.sampled_from(list(CELL)))]
    values = draw(st.lists(cell | st.none() if draw(st.booleans()) else cell, min_size=n, max_size=n))
    try: s = pl.Series(name, values, strict=False)
    except Exception: s = pl.Series(name, values, dtype=pl.Object)
    if s.dtype == pl.String and draw(st.booleans()): s = s.cast(draw(st.sampled_from([pl.Categorical, pl.Enum(s.drop_nulls().unique())])))
    return s

@st.composite
def damaged(draw, good):
    "A good frame with up to three faults: a column replaced, added or lost, or rows lost, repeated or put in another order"
    for _ in range(draw(st.integers(0, 3))):
        kind, names = draw(st.sampled_from(['replace', 'add', 'add', 'lose', 'rename', 'rows'])), good.columns
        if kind == 'rows': good = good[draw(st.lists(st.integers(0, len(good) - 1), max_size=6))] if len(good) else good
        elif kind == 'add' or not names: good = good.with_columns(wild(draw, draw(st.sampled_from(COLUMNS)), len(good)))
        elif kind == 'replace': good = good.with_columns(wild(draw, draw(st.sampled_from(names)), len(good)))
        elif kind == 'lose': good = good.drop(draw(st.sampled_from(names)))
        elif (new := draw(st.sampled_from(COLUMNS))) not in names: good = good.rename({draw(st.sampled_from(names)): new})
    return good

@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged(items(price=['1,50', '', '3'])), damaged(GOOD) | damaged(SALES), st.sampled_from(['raise', 'drop']))
def test_any_two_frames(it, hi, unknown): either(lambda: from_frames(it, hi, unknown=unknown))

ODD_IDS = ['a', 'B', ' c', 'a|b', '|', '007', '7', 'é', '🎮', 'שלום', '1.5', 'NaN', 'null', '<b>', "o'b", '"', 'x'*3000, '-1', 'a b', 'A']

@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(ODD_IDS), min_size=3, max_size=6, unique=True), damaged(items().select(price=pl.lit(1.), x=pl.lit('x'))), st.data())
def test_any_attributes_and_purchases(ids, more, data):
    "Tables that are right in the main: most of these make a catalogue"
    it = pl.DataFrame(dict(item_id=ids, title=data.draw(st.lists(CELL['text'] | st.none(), min_size=len(ids), max_size=len(ids)))), schema=dict(item_id=pl.String, title=pl.String))
    it = it.with_columns(c.extend_constant(None, max(0, len(ids) - len(c))).head(len(ids)) for c in more if c.dtype not in (pl.Object, pl.Binary) and c.name not in it.columns)
    bought = data.draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([*ids, 'nobody']), st.sampled_from(['2024-01-01', '05.01.2024', '2024-01-03 10:00'])), min_size=5, max_size=12))
    hi = pl.DataFrame(bought, schema=['Customer', 'Product', 'Date'], orient='row')
    either(lambda: from_frames(it, hi, unknown='drop'))

@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.lists(st.lists(CELL['text'], max_size=4), max_size=6).map(lambda rows: '\n'.join(';'.join(r) for r in rows).encode('utf-8', 'replace')), st.sampled_from([b'', b'item_id,title\n', b'item_id;title\n']), st.sampled_from(['csv', 'parquet']))
def test_any_file(tmp_path_factory, raw, head, end):
    path = tmp_path_factory.mktemp('f')/f'items.{end}'
    path.write_bytes(head + raw)
    either(lambda: load((path, GOOD)))

@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=3), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=3), s, max_size=3), max_leaves=8))
def test_any_object(x):
    either(lambda: from_frames(x, GOOD))
    either(lambda: from_frames(items(), x))
    if x != 'shop': either(lambda: load(x))


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


# Amazon Reviews 2023 by name, from files of its shape in the cache

def test_a_category_by_name(tmp_path, monkeypatch):
    from huggingface_hub import constants
    from semantic_ids.amazon import write_like_amazon
    monkeypatch.setattr(constants, 'HF_HOME', str(tmp_path))
    write_like_amazon(tmp_path/'amazon-reviews-2023', 'Baby_Products', 2000, 40_000)
    cat = load('amazon:Baby_Products', top=50)
    assert len(cat) == 50 and cat.source == 'amazon:Baby_Products' and cat.items['item_id'].is_sorted()
    assert any('broken' in why or 'empty' in why for why in cat.dropped)

def test_a_category_without_its_files_and_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HOME', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(InputError, match='switched off'): load('amazon:Video_Games')
    with pytest.raises(InputError, match='Video_Games'): load('amazon:Video_Game')
