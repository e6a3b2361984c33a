"""What items cost a pretrained model in the language it had: stories260K before and after it learns the shop's IDs.

    python tests/bench/language.py --model ../shared/models/stories260K

The held-out text are stories that the model itself told before any training (drawn at temperature 1, seeded), so the first
loss is as low as it can be. Then the vocabulary grows, the new rows train alone, and all weights train on conversations,
by the functions that train every other model. `ours` is the mean loss per token after the new rows, `peer` after all
weights; `before` stands beside them. Ratio above 1: training the new rows alone costs less language. With plain stories
among the conversations (`--stories .2`), less is forgotten.
"""
import argparse, json
import numpy as np
import torch
from semantic_ids.catalogue import load
from semantic_ids.conversations import build, item_words
from semantic_ids.finetuning import TokenData, encode_conversations, encode_texts, train
from semantic_ids.histories import encode, split
from semantic_ids.ids import make_ids
from semantic_ids.pipeline import text_loss
from semantic_ids.quantizers import ResidualKMeans
from semantic_ids.embeddings import catalogue_vectors
from semantic_ids.vocabulary import extend, load_base

def told(model, tok, n, seed):
    "Stories, as the model tells them untrained"
    torch.manual_seed(seed)
    start = torch.tensor(tok(['Once upon a time, there was a'])['input_ids']).repeat(n, 1)
    out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1., max_new_tokens=150)
    return tok.batch_decode(out, skip_special_tokens=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', required=True)
    p.add_argument('--steps', type=int, default=300)
    p.add_argument('--stories', type=float, default=0., help='share of the training texts that are stories')
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    torch.set_num_threads(1)
    model, tok = load_base(a.model)
    held, told_too = told(model, tok, 60, a.seed), told(model, tok, 600, a.seed + 1)
    before = text_loss(model, tok, held)
    shop = load('shop', top=400)
    x = catalogue_vectors(shop)[0]
    ids = make_ids(ResidualKMeans(3, 32).fit(x, seed=a.seed).encode(x), shop.items['item_id'].to_list(), 32)
    start = extend(model, tok, ids, item_words(shop))
    talks = encode_conversations(tok, build(shop, ids, split(encode(shop)), 4000, a.seed))
    options = dict(batch_tokens=1536, lr=3e-3, seed=a.seed, dtype='float32')
    train(model, talks, a.steps//3, rows_from=start, label='new rows', **options)
    rows = text_loss(model, tok, held)
    few = round(len(talks)*a.stories/(1 - a.stories))
    data = joined(talks, encode_texts(tok, (told_too*(few//len(told_too) + 1))[:few])) if few else talks
    train(model, data, a.steps, label='all weights', **options)
    after = text_loss(model, tok, held)
    print(json.dumps(dict(name='language', ours=round(rows, 3), peer=round(after, 3), ratio=round(after/rows, 3), unit='loss per token', n=len(held), before=round(before, 3), stories=a.stories, steps=a.steps)))

def joined(a, b):
    "Two sets of rows as one"
    return TokenData(np.concatenate([a.tokens, b.tokens]), np.concatenate([a.learn, b.learn]), np.concatenate([a.offsets, b.offsets[1:] + a.offsets[-1]]))

if __name__ == '__main__': main()
