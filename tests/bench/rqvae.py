"""Our RQ-VAE against vector-quantize-pytorch's ResidualVQ between an equal encoder and decoder: time to equal validation error.

    python tests/bench/rqvae.py                             clustered synthetic vectors, 16,859 x 384
    python tests/bench/rqvae.py --vectors x.npy             any matrix of vectors

Two comparisons, one JSON line each. `rqvae`: both sides have layers and a linear path that starts at the principal
components, so what differs is the quantizer and its start. `rqvae, mlp only`: both sides have layers alone.

Ours is `RQVAE.fit` itself, with codewords that follow a moving average (`ema=True`); only its check, which chooses the
best state, gives way to the measurement. It goes without the cures that serve no error (price, part, repair).
The peer gets the same modules with the same first weights, AdamW, rate, schedule, clipping and batch size, and every
setting in PEERS; the one with the smallest ratio counts. Both sides train the same schedules, each to its end. The
target is the larger of the two best errors, so both sides reach it, and the time to it is that of the schedule that
reaches it first. The clock counts CPU seconds of one thread: scaling, principal components, the start of the codebooks
(the peer's own k-means runs on its first batch) and the steps. It stops while validation error is measured; imports
are done before.
"""
import argparse, json, time
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from kmeans import synthetic
from semantic_ids.rqvae import RQVAE

CURES = ('scale', 'pca', 'restart', 'kmeans')
PEERS = {'defaults': {}, 'straight': dict(rotation_trick=False), 'straight, commitment .1': dict(rotation_trick=False, commitment_weight=.1),
         'straight, commitment .1, dead .5': dict(rotation_trick=False, commitment_weight=.1, threshold_ema_dead_code=.5)}

class Clock:
    "Seconds spent training, and (seconds, step, validation error) at each measurement"
    def __init__(self): self.spent, self.log, self.start = 0., [], time.process_time()
    def measure(self, step, error):
        self.spent += time.process_time() - self.start
        self.log.append((self.spent, step, error()))
        self.start = time.process_time()

class Ours(RQVAE):
    "RQVAE whose check is the measurement"
    def check(self, x, held=None):
        self.clock.measure(len(self.history) * 20, lambda: F.mse_loss(self(self.val)[0], self.val).item())
        return None, dict(id_score=0.)

def ours(x, val, a, model, steps):
    q = Ours(x.shape[1], **model)
    q.clock, q.val = Clock(), (val - x.mean(0)) / x.var(0, unbiased=False).mean().sqrt()
    return q.fit(x, a.seed, steps=steps, lr=a.lr, batch=a.batch, cures=CURES, ema=not a.gradient, beta=a.beta).clock.log

class Peer(nn.Module):
    "The modules of an RQVAE around a ResidualVQ"
    def __init__(self, body, a, kw):
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ
        n_levels, k, latent = body.codebooks.shape
        self.body = body.requires_grad_(True)
        self.body.codebooks.requires_grad_(False)
        self.vq = ResidualVQ(dim=latent, num_quantizers=n_levels, codebook_size=k, kmeans_init=True, **kw)
    def forward(self, x):
        q, codes, loss = self.vq(self.body.to_latent(x))
        return self.body.from_latent(q), loss.sum()

def peer(x, val, a, model, steps, kw):
    torch.manual_seed(a.seed)
    body, clock = RQVAE(x.shape[1], **model), Clock()
    mean, scale = x.mean(0), x.var(0, unbiased=False).mean().sqrt()
    x, val, g = (x - mean) / scale, (val - mean) / scale, torch.Generator().manual_seed(a.seed)
    if model['linear']: body.init_path(x)
    net = Peer(body, a, kw)
    weights = [p for p in net.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(weights, lr=a.lr, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, a.lr, total_steps=steps, pct_start=.1)
    def error():
        net.eval()
        with torch.no_grad(): e = F.mse_loss(net(val)[0], val).item()
        net.train()
        return e
    for step in range(1, steps + 1):
        b = x[torch.randint(len(x), (a.batch,), generator=g)]
        y, loss = net(b)
        opt.zero_grad(); (F.mse_loss(y, b) + loss).backward(); nn.utils.clip_grad_norm_(weights, 1.); opt.step(); plan.step()
        if step % 20 == 0: clock.measure(step, error)
    return clock.log

def best(log): return min(e for _, _, e in log)
def reached(logs, target): return min((t, step, log[-1][1]) for log in logs for t, step, e in log if e <= target)

def tell(who, log):
    s, step, _ = log[-1]
    print(f'{who}: {step} steps in {s:.1f} s, best error {best(log):.4f}; ' + ', '.join(f'{n} ({t:.1f} s): {v:.4f}' for t, n, v in log[::max(1, len(log) // 8)]), flush=True)
    return log

def compare(name, x, val, a, model):
    mine = [tell(f'{name}, ours', ours(x, val, a, model, n)) for n in a.steps]
    rows = []
    for who in a.peers:
        logs = [tell(f'{name}, peer, {who}', peer(x, val, a, model, n, PEERS[who])) for n in a.steps]
        error, peer_error = (min(map(best, l)) for l in (mine, logs))
        (s, step, of), (ps, pstep, pof) = (reached(l, max(error, peer_error)) for l in (mine, logs))
        rows.append(dict(name=name, ours=round(s, 2), peer=round(ps, 2), ratio=round(ps / s, 2), unit='s', n=len(x), target=round(max(error, peer_error), 4), steps=f'{step} of {of}',
                         peer_steps=f'{pstep} of {pof}', error=round(error, 4), peer_error=round(peer_error, 4), peer_setting=who))
        print(rows[-1])
    print(json.dumps(min(rows, key=lambda r: r['ratio'])), flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--vectors', help='.npy file, (n, d)')
    p.add_argument('--n', type=int, default=16859)
    p.add_argument('--dim', type=int, default=384)
    p.add_argument('--levels', type=int, default=3)
    p.add_argument('--codes', type=int, default=256)
    p.add_argument('--steps', type=int, nargs='+', default=[160, 600], help='schedules')
    p.add_argument('--batch', type=int, default=1024)
    p.add_argument('--lr', type=float, default=3e-3)
    p.add_argument('--gradient', action='store_true', help='our codewords follow the gradient, not a moving average')
    p.add_argument('--beta', type=float, default=.1, help='our weight of the commitment')
    p.add_argument('--beams', type=int, default=4, help='our beam')
    p.add_argument('--peers', nargs='+', default=list(PEERS), choices=PEERS)
    p.add_argument('--only', choices=['path', 'mlp'], help='one of the two comparisons')
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    from threadpoolctl import threadpool_limits
    torch.set_num_threads(1); threadpool_limits(1)
    x = torch.tensor(np.load(a.vectors).astype(np.float32) if a.vectors else synthetic(a.n, a.dim, a.seed))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(a.seed))
    val, x = x[order[:len(x) // 10]], x[order[len(x) // 10:]]
    size = dict(n_levels=a.levels, codebook_size=a.codes, beams=a.beams)
    warm = torch.randn(600, x.shape[1], generator=torch.Generator().manual_seed(a.seed))
    ours(warm, warm, a, size | dict(linear=True), 20); peer(warm, warm, a, size | dict(linear=True), 20, {})
    if a.only != 'mlp': compare('rqvae', x, val, a, size | dict(linear=True))
    if a.only != 'path': compare('rqvae, mlp only', x, val, a, size | dict(linear=False))

if __name__ == '__main__': main()
