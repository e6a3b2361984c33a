"""What each part of the RQ-VAE's recipe does on the real catalogue, row by row, resumable.

    python tests/bench/rqvae_games2018.py FOLDER [STEPS]     FOLDER holds video_games' items.parquet and sequences.parquet
"""
import sys, time
from importlib.resources import files
from pathlib import Path
import numpy as np
from semantic_ids.bench import _origin, write_rows
from semantic_ids.catalogue import load
from semantic_ids.embeddings import catalogue_vectors
from semantic_ids.ids import make_ids, quality
from semantic_ids.pipeline import set_threads
from semantic_ids.rqvae import CURES, RQVAE

KEEP = ('unique_share', 'usage', 'perplexity', 'neighbour_overlap@5', 'reconstruction_cosine', 'largest_bucket')

def measure(x, steps, model=None, **fit):
    start = time.process_time()
    q = RQVAE(x.shape[1], codebook_size=256, **(model or {})).fit(x, steps=steps, **fit)
    seconds, codes = time.process_time() - start, q.encode(x)
    largest = np.unique(codes, axis=0, return_counts=True)[1].max()
    found = quality(make_ids(codes, [str(i) for i in range(len(x))], max(256, int(largest))), x, q.decode(codes))
    return {k: found[k] for k in KEEP} | dict(seconds=round(seconds, 1), seed=fit.get('seed', 42), steps=steps)

def variants():
    less = lambda name: dict(cures=[c for c in CURES if c != name])
    return {'recipe': {}, **{f'without {c}': less(c) for c in ('pca', 'kmeans', 'restart', 'price', 'part')},
            'without linear path': dict(model=dict(linear=False)), 'one beam': dict(model=dict(beams=1)),
            'latent 32, layers 256 and 128': dict(model=dict(hidden=(256, 128), d_latent=32)),
            'rotation': dict(gradient='rotation'), 'EMA': dict(ema=True), 'beta 0.25': dict(beta=.25), 'beta 0.5': dict(beta=.5), 'beta 1': dict(beta=1.)}

def main(folder, steps=600):
    set_threads(1)
    c = load(folder); x, _ = catalogue_vectors(c)
    todo = {n: (lambda v=v: measure(x, steps, **v)) for n, v in variants().items()}
    todo |= {f'recipe, 1,500 steps, seed {s}': (lambda s=s: measure(x, 1500, seed=s)) for s in (42, 1, 2)}
    file = Path(str(files('semantic_ids'))) / 'results' / 'rqvae_games2018.json'
    write_rows(file, _origin('python tests/bench/rqvae_games2018.py video_games', c), todo, dict(steps=steps, codebook_size=256, levels=3, vectors='short template with attributes'))

if __name__ == '__main__': main(sys.argv[1], *map(int, sys.argv[2:]))
