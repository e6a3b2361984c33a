import gzip, hashlib, json, os, re, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import polars as pl, pytest
from hypothesis import given, settings, strategies as st
from semantic_ids.amazon import (CATEGORIES, FILES, REPO, amazon, category_of, fetch, flat, in_order, is_id, lines, number, quick_values, read_5core,
                                 read_items, read_reviews, text_list, values, write_like_amazon)
from semantic_ids.runs import InputError

ROOT = Path(__file__).resolve().parent.parent
REVIEW = dict(rating=5.0, title='t', text='x', parent_asin='B1', user_id='A1', timestamp=1600000000000)
ITEM = dict(parent_asin='B1', title='Halo 4', description=['Two', 'parts'], features=['f'], categories=['Video Games', 'PC'], main_category='Video Games', store='Shop',
            details={'Rated': 'Mature'}, price=19.99, average_rating=4.5, rating_number=12)

@pytest.fixture(scope='module')
def like(tmp_path_factory):
    folder = tmp_path_factory.mktemp('like')
    return folder, write_like_amazon(folder, 'Video_Games', 2000, 40_000, malformed=.03, seed=3)

def write(path, *rows):
    path.write_bytes(b'\n'.join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows) + b'\n')
    return path

# reading

def test_every_damaged_line_is_counted(like):
    folder, truth = like
    got = {k: {} for k in FILES}
    read_items(folder/'meta_Video_Games.jsonl', got['items']); read_reviews(folder/'Video_Games.jsonl', got['reviews'])
    read_5core(folder/'Video_Games.train.csv', got['5core'])
    got['5core'].pop('5-core rows that repeat a shorter history')
    assert got == truth and all(truth.values()) and len(truth['reviews']) == 5

def test_nothing_damaged_nothing_lost(tmp_path):
    truth = write_like_amazon(tmp_path, 'Video_Games', 500, 5000, malformed=0)
    assert truth == {'items': {}, 'reviews': {}, '5core': {}}
    dropped = {}
    assert len(read_items(tmp_path/'meta_Video_Games.jsonl', dropped)) == 500 and len(read_reviews(tmp_path/'Video_Games.jsonl', dropped)) == 5000
    assert dropped == {}

def test_generator_repeats_itself(tmp_path):
    digest = lambda d: {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in d.iterdir()}
    one, two, other = tmp_path/'1', tmp_path/'2', tmp_path/'3'
    for d, seed in ((one, 0), (two, 0), (other, 1)): write_like_amazon(d, n_items=300, n_reviews=2000, seed=seed)
    assert digest(one) == digest(two) != digest(other)

@pytest.mark.parametrize('row, why', [
    (b'{"user_id":', 'broken lines among the reviews'), (b'', 'empty lines among the reviews'), (b'[1, 2]', 'broken lines among the reviews'), (b'null', 'broken lines among the reviews'),
    (b'{"a": 1}', 'broken lines among the reviews'), (json.dumps(REVIEW).encode() + b' more', 'broken lines among the reviews'), (json.dumps(REVIEW).encode().replace(b'A1', b'A\x00'), 'broken lines among the reviews'),
    (json.dumps(REVIEW).encode().replace(b'A1', b'A\xff'), 'reviews without a user or an item'), (REVIEW | dict(user_id=None), 'reviews without a user or an item'), (REVIEW | dict(user_id=['A1']), 'reviews without a user or an item'),
    (REVIEW | dict(parent_asin=''), 'reviews without a user or an item'), (REVIEW | dict(parent_asin={'id': 'B1'}), 'reviews without a user or an item'), ({k: v for k, v in REVIEW.items() if k != 'user_id'}, 'reviews without a user or an item'),
    (REVIEW | dict(timestamp=None), 'reviews without a time'), (REVIEW | dict(timestamp='soon'), 'reviews without a time'), (REVIEW | dict(timestamp=-5), 'reviews without a time'), (REVIEW | dict(timestamp=[1]), 'reviews without a time')])
