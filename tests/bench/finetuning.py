"""Our training loop against the original's: tokens per second on the same conversations, model and thread.

    python tests/bench/finetuning.py                       the quickstart's model and conversations, AdamW on both sides
    python tests/bench/finetuning.py --optimizer muon      our default optimizer, which takes longer for a step and needs fewer

The peer has the original's settings: 16 conversations drawn at random and padded to the longest, eight such batches to
a step, a loss on every token with logits for every position, bf16 products, AdamW. Ours: batches of 1,536 tokens of similar
length, logits where something is learned. Padding is not counted as tokens on either side. Both sides take turns; what is
counted are seconds of the processor with one thread, since other work may share the machine; the median of the rounds counts.
"""
import argparse, copy, json, time
import numpy as np
import torch
from semantic_ids.catalogue import load
from semantic_ids.conversations import build, language_texts
from semantic_ids.embeddings import item_text
from semantic_ids.finetuning import collate, encode_conversations, train
from semantic_ids.histories import encode, split
from semantic_ids.ids import make_ids
from semantic_ids.runs import preset, quiet
from semantic_ids.vocabulary import extend, load_base

def material(a):
    "The shop's conversations over IDs drawn at random: speed does not ask what an ID means"
    p, shop = preset('quickstart'), load('shop', top=400)
    ids = make_ids(np.random.default_rng(0).integers(0, p.codebook_size, (len(shop), 3)), shop.items['item_id'].to_list(), p.codebook_size)
    talks = build(shop, ids, split(encode(shop)), a.conversations, seed=a.seed)
    words = [m['content'] for c in talks['messages'].to_list() for m in c if '<|' not in m['content']]
    model, tok = load_base('small', p, language_texts(shop, n=300) + words)
    extend(model, tok, ids, item_text(shop.items))
    return model, encode_conversations(tok, talks), p

def padded(model, data, steps, lr, seed, rows=16, accumulate=8):
    "The original's settings; returns the tokens that were no padding"
    opt, rng, tokens = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=.01, fused=True), np.random.default_rng(seed), 0
    model.train()
    order = rng.permutation(len(data))
    for step in range(steps):
        for i in range(accumulate):
            at = order[(np.arange(rows) + rows*(accumulate*step + i)) % len(order)]
            x, _ = collate(data, at)
            real = torch.arange(x.shape[1]) < torch.from_numpy(data.lengths[at])[:, None]
            with torch.autocast('cpu', torch.bfloat16):
                loss = model(input_ids=x, attention_mask=real.long(), labels=x.masked_fill(~real, -100), use_cache=False).loss
            (loss/accumulate).backward()
            tokens += int(real.sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); opt.zero_grad(set_to_none=True)
    return tokens

def rate(f):
    start = time.process_time()
    return f()/(time.process_time() - start)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--conversations', type=int, default=4000)
    p.add_argument('--optimizer', default='adamw')
    p.add_argument('--steps', type=int, default=12, help='of ours in a round; the peer gets as many tokens')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    quiet(); torch.set_num_threads(1)
    model, data, size = material(a)
    ours, peer = [], []
    for i in range(a.rounds + 1):
        m, n = copy.deepcopy(model), copy.deepcopy(model)
        o = rate(lambda: train(m, data, a.steps, lr=size.llm_lr, batch_tokens=size.batch_tokens, optimizer=a.optimizer, seed=a.seed + i)['tokens'])
        e = rate(lambda: padded(n, data, max(1, a.steps*size.batch_tokens//7000), size.llm_lr, a.seed + i))
        if i: ours.append(o); peer.append(e); print(f'round {i}: ours {o:,.0f}, peer {e:,.0f} tokens per cpu second, {o/e:.2f} times', flush=True)
    o, e = np.median(ours), np.median(peer)
    print(json.dumps(dict(name='finetuning', ours=round(o), peer=round(e), ratio=round(float(np.median(np.array(ours)/peer)), 2), unit='tokens/cpu-s', n=int(a.rounds*a.steps),
                          optimizer=a.optimizer, parameters=sum(q.numel() for q in model.parameters()), vocabulary=len(model.get_input_embeddings().weight))))

if __name__ == '__main__': main()
