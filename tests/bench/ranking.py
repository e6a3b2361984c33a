"""Full ranking of 50,000 users over 17,000 items by a SASRec of default size, against sorting every row with numpy.

    python tests/bench/ranking.py
    python tests/bench/ranking.py --users 5000                     a quick look
    python tests/bench/ranking.py --protocols FOLDER real histories (folder or catalogue) under three protocols

Weights and histories (20 items each) are random. Both sides score with the same model, leave out what was bought and
end with a rank for each user; the peer argsorts each row and looks the target up, on fewer users. `ours` and `peer` are
CPU seconds of one thread for all users, the peer's scaled from its own number (other work on the machine stretches `wall`); ratio above 1: ours is faster. The ranks are compared.
"""
import argparse, json, os, time
from pathlib import Path
import numpy as np
import torch
from semantic_ids import metrics as M
from semantic_ids.histories import Ragged, Split, encode, split
from semantic_ids.runs import peak_rss_mb

def made(users, items, length, seed=42):
    "A split of random histories without repeats"
    g = np.random.default_rng(seed)
    h = np.stack([g.choice(items, length + 1, replace=False) for _ in range(users)])
    past = Ragged(h[:, :-2].reshape(-1), np.arange(users + 1) * (length - 1))
    return Split('loo', past, h[:, -2], h[:, -1], np.arange(users), Ragged.of([]))

def sorted_ranks(score_fn, s, batch=512):
    "The peer: sort each row, look the target up"
    out, inputs = [], s.inputs()
    for i in range(0, len(s), batch):
        r = np.arange(i, min(i + batch, len(s)))
        seen = inputs.take(r)
        x = score_fn(seen, r).numpy()
        x[np.repeat(np.arange(len(r)), seen.lengths), seen.values] = -np.inf
        out.append((np.argsort(-x, 1) == s.test[r][:, None]).argmax(1) + 1)
    return np.concatenate(out)

def few(s, n):
    "The first n users of a split"
    return Split('loo', s.train.take(np.arange(n)), s.valid[:n], s.test[:n], s.users[:n], s.extra)

def bench(a):
    from semantic_ids.sasrec import SASRec
    torch.manual_seed(42)
    model, s = SASRec(a.items), made(a.users, a.items, 20)
    small, row = few(s, min(a.peer_users, a.users)), {}
    for name, f, cut in (('scoring alone', lambda m, c: [m(c.inputs().take(np.arange(i, min(i + 512, len(c)))), None) for i in range(0, len(c), 512)] and None, small),
                         ('peer', sorted_ranks, small), ('ours', M.ranks, s)):
        start, cpu = time.perf_counter(), time.process_time()
        got = f(model.score, cut)
        row[name], row[f'{name} cpu'] = ((now - t) * len(s) / len(cut) for now, t in ((time.perf_counter(), start), (time.process_time(), cpu)))
        print(f"{name}: {row[name]:.1f} s, {row[f'{name} cpu']:.1f} s of CPU for {len(s):,} users" + (f' (from {len(cut):,})' if len(cut) < len(s) else '') + f'; load {os.getloadavg()[0]:.1f}', flush=True)
        if name == 'peer': theirs = got
    print(f'ranks equal to the peer\'s: {np.mean(got[:len(small)] == theirs):.1%}; peak {peak_rss_mb():.0f} MB')
    print(json.dumps(dict(name='ranking', ours=round(row['ours cpu'], 2), peer=round(row['peer cpu'], 2), ratio=round(row['peer cpu'] / row['ours cpu'], 2), unit='seconds of CPU', n=a.users, wall=round(row['ours'], 2),
                          items=a.items, users_per_second=round(a.users / row['ours cpu']), peer_name=f'numpy argsort of every row, from {len(small):,} users')))

def figures(f, s, protocol):
    "One row: a recommender under one protocol"
    from semantic_ids.slices import bootstrap
    start = time.perf_counter()
    r = M.sampled1000(f, s) if protocol == 'sampled1000' else M.ranks(f, s)
    row = M.summarize(r) | M.places(r)
    return dict(row, ci95=dict(zip(('low', 'high'), bootstrap(r))), seconds=round(time.perf_counter() - start, 1), seen_excluded=protocol != 'sampled1000')

def protocols(a):
    from semantic_ids.catalogue import load
    c = load(a.protocols)
    r = encode(c)
    items, values = np.unique(r.values, return_inverse=True)
    r, n, rows = Ragged(values, r.offsets), len(items), []
    for protocol in ('sampled1000', 'new_users', 'loo'):
        s = split(r, 'loo' if protocol == 'loo' else 'new_users')
        for name in ('popularity', 'last_item', 'item_knn'):
            rows.append(dict(model=name, protocol=protocol, **figures(getattr(M, name)(s, n), s, protocol)))
            print(name, protocol, {k: round(v, 4) for k, v in rows[-1].items() if k in ('hit@10', 'ndcg@10', 'mrr', 'mean_rank', 'median_rank')}, rows[-1]['ci95'], flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--users', type=int, default=50_000)
    p.add_argument('--items', type=int, default=17_000)
    p.add_argument('--peer-users', type=int, default=2_000)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--protocols', help='folder or name of a catalogue with histories')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    protocols(a) if a.protocols else bench(a)

if __name__ == '__main__': main()