def test_a_bad_review_is_left_out_under_its_reason(tmp_path, row, why):
    dropped = {}
    x = read_reviews(write(tmp_path/'r.jsonl', REVIEW, row, REVIEW | dict(user_id='A2')), dropped)
    assert x['user_id'].to_list() == ['A1', 'A2'] and dropped == {why: 1}

@pytest.mark.parametrize('rating, want, bad', [(4, 4.0, 0), ('4.0', 4.0, 0), (None, None, 0), ('five', None, 1), ([5], None, 1), ({}, None, 1), (9, None, 1), (-1, None, 1), (True, None, 1)])
def test_ratings_are_typed_or_emptied(tmp_path, rating, want, bad):
    dropped = {}
    x = read_reviews(write(tmp_path/'r.jsonl', REVIEW | dict(rating=rating), REVIEW), dropped)
    assert x['rating'].to_list() == [want, 5.0] and sum(dropped.values()) == bad
    assert x.schema == dict(user_id=pl.String, item_id=pl.String, rating=pl.Float64, timestamp=pl.Int64)

def test_windows_line_ends_and_no_last_newline(tmp_path):
    (tmp_path/'r.jsonl').write_bytes(json.dumps(REVIEW).encode() + b'\r\n' + json.dumps(REVIEW | dict(user_id='A2')).encode())
    dropped = {}
    assert len(read_reviews(tmp_path/'r.jsonl', dropped)) == 2 and not dropped

def test_a_line_that_fools_the_quick_reader_takes_the_slow_way(tmp_path):
    odd = json.dumps(REVIEW).replace('"rating": 5.0', '"rat\\u0069ng": [1]').encode()
    dropped = {}
    x = read_reviews(write(tmp_path/'r.jsonl', odd, REVIEW | dict(user_id='A2')), dropped)
    assert x['rating'].to_list() == [None, 5.0] and dropped == {'reviews whose rating is no number of stars': 1}

json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8), lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3), max_leaves=5)

@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(['user_id', 'rating', 'timestamp', 'text']), json_values, max_size=4) | st.text(max_size=20), min_size=1, max_size=8))
def test_quick_and_slow_agree_on_any_lines(rows):
    raw = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    raw = [re.sub(r'[\r\n\x85\u2028\u2029\x01]', ' ', r).encode('utf-8', 'replace').decode('utf-8', 'replace') for r in raw]
    x, names = pl.LazyFrame(dict(line=raw), schema=dict(line=pl.String)), ['user_id', 'rating', 'timestamp']
    try: quick = quick_values(x, *names).collect()
    except pl.exceptions.PolarsError: return # the loader then reads the slow way
    slow = x.select(values(*names)).collect()
    assert quick['user_id'].to_list() == slow['user_id'].to_list()
    same = lambda a, b: a == b or None not in (a, b) and float(a) == pytest.approx(float(b), rel=1e-9)
    for f in names[1:]: assert all(same(a, b) for a, b in zip(quick[f], slow[f])), (f, quick[f].to_list(), slow[f].to_list())

@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, max_size=5))
def test_any_list_becomes_a_list_of_clean_text(x):
    got = pl.DataFrame(dict(a=[json.dumps(x)])).select(text_list('a'))
    assert got.schema['a'] == pl.List(pl.String)
    assert all(isinstance(t, str) and t.strip(' \t\n') == t != '' for t in got['a'][0])

@pytest.mark.parametrize('text, want', [('4.99', 4.99), ('$1,299.00', 1299.0), (' 5 ', 5.0), ('from 4.99', None), ('None', None), ('—', None), ('', None), ('inf', None), ('NaN', None), (None, None), ('1e2', 100.0)])
def test_numbers(text, want):
    assert pl.DataFrame(dict(a=[text]), schema=dict(a=pl.String)).select(number('a'))['a'].to_list() == [want]

# items

