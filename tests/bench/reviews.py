"""Amazon Reviews 2023 at full size: our reader against pandas, the same steps, each in its own process.

    python tests/bench/reviews.py                        137,269 items and 4.6 M reviews, 1 % malformed
    python tests/bench/reviews.py --items 3000 --reviews 60000
    python tests/bench/reviews.py --save                 also writes semantic_ids/results/reviews.json

Read items and reviews, leave out what is malformed, filter by text as the original does (title over 20 characters,
description over 100), put purchases in order, once each, drop unknown items and users with fewer than 3, keep the last 100.
The last line is one JSON object; the counts of both sides and the histories themselves must be equal.
"""
import argparse, hashlib, json, os, platform, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MIN_TITLE, MIN_DESCRIPTION, MIN_HISTORY, LAST = 21, 101, 3, 100

def ours(folder):
    from semantic_ids.amazon import amazon
    start = time.perf_counter()
    items, histories, dropped = amazon('Video_Games', 'reviews', folder=folder, offline=True, min_title=MIN_TITLE, min_description=MIN_DESCRIPTION,
                                       min_history=MIN_HISTORY, last=LAST)
    seconds = time.perf_counter() - start
    return seconds, dropped, items['item_id'].to_list(), items['price'].sum(), zip(histories['user_id'], histories['item_ids'], histories['timestamps'], histories['ratings'])

def objects(path, fields, counts, what, step=200_000):
    "Frames of `step` rows, malformed lines counted: pandas' own reader stops at the first"
    import pandas as pd
    rows, empty, broken = [], 0, 0
    with open(path, encoding='utf-8', errors='replace', newline='\n') as f:
        for line in f:
            if line == '\n': empty += 1; continue
            try: o = json.loads(line)
            except ValueError: broken += 1; continue
            if not isinstance(o, dict): broken += 1; continue
            rows.append(tuple(o.get(k) for k in fields))
            if len(rows) == step: yield pd.DataFrame(rows, columns=fields); rows = []
    if rows: yield pd.DataFrame(rows, columns=fields)
    counts[f'empty lines among the {what}'], counts[f'broken lines among the {what}'] = empty, broken

ID = re.compile(r'[A-Za-z0-9_-]+')

def good_id(s): return s.map(lambda v: isinstance(v, str) and ID.fullmatch(v) is not None).astype(bool)

def text_list(v):
    if isinstance(v, list): return [t for t in (x.strip() for x in v if isinstance(x, str)) if t]
    return [v.strip()] if isinstance(v, str) and v.strip() else []

def year(d):
    m = re.search(r'\b((?:19|20)\d\d)\b', str(d.get('Date First Available') or d.get('Publication date') or ''))
    return int(m.group(1)) if m else None

def peer_items(path, dropped):
    import pandas as pd
    fields = ['parent_asin', 'title', 'description', 'features', 'categories', 'main_category', 'store', 'details', 'price', 'average_rating', 'rating_number']
    parts, no_id = [], 0
    for x in objects(path, fields, dropped, 'items', 50_000):
        ok = good_id(x['parent_asin']); no_id += int((~ok).sum()); x = x[ok].copy()
        for c in ('description', 'features', 'categories'): x[c] = x[c].map(text_list)
        x['description'] = x['description'].str.join(' ')
        details = x.pop('details').map(lambda d: d if isinstance(d, dict) else {})
        x['brand'] = details.map(lambda d: d.get('Brand') or d.get('Manufacturer') or d.get('Publisher')).fillna(x['store'])
        x['year'], x['esrb'] = details.map(year), details.map(lambda d: d.get('Rated'))
        x['title'] = x['title'].str.strip()
        parts.append(x)
    x = pd.concat(parts, ignore_index=True)
    dropped['items without an id'] = no_id
    once = x.drop_duplicates('parent_asin')
    dropped['repeated items'] = len(x) - len(once)
    price = pd.to_numeric(once['price'].map(lambda v: v.strip().lstrip('$').replace(',', '') if isinstance(v, str) else v), errors='coerce')
    dropped['prices that are no number, emptied'] = int((once['price'].notna() & price.isna()).sum())
    once = once.assign(price=price, average_rating=pd.to_numeric(once['average_rating'], errors='coerce'), rating_number=pd.to_numeric(once['rating_number'], errors='coerce'))
    for c, n in (('title', MIN_TITLE), ('description', MIN_DESCRIPTION)):
        ok = once[c].str.len().fillna(0) >= n
        dropped[f'items with a {c} under {n} characters'] = int((~ok).sum())
        once = once[ok]
    return once.sort_values('parent_asin')

