"""Residual k-means against faiss's ResidualQuantizer: CPU seconds of one thread to fit and encode, and squared error, in one run.

    python tests/bench/kmeans.py                            clustered synthetic vectors, 16,859 x 384
    python tests/bench/kmeans.py --vectors x.npy            any matrix of vectors
    python tests/bench/kmeans.py --data FOLDER              item texts of a catalogue, embedded
"""
import argparse, json, statistics, time
import numpy as np

def synthetic(n, d, seed, topics=400):
    "Unit vectors about `topics` topics of uneven size, each in a space of 16 directions of its own, plus noise"
    rng = np.random.default_rng(seed)
    topic = rng.choice(topics, n, p=rng.dirichlet(np.full(topics, .7)))
    centre, turn = rng.normal(size=(topics, d)), rng.normal(size=(40, 16, d))
    x = centre[topic] + .08 * rng.normal(size=(n, d))
    for t in range(40):
        rows = np.flatnonzero(topic % 40 == t)
        x[rows] += .2 * rng.normal(size=(len(rows), 16)) @ turn[t]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

def vectors(a):
    "The vectors that the arguments name"
    if a.vectors: return np.load(a.vectors).astype(np.float32)
    if not a.data: return synthetic(a.n, a.dim, a.seed)
    from semantic_ids.catalogue import load
    from semantic_ids.embeddings import catalogue_vectors
    x, about = catalogue_vectors(load(a.data))
    return np.ascontiguousarray(x[:, :about['text_dim']], dtype=np.float32)

def timed(make, x):
    "CPU seconds to fit and encode, squared error per vector"
    start = time.process_time()
    q, encode = make(x)
    codes = encode(x)
    seconds = time.process_time() - start
    return seconds, float(np.square(x - q.decode(codes)).sum(1).mean())

def ours(a, beam):
    from semantic_ids.quantizers import ResidualKMeans
    def make(x):
        q = ResidualKMeans(a.levels, 2 ** a.bits, beam=beam, refits=3).fit(x, a.seed)
        return q, q.encode
    return make

def peer(a, beam):
    import faiss
    def make(x):
        q = faiss.ResidualQuantizer(x.shape[1], a.levels, a.bits)
        q.max_beam_size, q.cp.seed = beam, a.seed
        q.train(x)
        return q, q.compute_codes
    return make

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--vectors', help='.npy file, (n, d)')
    p.add_argument('--data', help='folder of a catalogue')
    p.add_argument('--n', type=int, default=16859)
    p.add_argument('--dim', type=int, default=384)
    p.add_argument('--levels', type=int, default=3)
    p.add_argument('--bits', type=int, default=8)
    p.add_argument('--repeats', type=int, default=3, help='runs of each, in turn; the median counts')
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    import faiss, torch
    from threadpoolctl import threadpool_limits
    torch.set_num_threads(1); faiss.omp_set_num_threads(1); threadpool_limits(1)
    x = vectors(a)
    print(f'{x.shape[0]:,} vectors of {x.shape[1]} dimensions, {a.levels} levels of {2 ** a.bits} codes, one thread')
    makes = {('ours', b): ours(a, b) for b in (1, 5)} | {('faiss', b): peer(a, b) for b in (1, 5)}
    runs = {k: [] for k in makes}
    for make in makes.values(): make(x[:2 ** a.bits * 40]) # imports
    for _ in range(a.repeats):
        for k, make in makes.items(): runs[k].append(timed(make, x))
    best = {k: (statistics.median(s for s, _ in v), v[0][1]) for k, v in runs.items()}
    for (who, beam), (s, e) in best.items(): print(f'{who:6} beam {beam}: {s:7.2f} s  squared error {e:.5f}')
    for beam in (5, 1):
        (s, e), (ps, pe) = best['ours', beam], best['faiss', beam]
        print(json.dumps(dict(name='kmeans' if beam == 1 else f'kmeans, beam {beam}', ours=round(s, 3), peer=round(ps, 3), ratio=round(ps / s, 2),
                              unit='s', n=len(x), error=round(e, 5), peer_error=round(pe, 5))))

if __name__ == '__main__': main()