@pytest.mark.parametrize('change, column, want', [
    (dict(price='None'), 'price', None), (dict(price='from 4.99'), 'price', None), (dict(price='—'), 'price', None), (dict(price='$4.99'), 'price', 4.99), (dict(price=-3), 'price', None), (dict(price=[1]), 'price', None),
    (dict(features=None), 'features', []), (dict(features='bare'), 'features', ['bare']), (dict(features=['a', None, 3, ['b']]), 'features', ['a', 'b']), (dict(categories=None), 'categories', []),
    (dict(description=None), 'description', ''), (dict(description='bare "text" [x]'), 'description', 'bare "text" [x]'), (dict(description=['a \u00e9', 'b']), 'description', 'a \u00e9 b'),
    (dict(average_rating='good'), 'rating', None), (dict(average_rating='4.5'), 'rating', 4.5), (dict(average_rating=51), 'rating', None), (dict(rating_number='1,024'), 'rating_number', 1024), (dict(rating_number=None), 'rating_number', None),
    (dict(title=None), 'title', None), (dict(title='  '), 'title', None), (dict(title=' Rez '), 'title', 'Rez'), (dict(details=None), 'brand', 'Shop'), (dict(details={'Brand': 'Sega'}), 'brand', 'Sega'),
    (dict(details='text'), 'esrb', None), (dict(details={'Date First Available': 'October 2, 2001'}), 'year', 2001), (dict(details={'Date First Available': 'soon'}), 'year', None), (dict(store=None, details={}), 'brand', None)])
def test_an_item_field_by_its_rule(tmp_path, change, column, want):
    x = read_items(write(tmp_path/'m.jsonl', ITEM | change, ITEM | dict(parent_asin='B2')), {})
    assert x[column].to_list()[0] == want and len(x) == 2

def test_item_types_and_columns(tmp_path):
    x = read_items(write(tmp_path/'m.jsonl', ITEM), {})
    L = pl.List(pl.String)
    want = dict(item_id=pl.String, title=pl.String, description=pl.String, features=L, categories=L, price=pl.Float64, rating=pl.Float64, rating_number=pl.Int64, year=pl.Int64, brand=pl.String, store=pl.String, main_category=pl.String, esrb=pl.String)
    assert dict(x.schema) == want
    assert flat(x)['categories'][0] == 'Video Games > PC' and flat(x)['features'][0] == 'f'

def test_the_first_line_of_an_item_wins(tmp_path):
    dropped = {}
    x = read_items(write(tmp_path/'m.jsonl', *[ITEM | dict(title=f't{i}') for i in range(50)]), dropped)
    assert x['title'].to_list() == ['t0'] and dropped == {'repeated items': 49}

# histories

def test_same_stages_as_the_original(tmp_path):
    "Longest history of each user, items without metadata out, at least 3, the last 100"
    ids = [f'B{i:03d}' for i in range(130)]
    write(tmp_path/'meta_Video_Games.jsonl', *[ITEM | dict(parent_asin=i) for i in ids[:120]])
    rows = ['user_id,parent_asin,rating,timestamp,history']
    for user, bought in dict(long=ids[:110], half=ids[:3] + ids[120:125], gone=ids[1:3] + ids[120:122], none=ids[120:124]).items():
        rows += [f'{user},{b},{k % 5 + 1}.0,{1000 + k},{" ".join(bought[:k])}' for k, b in enumerate(bought)]
    (tmp_path/'Video_Games.train.csv').write_text('\n'.join([rows[0], *reversed(rows[1:])]) + '\n')
    items, h, dropped = amazon('Video_Games', folder=tmp_path, offline=True)
    assert dropped == {'5-core rows that repeat a shorter history': 110 + 8 + 4 + 4 - 4, 'purchases of items not in the table': 5 + 2 + 4, 'users with fewer than 3 purchases': 2, 'histories cut to their last 100': 1}
    assert h['user_id'].to_list() == ['half', 'long'] and h['item_ids'].to_list() == [ids[:3], ids[10:110]]
    assert h['timestamps'].to_list()[0] == [1000, 1001, 1002] and h['ratings'].to_list()[0] == [1.0, 2.0, 3.0]