def peer(folder):
    import pandas as pd
    start = time.perf_counter()
    dropped = {}
    items = peer_items(Path(folder)/'meta_Video_Games.jsonl', dropped)
    fields, parts = ['user_id', 'parent_asin', 'rating', 'timestamp'], []
    no_id = no_time = no_stars = 0
    for x in objects(Path(folder)/'Video_Games.jsonl', fields, dropped, 'reviews'):
        ok = good_id(x['user_id']) & good_id(x['parent_asin']); no_id += int((~ok).sum()); x = x[ok]
        when = pd.to_numeric(x['timestamp'], errors='coerce'); ok = when > 0; no_time += int((~ok).sum())
        x, when = x[ok], when[ok].astype('int64')
        stars = pd.to_numeric(x['rating'], errors='coerce'); stars = stars.where(stars.between(0, 5))
        no_stars += int((x['rating'].notna() & stars.isna()).sum())
        parts.append(pd.DataFrame(dict(user_id=x['user_id'].astype('str'), item_id=x['parent_asin'].astype('str'), rating=stars, timestamp=when)))
    x = pd.concat(parts, ignore_index=True); del parts
    dropped |= {'reviews without a user or an item': no_id, 'reviews without a time': no_time, 'reviews whose rating is no number of stars': no_stars}
    x = x.sort_values('timestamp', kind='stable')
    once = x.drop_duplicates(['user_id', 'item_id'])
    dropped['repeated purchases'], users = len(x) - len(once), once['user_id'].nunique()
    x = once[once['item_id'].isin(items['parent_asin'])]
    dropped['purchases of items not in the table'] = len(once) - len(x)
    x = x[x.groupby('user_id')['item_id'].transform('size') >= MIN_HISTORY]
    h = x.groupby('user_id', sort=True).agg(list)
    dropped[f'users with fewer than {MIN_HISTORY} purchases'] = users - len(h)
    dropped[f'histories cut to their last {LAST}'] = int((h['item_id'].map(len) > LAST).sum())
    h = h.map(lambda v: v[-LAST:])
    seconds = time.perf_counter() - start
    return seconds, dropped, items['parent_asin'].tolist(), items['price'].sum(), zip(h.index, h['item_id'], h['timestamp'], h['rating'])

def measure(side, folder):
    "In this process: seconds, peak memory, counts and the hash of what came out"
    from semantic_ids.runs import peak_rss_mb
    used = lambda: sum(os.times()[:2])
    before = used()
    seconds, dropped, items, prices, histories = dict(ours=ours, pandas=peer)[side](folder)
    cpu = used() - before
    peak, h, users, purchases = peak_rss_mb(), hashlib.sha256(), 0, 0
    for user, ids, times, stars in histories:
        told = [None if s is None or s != s else float(s) for s in stars]
        h.update(json.dumps([user, list(ids), [int(t) for t in times], told]).encode()); users += 1; purchases += len(ids)
    print(json.dumps(dict(seconds=round(seconds, 2), cpu_seconds=round(cpu, 2), peak_mb=peak, dropped={k: int(n) for k, n in dropped.items() if n}, items=len(items), users=users, purchases=purchases,
                          prices=round(float(prices), 2), items_hash=hashlib.sha256('\n'.join(items).encode()).hexdigest(), histories_hash=h.hexdigest())))

def make(folder, items, reviews):
    "The generated files, and what is damaged in them"
    from semantic_ids.amazon import write_like_amazon
    print(json.dumps(write_like_amazon(folder, 'Video_Games', items, reviews, malformed=.01, seed=0)))

def child(*args):
    "Another process, on all cores; this one stays small, because a child starts with its parent's peak memory"
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_NUM_THREADS', 'POLARS_MAX_THREADS')} | {'PYTHONPATH': str(ROOT)}
    out = subprocess.run([sys.executable, __file__, *map(str, args)], env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])

