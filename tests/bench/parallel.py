"""All codes predicted at once against hash SASRec: users per second, from history to the ten best items, in one run.

    python tests/bench/parallel.py                              16,859 items, 3 levels of 256 codes and the uniqueness level
    python tests/bench/parallel.py --items 1729 --codes 64      the size of the embedded shop

Both sides have the same transformer and score every item exactly. Time does not depend on what was learned, so the
weights are random, and so are the codes and the histories. The sides take turns; each one's best round counts.
`cost` is our time per recommendation list as a multiple of the hash model's; it should stay below 1.5.
"""
import argparse, json, time
import numpy as np
import torch
from semantic_ids.generative import ARSASRec, ParallelSASRec
from semantic_ids.histories import Ragged
from semantic_ids.sasrec import SASRec
from semantic_ids.semantic_sasrec import SemanticSASRec, random_codes

def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def best(ways, repeats):
    "Least seconds of each way, the ways in turn"
    rounds = [[seconds(f) for f in ways.values()] for _ in range(repeats)]
    return {k: min(r) for k, r in zip(ways, zip(*rounds))}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--items', type=int, default=16859)
    p.add_argument('--codes', type=int, default=256)
    p.add_argument('--levels', type=int, default=3)
    p.add_argument('--d', type=int, default=64)
    p.add_argument('--users', type=int, default=512)
    p.add_argument('--length', type=int, default=8, help='items in a history')
    p.add_argument('--repeats', type=int, default=7)
    p.add_argument('--beams', type=int, nargs='*', default=[10, 30], help='widths of the beam, for comparison')
    a = p.parse_args()
    torch.set_num_threads(1); torch.manual_seed(0)
    codes = random_codes(a.items, a.levels, a.codes)
    histories = Ragged.of(list(np.random.default_rng(0).integers(0, a.items, (a.users, a.length))))
    chain = ARSASRec(codes, a.codes, d_model=a.d)
    score = dict(hash=SASRec(a.items, d_model=a.d), codes_as_input=SemanticSASRec(codes, a.codes, d_model=a.d), parallel=ParallelSASRec(codes, a.codes, d_model=a.d))
    ways = {k: lambda m=m: m.score(histories).topk(10) for k, m in score.items()}
    ways |= {f'beam_{w}': lambda w=w: chain.generate(histories, 10, w) for w in a.beams}
    best(ways, 1)
    took = best(ways, a.repeats)
    for k, t in took.items(): print(f'{k:16} {a.users / t:9,.0f} users/s  cost {t / took["hash"]:.2f}')
    print(json.dumps(dict(name='parallel', ours=round(a.users / took['parallel'], 1), peer=round(a.users / took['hash'], 1), ratio=round(took['hash'] / took['parallel'], 3),
                          unit='users/s', n=a.items, cost=round(took['parallel'] / took['hash'], 3))))

if __name__ == '__main__': main()