def by_hand(path, known, least=3, last=100):
    "The original's own steps, in plain Python, on rows of five fields"
    best = {}
    for user, item, _, when, past in (l.split(',') for l in path.read_text().splitlines()[1:]):
        if user not in best or len(past.split()) > len(best[user]) - 1: best[user] = past.split() + [item]
    kept = {u: [i for i in s if i in known] for u, s in best.items()}
    return len(best), {u: s[-last:] for u, s in kept.items() if len(s) >= least}

def test_5core_equals_plain_python(tmp_path):
    write_like_amazon(tmp_path, 'Video_Games', 600, 30_000, malformed=0, seed=5)
    items, h, dropped = amazon('Video_Games', folder=tmp_path, offline=True, min_title=30, min_description=101, last=8)
    users, want = by_hand(tmp_path/'Video_Games.train.csv', set(items['item_id']), last=8)
    assert dict(zip(h['user_id'], h['item_ids'].to_list())) == want and len(want) > 50
    assert dropped['users with fewer than 3 purchases'] == users - len(want)

def test_reviews_keep_the_earliest_and_the_order_of_the_file(tmp_path):
    x = pl.DataFrame(dict(user_id=['u']*4, item_id=['b', 'z', 'a', 'b'], rating=[1., 2, 3, 4], timestamp=[9, 5, 5, 1]))
    dropped = {}
    assert in_order(x, dropped)['item_id'].to_list() == ['b', 'z', 'a'] and dropped == {'repeated purchases': 1}

def test_raw_reviews_equal_plain_python(like):
    folder, _ = like
    items, h, _ = amazon('Video_Games', 'reviews', folder=folder, offline=True, min_history=2, last=None)
    known, per = set(items['item_id']), {}
    for raw in (folder/'Video_Games.jsonl').read_bytes().split(b'\n'):
        try: o = json.loads(raw.decode('utf-8', 'replace'))
        except ValueError: continue
        ok = all(isinstance(o.get(k), str) and re.fullmatch('[A-Za-z0-9_-]+', o[k]) for k in ('user_id', 'parent_asin')) and isinstance(o.get('timestamp'), int)
        if ok: per.setdefault(o['user_id'], []).append((o['timestamp'], o['parent_asin']))
    want = {}
    for u, s in per.items():
        seen = list(dict.fromkeys(i for _, i in sorted(s, key=lambda p: p[0])))
        if len(kept := [i for i in seen if i in known]) >= 2: want[u] = kept
    assert dict(zip(h['user_id'], h['item_ids'].to_list())) == want
    assert all(t == sorted(t) for t in h['timestamps'].to_list())

def test_min_reviews_drops_items_and_their_purchases(like):
    folder, _ = like
    items, h, dropped = amazon('Video_Games', folder=folder, offline=True, min_reviews=30)
    lost = ('items', 'broken lines among the items', 'empty lines among the items')
    assert 0 < len(items) == 2000 - sum(n for why, n in dropped.items() if why.startswith(lost))
    assert set(h['item_ids'].explode()) <= set(items['item_id']) and dropped['purchases of items with fewer than 30'] > 0
    everything = amazon('Video_Games', folder=folder, offline=True)
    assert len(everything[0]) == len(items) + dropped['items with fewer than 30 purchases'] and len(everything[1]) > len(h)

def test_packed_files_give_the_same(like, tmp_path):
    folder, _ = like
    for p in folder.iterdir(): (tmp_path/f'{p.name}.gz').write_bytes(gzip.compress(p.read_bytes(), 1))
    for kind in ('5core', 'reviews'):
        a, b = amazon('Video_Games', kind, folder=folder, offline=True), amazon('Video_Games', kind, folder=tmp_path, offline=True)
        assert a[0].equals(b[0]) and a[1].equals(b[1]) and a[2] == b[2]

def test_same_rows_with_one_thread(like):
    folder, _ = like
    code = "import sys; from semantic_ids.amazon import amazon; i, h, d = amazon('Video_Games', 'reviews', folder=sys.argv[1], offline=True); print(i.hash_rows(seed=0).sum(), h.write_ndjson().__hash__() and __import__('hashlib').sha256(h.write_ndjson().encode()).hexdigest(), d)"
    out = [subprocess.run([sys.executable, '-c', code, str(folder)], env=os.environ | {'PYTHONPATH': str(ROOT), 'POLARS_MAX_THREADS': n}, capture_output=True, text=True, check=True).stdout for n in ('1', '2')]
    assert out[0] == out[1]

