"""One million synthetic vectors to unique IDs in a trie: seconds per step and peak memory, against Python dictionaries.

    python tests/bench/million.py
    python tests/bench/million.py --n 100000 --steps 50     a quick look

The peer numbers the items of each bucket in the order of item_id with a dictionary and builds a tree of nested
dictionaries, from the same codes; `ours` and `peer` are these two steps alone. `total` holds all our steps.
"""
import argparse, gc, json, resource, time
import numpy as np

def synthetic(n, d, seed, topics=5000, rank=48):
    "Topics of uneven size in few directions of decaying weight, items spread about their topic, noise in all dimensions; unit length"
    rng = np.random.default_rng(seed)
    spread = np.arange(1, rank + 1, dtype=np.float32) ** -.5
    turn = spread[:, None] * rng.standard_normal((rank, d), dtype=np.float32)
    topic, share = rng.standard_normal((topics, rank), dtype=np.float32), rng.dirichlet(np.full(topics, 2.))
    x = np.empty((n, d), np.float32)
    for lo in range(0, n, 65536):
        m = min(n - lo, 65536)
        z = topic[rng.choice(topics, m, p=share)] + .5 * rng.standard_normal((m, rank), dtype=np.float32)
        c = z @ turn + .2 * rng.standard_normal((m, d), dtype=np.float32)
        x[lo:lo + m] = c / np.linalg.norm(c, axis=1, keepdims=True)
    return x

def dictionaries(codes, item_ids):
    "The peer: bucket sizes in one dictionary, the tree in nested ones"
    seen, root = {}, {}
    for i in sorted(range(len(item_ids)), key=item_ids.__getitem__):
        row = tuple(codes[i])
        rank = seen[row] = seen.get(row, -1) + 1
        node = root
        for c in row: node = node.setdefault(c, {})
        node[rank] = i
    return root

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1_000_000)
    p.add_argument('--dim', type=int, default=384)
    p.add_argument('--steps', type=int, default=200, help='training steps of the RQ-VAE, on a sample')
    p.add_argument('--sample', type=int, default=50_000)
    p.add_argument('--seed', type=int, default=42)
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    import torch
    from semantic_ids.ids import Trie, make_ids
    from semantic_ids.rqvae import RQVAE
    torch.set_num_threads(a.threads)
    took = {}
    def step(name, f):
        start = time.perf_counter(); out = f(); took[name] = time.perf_counter() - start
        print(f'{name:12} {took[name]:7.2f} s   peak {peak():.2f} GB', flush=True)
        return out
    x = synthetic(a.n, a.dim, a.seed)
    item_ids = [f'B{i:09d}' for i in np.random.default_rng(a.seed).permutation(a.n)]
    print(f'{a.n:,} vectors of {a.dim} dimensions made; peak {peak():.2f} GB', flush=True)
    model = step('train', lambda: RQVAE(a.dim, n_levels=3, codebook_size=256).fit(x[:a.sample], a.seed, steps=a.steps))
    codes = step('encode', lambda: model.encode(x))
    ids = step('unique', lambda: make_ids(codes, item_ids, 256))
    trie = step('trie', lambda: Trie(ids.codes))
    top = peak()
    print(f'distinct codes {trie.sizes[-2]:,}, largest bucket {ids.codes[:, -1].max() + 1}')
    del x; gc.collect()
    rows = codes.tolist()
    tree = step('dictionaries', lambda: dictionaries(rows, item_ids))
    assert all(tree[c[0]][c[1]][c[2]][c[3]] == i for i, c in enumerate(ids.codes[:1000].tolist()))
    ours, peer, total = took['unique'] + took['trie'], took['dictionaries'], sum(v for k, v in took.items() if k != 'dictionaries')
    print(json.dumps(dict(name='million', ours=round(ours, 2), peer=round(peer, 2), ratio=round(peer / ours, 2), unit='s', n=a.n,
                          total=round(total, 1), encode=round(took['encode'], 2), peak_gb=round(top, 2))))

if __name__ == '__main__': main()
