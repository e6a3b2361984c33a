"""What the mask of constrained decoding costs per step: ours, a dictionary per beam, and transformers' prefix_allowed_tokens_fn.

    python tests/bench/mask.py                              66,000 items, 200 beams, Qwen3's vocabulary
    python tests/bench/mask.py --threads 2 --where .1       two cores; a filter that a tenth of the items pass

All three get the same logits (beams, vocabulary) at each of the four levels of one user's search and must leave the same
codes at the same values. `ours` is a slice of the level's columns, `expand` and the fill with -inf; at the first level a
user has one row, as in `ids.beam`. `ours` and `peer` are the mean milliseconds of a step over the levels (medians of
repeats); ratio above 1: ours is faster. `filled_root_ms` is the first level for as many users as there are beams, its
worst case. Threads that spin while another program has the core cost tens of milliseconds, hence OMP_WAIT_POLICY.
"""
import argparse, json, os, statistics, time
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
import numpy as np
import torch
from semantic_ids.ids import Trie, expand, make_ids

K = 256

def catalogue(items, seed):
    "Random IDs: at 66,000 items nearly every prefix of two codes is in use"
    return make_ids(np.random.default_rng(seed).integers(0, K, (items, 3)), [f'{i:07}' for i in range(items)], K)

def timed(f, seconds, least=3):
    "Median milliseconds, and the result"
    out, times, end = f(), [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        out = f()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times), out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--items', type=int, default=66_000)
    p.add_argument('--beams', type=int, default=200)
    p.add_argument('--vocabulary', type=int, default=151_936, help='before the SID tokens')
    p.add_argument('--where', type=float, default=1., help='share of the items that a filter lets through')
    p.add_argument('--seconds', type=float, default=1.5, help='of each timing')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    from transformers import PrefixConstrainedLogitsProcessor
    rng, ids = np.random.default_rng(a.seed), catalogue(a.items, a.seed)
    start = time.perf_counter()
    trie = Trie(ids.codes)
    build, ok = time.perf_counter() - start, rng.random((1, a.items)) < a.where
    compile_ms, masks = timed(lambda: [torch.as_tensor(m[0]) for m in trie.allow(ok)], a.seconds)
    first = a.vocabulary + 3
    prefixes = {}
    for c in ids.codes[ok[0]].tolist():
        for l in range(4): prefixes.setdefault(tuple(c[:l]), set()).add(first + l * K + c[l])
    prefixes = {k: sorted(v) for k, v in prefixes.items()}
    z = torch.randn(a.beams, first + 4 * K)
    beams = ids.codes[rng.choice(np.flatnonzero(ok[0]), a.beams)]
    nodes, rows = torch.zeros(a.beams, dtype=torch.long), []
    for level in range(4):
        cut = slice(first + level * K, first + (level + 1) * K)
        tokens = torch.as_tensor(beams[:, :level] + first + np.arange(level) * K)
        def ours(nodes):
            child = expand(trie, level, nodes, K)
            good = child >= 0
            if a.where < 1: good &= masks[level + 1][child.clamp(min=0)]
            return z[:len(nodes), cut].masked_fill(~good, -torch.inf), child
        def dictionary():
            mask = torch.full_like(z, -torch.inf)
            for row, said in enumerate((tokens - first - torch.arange(level) * K).tolist()): mask[row, prefixes[tuple(said)]] = 0
            return z + mask
        hook = PrefixConstrainedLogitsProcessor(lambda b, said: prefixes[tuple((said - first - torch.arange(level) * K).tolist())], num_beams=a.beams)
        mine, (got, _) = timed(lambda: ours(nodes[:1] if level == 0 else nodes), a.seconds)
        one, want = timed(dictionary, a.seconds)
        theirs, hooked = timed(lambda: hook(tokens, z), a.seconds)
        assert torch.equal(want, hooked) and torch.equal(want[:len(got), cut], got), 'the masks differ'
        if level == 0: root = timed(lambda: ours(nodes), a.seconds)[0]
        rows.append((mine, one, theirs))
        print(f'level {level}: ours {mine:.3f} ms, a dictionary {one:.0f} ms, prefix_allowed_tokens_fn {theirs:.0f} ms', flush=True)
        nodes = ours(nodes)[1][torch.arange(a.beams), torch.as_tensor(beams[:, level])]
    mine, one, theirs = (statistics.mean(r) for r in zip(*rows))
    print(f'the trie is built once in {build * 1000:.0f} ms; a filter is compiled in {compile_ms:.1f} ms per call')
    print(json.dumps(dict(name='mask', ours=round(mine, 3), peer=round(theirs, 1), ratio=round(theirs / mine, 1), unit='ms per step', n=a.items, beams=a.beams, vocabulary=a.vocabulary,
                          per_level_ms=[round(r[0], 3) for r in rows], filled_root_ms=round(root, 3), dictionary_ms=round(one, 1), where=a.where, where_ms=round(compile_ms, 2),
                          threads=a.threads, peer_name='transformers prefix_allowed_tokens_fn')))

if __name__ == '__main__': main()
