"""Training our SASRec against RecBole's at equal sizes: targets and sequences a second, in one run.

    python -m venv peer && peer/bin/pip install recbole 'numpy<2' 'pandas<2.3' 'scipy<1.14' 'setuptools<81'      with torch of the same version
    python tests/bench/sasrec.py --python peer/bin/python
    python tests/bench/sasrec.py --python peer/bin/python --users 500           a quick look

Both read the same made-up histories (lengths and popularity like Amazon Video Games 2018: 16,859 items, 9 purchases a
user) and train one epoch on the same targets: every purchase but the first of each user. Width 64, 2 layers, 2 heads,
20 purchases, feed-forward 256, dropout .2, Adam(W), float32, the same batch of sequences, softmax over all items.
RecBole's trainer makes one sequence of each target (its data augmentation); ours predicts every purchase of a window at
once, so its sequences are fewer and carry more targets: it is ahead in targets a second and behind in sequences a second.
`ours` and `peer` are targets a second of CPU time with all items in the softmax on both sides. The line also has
sequences, ours with steps of about as many targets as the peer's (`small_steps`: more steps, each with the whole
optimizer), and ours with 512 sampled negatives, the package's default over 5,000 items (`sampled`; RecBole has none).
RecBole 1.2.1 wants numpy below 2 and pandas below 2.3 in its Python.
Each side runs in a process of its own, in turn, `--repeat` times; the best counts.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

SIZES = dict(d=64, layers=2, heads=2, length=20, dropout=.2)

def histories(users, items, seed=42):
    "Flat item rows and offsets: geometric lengths of mean 9, at least 5 as in a 5-core, items by a power law"
    g = np.random.default_rng(seed)
    n = np.minimum(4 + g.geometric(.2, users), 200)
    p = 1 / (np.arange(items) + 30.) ** .9
    return g.choice(g.permutation(items), n.sum(), p=p / p.sum()), np.concatenate([[0], n.cumsum()])

def timed(epoch):
    "Wall and CPU seconds of one call"
    wall, cpu = time.perf_counter(), time.process_time()
    epoch()
    return dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)

def ours(a, values, offsets):
    import torch
    from semantic_ids.histories import Ragged
    from semantic_ids.sasrec import SASRec, Windows, softmax_loss, train_epoch
    torch.set_num_threads(1); torch.manual_seed(42)
    w = Windows([Ragged(values, offsets)], SIZES['length'])
    model = SASRec(a.items, SIZES['d'], SIZES['layers'], SIZES['heads'], SIZES['length'], SIZES['dropout'])
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1.)
    warm = Windows([Ragged(values[:offsets[a.batch]], offsets[:a.batch + 1])], SIZES['length'])
    run = lambda w: train_epoch(model, w, opt, plan, a.batch, 42, softmax_loss, a.negatives or None, 'float32')
    run(warm)
    return dict(timed(lambda: run(w)), sequences=len(w), targets=int((w.end - w.start).sum()))

def recbole(a, values, offsets):
    import logging, torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    g, folder = np.random.default_rng(0), Path(a.work) / 'bench'
    folder.mkdir(exist_ok=True)
    with open(folder / 'bench.inter', 'w') as f: # Two more purchases a user, which its leave-one-out split keeps from training
        f.write('user_id:token\titem_id:token\ttimestamp:float\n')
        for u in range(len(offsets) - 1):
            for k, i in enumerate([*values[offsets[u]:offsets[u + 1]], *g.integers(a.items, size=2)]): f.write(f'{u}\t{i}\t{k}\n')
    os.chdir(a.work)
    config = Config(model='SASRec', dataset='bench', config_dict=dict(
        data_path=a.work, load_col=dict(inter=['user_id', 'item_id', 'timestamp']), USER_ID_FIELD='user_id', ITEM_ID_FIELD='item_id', TIME_FIELD='timestamp',
        MAX_ITEM_LIST_LENGTH=SIZES['length'], hidden_size=SIZES['d'], inner_size=4 * SIZES['d'], n_layers=SIZES['layers'], n_heads=SIZES['heads'], hidden_dropout_prob=SIZES['dropout'],
        attn_dropout_prob=SIZES['dropout'], loss_type='CE', train_neg_sample_args=None, train_batch_size=a.batch, learner='adam', device='cpu', use_gpu=False, gpu_id='',
        eval_args=dict(split=dict(LS='valid_and_test'), order='TO', mode='full', group_by=None), show_progress=False, state='ERROR', seed=42, worker=0))
    data = create_dataset(config)
    train, _, _ = data_preparation(config, data)
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    batch = next(iter(train))
    trainer.optimizer.zero_grad(); model.calculate_loss(batch).backward(); trainer.optimizer.zero_grad()
    return dict(timed(lambda: trainer._train_epoch(train, 0, show_progress=False)), sequences=len(train.dataset), targets=len(train.dataset), items=train.dataset.item_num - 1)

def child(a, side, python, batch, negatives):
    "One side in a process of its own"
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore')
    done = subprocess.run([python, __file__, '--side', side, '--work', a.work, '--items', str(a.items), '--batch', str(batch), '--negatives', str(negatives)], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{side} failed:\n{done.stderr[-2000:]}')
    r = json.loads(done.stdout.splitlines()[-1])
    return r | {f'{k}_per_second': r[k] / r['cpu_seconds'] for k in ('targets', 'sequences')}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--python', default=sys.executable, help='the Python that has recbole')
    p.add_argument('--users', type=int, default=3000)
    p.add_argument('--items', type=int, default=16_859)
    p.add_argument('--batch', type=int, default=256)
    p.add_argument('--repeat', type=int, default=2)
    p.add_argument('--side', help=argparse.SUPPRESS); p.add_argument('--work', help=argparse.SUPPRESS); p.add_argument('--negatives', type=int, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.side:
        z = np.load(Path(a.work) / 'histories.npz')
        return print(json.dumps(dict(ours=ours, recbole=recbole)[a.side](a, z['values'], z['offsets'])))
    with tempfile.TemporaryDirectory() as a.work:
        values, offsets = histories(a.users, a.items)
        np.savez(Path(a.work) / 'histories.npz', values=values, offsets=offsets)
        small = max(1, round(a.batch * a.users / (offsets[-1] - a.users))) # Histories that carry as many targets as a batch of the peer
        sides = {'ours': ('ours', sys.executable, a.batch, 0), 'ours, small steps': ('ours', sys.executable, small, 0), 'ours, 512 negatives': ('ours', sys.executable, a.batch, 512), 'recbole': ('recbole', a.python, a.batch, 0)}
        runs = {k: [] for k in sides}
        for _ in range(a.repeat):
            for k, s in sides.items():
                r = child(a, *s)
                runs[k].append(r)
                print(f"{k:20s} {r['targets']:,} targets in {r['sequences']:,} sequences: {r['targets_per_second']:8,.0f} targets/s {r['sequences_per_second']:8,.0f} sequences/s of CPU time; {r['seconds']:.1f} s wall, {r['cpu_seconds']:.1f} s CPU, load {os.getloadavg()[0]:.1f}", flush=True)
    best = {k: max(v, key=lambda r: r['targets_per_second']) for k, v in runs.items()}
    o, t, few, steps = (best[k] for k in ('ours', 'recbole', 'ours, 512 negatives', 'ours, small steps'))
    assert o['targets'] == t['targets'], 'the two sides trained on different targets'
    print(json.dumps(dict(name='sasrec', ours=round(o['targets_per_second']), peer=round(t['targets_per_second']), ratio=round(o['targets_per_second'] / t['targets_per_second'], 2), unit='training targets a second of CPU time, softmax over all items on both sides', n=o['targets'],
                          items=a.items, batch=a.batch, sequences=[o['sequences'], t['sequences']], sequences_per_second=[round(o['sequences_per_second'], 1), round(t['sequences_per_second'], 1)],
                          small_steps=dict(batch=small, ours=round(steps['targets_per_second']), ratio=round(steps['targets_per_second'] / t['targets_per_second'], 2)),
                          sampled=dict(ours=round(few['targets_per_second']), ratio=round(few['targets_per_second'] / t['targets_per_second'], 2)), peer_name='RecBole SASRec, loss CE')))

if __name__ == '__main__': main()