# refusals

def test_categories():
    assert len(CATEGORIES) == 34 == len(set(CATEGORIES)) and {'Video_Games', 'Baby_Products'} < set(CATEGORIES)
    assert category_of('cds and vinyl') == 'CDs_and_Vinyl'
    with pytest.raises(InputError, match='Baby_Products'): category_of('Baby')
    with pytest.raises(InputError, match='All_Beauty'): category_of('qqqq')

@pytest.mark.parametrize('kw', [dict(histories='6core'), dict(histories='items'), dict(min_title=-1), dict(min_description='long'), dict(min_history=0), dict(last=0), dict(min_reviews=1.5), dict(min_title=True), dict(min_history=None)])
def test_settings_that_make_no_sense(kw, tmp_path):
    with pytest.raises(InputError, match=next(iter(kw))): amazon('Video_Games', folder=tmp_path, offline=True, **kw)

def test_nothing_left_is_an_error(like, tmp_path):
    folder, _ = like
    with pytest.raises(InputError, match='no items left.*title under 999'): amazon('Video_Games', folder=folder, offline=True, min_title=999)
    with pytest.raises(InputError, match='no histories left'): amazon('Video_Games', folder=folder, offline=True, min_history=5000)
    write(tmp_path/'meta_Video_Games.jsonl', b'<html>', b'no such file', b'</html>'); (tmp_path/'Video_Games.train.csv').write_bytes((folder/'Video_Games.train.csv').read_bytes())
    with pytest.raises(InputError, match='no items left.*broken lines'): amazon('Video_Games', folder=tmp_path, offline=True)
    (tmp_path/'meta_Video_Games.jsonl').write_bytes(b'')
    with pytest.raises(InputError, match='file is empty'): amazon('Video_Games', folder=tmp_path, offline=True)

