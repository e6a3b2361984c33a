"""Constrained recommendation: our beam against transformers' `generate`, same model, same prompts, same beams.

    python tests/bench/decoding.py                          the packaged model, 30 beams
    python tests/bench/decoding.py --run FOLDER --beams 10  a run of your own
    python tests/bench/decoding.py --exact 0                without the brute force over the catalogue

The peer is `generate` with `prefix_allowed_tokens_fn`; it normalises over the whole vocabulary, so its lists may differ:
`overlap` is the share of its first ten that ours has too. `identical` says that `generate` with a processor that
normalises over the level and then masks (`generate_items`) returns our lists to the item; `brute_force` that the ten
best of the catalogue, each item read in full, are those of a beam as wide as the catalogue (asserted), and `found` the
share of them that the beams of the bench find. `ours` and `peer` are prompts per second; ratio above 1: ours is faster.
"""
import argparse, json, time
import numpy as np
import torch
from semantic_ids import decoding as D

def prefixes(tokens, ids):
    "The tokens that may follow each prefix"
    out = {}
    for c in ids.codes.tolist():
        said = tuple(t[k] for t, k in zip(tokens, c))
        for l in range(len(said)): out.setdefault(said[:l], set()).add(said[l])
    return {k: sorted(v) for k, v in out.items()}

def generate(rec, prompts, beams, follows, tokens):
    "transformers' way, padded on the left"
    rows = D.prompt_tokens(rec.model, rec.tok, prompts, '<|sid_start|>')
    w = max(map(len, rows))
    x = torch.tensor([[rec.tok.pad_token_id] * (w - len(r)) + r for r in rows])
    seen = torch.tensor([[0] * (w - len(r)) + [1] * len(r) for r in rows])
    out = rec.model.generate(x, attention_mask=seen, num_beams=beams, num_return_sequences=beams, max_new_tokens=len(tokens), min_new_tokens=len(tokens),
                             do_sample=False, prefix_allowed_tokens_fn=lambda b, said: follows[tuple(said[w:].tolist())])
    codes = (out[:, w:, None] == torch.tensor(tokens)).int().argmax(-1).view(len(prompts), beams, -1)
    return np.array([[rec.ids.lookup(c) for c in r] for r in codes.tolist()])

def timed(f):
    start = time.perf_counter()
    out = f()
    return time.perf_counter() - start, out

def overlap(a, b, n=10): return float(np.mean([len({*x[:n]} & {*y[:n]}) / min(n, len(y)) for x, y in zip(a, b)]))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--run', default='shop', help='shop, or the folder of a run')
    p.add_argument('--beams', type=int, default=30)
    p.add_argument('--prompts', type=int, default=64)
    p.add_argument('--peer-prompts', type=int, default=16)
    p.add_argument('--peer-batch', type=int, default=4, help='prompts per call of generate')
    p.add_argument('--exact', type=int, default=2, help='prompts checked by brute force')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    from transformers.utils import logging
    from semantic_ids.conversations import history_prompt
    from semantic_ids.histories import encode, split
    from semantic_ids.recommender import Recommender
    logging.set_verbosity_error()
    rec = Recommender.load(a.run)
    past, tokens = split(encode(rec.catalogue)).train, D.level_tokens(rec.tok, rec.ids).tolist()
    prompts = [history_prompt([rec.strings[i] for i in past[u][-10:]]) for u in range(min(a.prompts, len(past)))]
    few, follows = prompts[:a.peer_prompts], prefixes(tokens, rec.ids)
    beam = lambda ps, **kw: D.item_beam(rec.model, rec.tok, rec.ids, rec.trie, ps, **{'n': a.beams, **kw})[0]
    beam(prompts[:2]); generate(rec, prompts[:1], a.beams, follows, tokens)
    seconds = min(timed(lambda: beam(prompts))[0] for _ in range(3))
    half, rough = timed(lambda: beam(prompts, dtype='bfloat16'))
    ours = beam(prompts)
    peer, theirs = timed(lambda: np.concatenate([generate(rec, few[i:i + a.peer_batch], a.beams, follows, tokens) for i in range(0, len(few), a.peer_batch)]))
    oracle, exact = timed(lambda: D.generate_items(rec.model, rec.tok, rec.ids, rec.trie, few[:8], n=a.beams)[0])
    fast, slow = len(prompts) / seconds, len(few) / peer
    print(f'ours {fast:.1f}, in bfloat16 {len(prompts) / half:.1f}, prefix_allowed_tokens_fn {slow:.2f}, generate_items {8 / oracle:.2f} prompts per second', flush=True)
    identical = float(np.mean([x[:10] == y[:10] for x, y in zip(ours.tolist(), exact.tolist())]))
    best = [np.argsort(-D.exact_scores(rec.model, rec.tok, rec.ids, q), kind='stable')[:10] for q in prompts[:a.exact]]
    wide = beam(prompts[:a.exact], n=10, width=len(rec.ids))
    assert identical == 1 and np.array_equal(wide, best or wide), 'the lists of the beam and of its references differ'
    print(json.dumps(dict(name='decoding', ours=round(fast, 2), peer=round(slow, 2), ratio=round(fast / slow, 2), unit='prompts per second', n=len(prompts), beams=a.beams,
                          items=len(rec.ids), parameters=rec.model.num_parameters(), overlap=round(overlap(ours, theirs), 4), identical=identical, brute_force=bool(best),
                          found=round(overlap(ours, best), 3) if best else None, bfloat16=round(len(prompts) / half, 2), bfloat16_overlap=round(overlap(rough, ours), 4),
                          generate_items=round(8 / oracle, 2), threads=a.threads, peer_name='transformers generate with prefix_allowed_tokens_fn, float32')))

if __name__ == '__main__': main()