def load(folder):
    "Read both files once, so that neither side pays for a cold disk"
    for p in Path(folder).iterdir():
        with open(p, 'rb') as f:
            while f.read(1 << 24): pass

def short_titles(folder):
    "What the original's title rule costs on real items: the 2018 games, where purchases are known"
    import polars as pl
    items, histories = pl.read_parquet(folder/'video_games'/'items.parquet'), pl.read_parquet(folder/'video_games'/'sequences.parquet')
    key = next(c for c in ('item_id', 'parent_asin', 'asin') if c in items.columns)
    ids = items.filter(pl.col('title').str.len_chars() <= MIN_TITLE - 1)[key].cast(pl.String).implode()
    bought = histories.select(pl.col('item_ids').cast(pl.List(pl.String)).explode())['item_ids']
    return dict(source='Amazon 2018 Video Games 5-core', items=len(items), titled=int(items['title'].is_not_null().sum()), short=len(ids[0]),
                purchases=len(bought), purchases_of_short=int(bought.is_in(ids).sum()))

def save(row, truth):
    sys.path.insert(0, str(ROOT))
    import pandas, polars
    from semantic_ids.runs import write_json
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    data = Path(os.environ.get('SEMANTIC_IDS_DATA', ROOT.parent/'shared'/'data'))
    note = dict(command='python tests/bench/reviews.py --save', device=f'{os.cpu_count()} CPU cores', seed=0, versions=dict(python=platform.python_version(), polars=polars.__version__, pandas=pandas.__version__),
                date=time.strftime('%Y-%m-%d'), commit=commit, malformed=truth)
    if data.is_dir(): note['short_titles'] = short_titles(data)
    write_json(ROOT/'semantic_ids'/'results'/'reviews.json', dict(rows=row, **note))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--items', type=int, default=137_269); ap.add_argument('--reviews', type=int, default=4_600_000)
    ap.add_argument('--repeat', type=int, default=3, help='the quicker run of each side counts'); ap.add_argument('--folder'); ap.add_argument('--side', choices=['make', 'ours', 'pandas']); ap.add_argument('--save', action='store_true')
    a = ap.parse_args()
    if a.side == 'make': return make(a.folder, a.items, a.reviews)
    if a.side: return measure(a.side, a.folder)
    folder = Path(a.folder or tempfile.mkdtemp())
    try:
        start = time.perf_counter()
        truth = child('--side', 'make', '--folder', folder, '--items', a.items, '--reviews', a.reviews)
        mb = {p.name: round(p.stat().st_size/1e6) for p in sorted(folder.iterdir())}
        print(f'made in {time.perf_counter()-start:.0f} s: {mb} MB', flush=True)
        load(folder)
        rows = {}
        for side in ('ours', 'pandas'):
            runs = [child('--side', side, '--folder', folder) | dict(load=round(os.getloadavg()[0], 1)) for _ in range(a.repeat)]
            rows[side] = r = min(runs, key=lambda r: r['seconds'])
            print(f"{side:7s}{r['seconds']:8.1f} s  {r['cpu_seconds']:6.1f} s of CPU  load {r['load']}  peak {r['peak_mb']:,.0f} MB  {r['items']:,} items, {r['users']:,} users, {r['purchases']:,} purchases", flush=True)
        o, p = rows['ours'], rows['pandas']
        for k in ('dropped', 'items', 'users', 'purchases', 'prices', 'items_hash', 'histories_hash'): assert o[k] == p[k], (k, o[k], p[k])
        for what in ('items', 'reviews'): assert {k: n for k, n in o['dropped'].items() if k in truth[what]} == truth[what], what
        print('both sides: same items, same histories, same counts, and every malformed line accounted for')
        if a.save: save([dict(model='semantic_ids', **o, file_mb=mb), dict(model='pandas', **p)], truth)
        print(json.dumps(dict(name='reviews', ours=o['seconds'], peer=p['seconds'], ratio=round(p['seconds']/o['seconds'], 2), unit='s', n=a.reviews)))
    finally:
        if not a.folder: shutil.rmtree(folder)

if __name__ == '__main__': main()