def test_a_cut_packed_file_and_a_wrong_table(like, tmp_path):
    folder, _ = like
    for p in folder.iterdir(): (tmp_path/f'{p.name}.gz').write_bytes(gzip.compress(p.read_bytes(), 1))
    whole = (tmp_path/'meta_Video_Games.jsonl.gz').read_bytes()
    (tmp_path/'meta_Video_Games.jsonl.gz').write_bytes(whole[:len(whole)//2])
    with pytest.raises(InputError, match='cut short'): amazon('Video_Games', folder=tmp_path, offline=True)
    (tmp_path/'meta_Video_Games.jsonl.gz').write_bytes(whole)
    (tmp_path/'Video_Games.train.csv.gz').write_bytes(gzip.compress(b'user_id,parent_asin,rating,timestamp\nA,B,5,1\n'))
    with pytest.raises(InputError, match='first line.*history'): amazon('Video_Games', folder=tmp_path, offline=True)

def test_the_bench_of_reviews_agrees_with_pandas():
    pytest.importorskip('pandas')
    out = subprocess.run([sys.executable, str(ROOT/'tests'/'bench'/'reviews.py'), '--items', '800', '--reviews', '10000', '--repeat', '1'], capture_output=True, text=True, check=True).stdout
    last = json.loads(out.splitlines()[-1])
    assert set(last) == {'name', 'ours', 'peer', 'ratio', 'unit', 'n'} and last['name'] == 'reviews' and 'every malformed line accounted for' in out

def test_short_titles_of_real_games(data_folder):
    "What B10 costs where purchases are known, and that the stored count is the measured one"
    from semantic_ids.runs import results
    sys.path.insert(0, str(ROOT/'tests'/'bench'))
    from reviews import short_titles
    got = short_titles(data_folder)
    assert got == results('reviews')['short_titles']
    assert .1 < got['purchases_of_short']/got['purchases'] < .25

def test_real_items_pass_the_rules(data_folder, tmp_path):
    "A thousand real items, written as Amazon's lines, come back as they were"
    x = pl.read_parquet(data_folder/'video_games_2023_sample'/'items.parquet')
    rows = [dict(parent_asin=r['parent_asin'], title=r['title'], description=[r['description_text']], features=[r['features_text']], categories=r['categories_text'].split(' > '), main_category=r['main_category'], store=r['store'],
                 details={}, price=float(r['price']) if r['price'] else None, average_rating=float(r['average_rating']), rating_number=r['rating_number']) for r in x.to_dicts()]
    dropped = {}
    got = flat(read_items(write(tmp_path/'m.jsonl', *rows), dropped)).join(x, left_on='item_id', right_on='parent_asin', suffix='_was')
    assert len(got) == 1000 and not dropped
    assert (got['categories'] == got['categories_text']).all() and (got['title'] == got['title_was'].str.strip_chars()).all()
    assert got['price'].null_count() == (x['price'] == '').sum()

# the network, played by a server on this machine

CONTENT = b''.join(json.dumps(ITEM | dict(parent_asin=f'B{i:06d}', description=['x'*7000])).encode() + b'\n' for i in range(6000))
NAME = FILES['items'].format('Video_Games')

class Hub(BaseHTTPRequestHandler):
    "Answers like the Hub: HEAD with a tag, GET with ranges; `state` says what goes wrong"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def head(self, status, length, extra=()):
        s = self.server.state
        self.send_response(status)
        for k, v in dict({'Content-Length': str(length), 'ETag': f'"{s["etag"]}"', 'X-Linked-Etag': f'"{s["etag"]}"', 'X-Linked-Size': str(len(CONTENT)), 'X-Repo-Commit': 'c'*40, 'Accept-Ranges': 'bytes'}, **dict(extra)).items(): self.send_header(k, v)
        self.end_headers()
    def missing(self):
        self.send_response(404); self.send_header('X-Error-Code', 'EntryNotFound'); self.send_header('Content-Length', '0'); self.end_headers()
    def do_HEAD(self):
        self.server.state['log'].append(('HEAD', self.path, None))
        self.head(200, len(CONTENT)) if self.path.endswith(NAME) else self.missing()
    def do_GET(self):
        s, range_ = self.server.state, self.headers.get('Range')
        s['log'].append(('GET', self.path, range_))
        if not self.path.endswith(NAME): return self.missing()
        start = int(re.match(r'bytes=(\d+)-', range_).group(1)) if range_ else 0
        part = CONTENT[start:]
        self.head(206 if range_ else 200, len(part), {'Content-Range': f'bytes {start}-{len(CONTENT)-1}/{len(CONTENT)}'} if range_ else {})
        step = 1 << 16
        for i in range(0, len(part), step):
            try: self.wfile.write(part[i:i+step])
            except OSError: return
            if s['drop'] and i > len(part)//2: s['drop'] = False; self.close_connection = True; self.connection.shutdown(2); return
            if s['slow'] and i > len(part)//2: s['half'].set(); time.sleep(.3)

@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.daemon_threads = True
    server.state = dict(etag=hashlib.sha256(CONTENT).hexdigest(), slow=False, drop=False, half=threading.Event(), log=[])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(); server.server_close()

CODE = "import sys; from semantic_ids.amazon import fetch\nfrom semantic_ids.runs import InputError\ntry: print(fetch(sys.argv[1], 'items', sys.argv[2], offline=sys.argv[3] == 'off' or None))\nexcept InputError as e: sys.exit(f'TOLD {e}')"

def start(hub, folder, category='Video_Games', off='on', port=None, **env):
    env = {k: v for k, v in os.environ.items() if k not in ('HF_HUB_OFFLINE', 'HF_TOKEN', 'HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy')} | dict(
        HF_ENDPOINT=f'http://127.0.0.1:{port or hub.server_address[1]}', PYTHONPATH=str(ROOT), HF_HOME=str(folder/'home'), NO_PROXY='*', HF_HUB_DISABLE_TELEMETRY='1') | env
    return subprocess.Popen([sys.executable, '-c', CODE, category, str(folder), off], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def done(p): out, err = p.communicate(timeout=120); return p.returncode, out.strip(), err

def told(err):
    "The one line of the refusal"
    lines_ = [l for l in err.splitlines() if l.startswith('TOLD ')]
    assert len(lines_) == 1 and 'Traceback' not in err, err
    return lines_[0]

def gets(hub): return [g for g in hub.state['log'] if g[0] == 'GET' and g[1].endswith(NAME)]

def test_download_checked_and_made_once(hub, tmp_path):
    rc, out, err = done(start(hub, tmp_path))
    assert rc == 0 and Path(out) == tmp_path/NAME and Path(out).read_bytes() == CONTENT, err
    assert len(gets(hub)) == 1 and f'/datasets/{REPO}/resolve/main/{NAME}' in gets(hub)[0][1]
    assert 'downloading' in err
    before = len(hub.state['log'])
    rc, out, _ = done(start(hub, tmp_path))
    assert rc == 0 and len(hub.state['log']) == before
    rc, out, _ = done(start(hub, tmp_path, off='off'))
    assert rc == 0 and len(hub.state['log']) == before

def test_killed_in_the_middle_goes_on_where_it_stopped(hub, tmp_path):
    hub.state['slow'] = True
    p = start(hub, tmp_path)
    assert hub.state['half'].wait(60)
    time.sleep(.5); p.kill(); p.communicate()
    assert not (tmp_path/NAME).exists()
    hub.state['slow'] = False
    rc, out, err = done(start(hub, tmp_path))
    assert rc == 0 and Path(out).read_bytes() == CONTENT, err
    assert gets(hub)[-1][2] and int(gets(hub)[-1][2].split('=')[1].split('-')[0]) > 0

def test_a_dropped_line_is_taken_up_again(hub, tmp_path):
    hub.state['drop'] = True
    rc, out, err = done(start(hub, tmp_path))
    assert rc == 0 and Path(out).read_bytes() == CONTENT, err
    assert len(gets(hub)) == 2 and gets(hub)[1][2]

def test_quiet_says_nothing(hub, tmp_path):
    rc, out, err = done(start(hub, tmp_path, SEMANTIC_IDS_QUIET='1'))
    assert rc == 0 and err == ''

def test_wrong_content_is_refused_and_deleted(hub, tmp_path):
    hub.state['etag'] = hashlib.sha256(b'something else').hexdigest()
    rc, out, err = done(start(hub, tmp_path))
    assert rc == 1 and 'not what the Hub announced' in told(err)
    assert not (tmp_path/NAME).exists() and not list(tmp_path.rglob('meta_Video_Games.jsonl*'))
    hub.state['etag'] = hashlib.sha256(CONTENT).hexdigest()
    assert done(start(hub, tmp_path))[0] == 0

def test_offline_asks_nobody(hub, tmp_path):
    for kw in (dict(off='off'), dict(HF_HUB_OFFLINE='1')):
        rc, _, err = done(start(hub, tmp_path, **kw))
        assert rc == 1 and 'network is switched off' in told(err) and f'{NAME}.gz' in told(err) and str(tmp_path) in told(err)
    assert hub.state['log'] == []

def test_no_network_is_one_line_with_what_to_do(tmp_path):
    rc, _, err = done(start(None, tmp_path, port=9))
    assert rc == 1 and 'cannot be downloaded' in told(err) and 'put it into' in told(err)

def test_a_file_the_hub_has_not(hub, tmp_path):
    rc, _, err = done(start(hub, tmp_path, category='Books'))
    assert rc == 1 and 'has no file' in told(err)

def test_files_put_there_by_hand_are_found(tmp_path):
    for place in (Path('meta_Video_Games.jsonl'), Path('meta_Video_Games.jsonl.gz'), Path(NAME), Path(NAME + '.gz')):
        folder = tmp_path/str(place).replace('/', '_')
        (folder/place).parent.mkdir(parents=True); (folder/place).write_bytes(b'x')
        assert fetch('Video_Games', 'items', folder, offline=True) == folder/place
    with pytest.raises(InputError, match='put it into'): fetch('Video_Games', 'items', tmp_path/'nowhere', offline=True)
