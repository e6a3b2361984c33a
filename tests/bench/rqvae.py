"""Our RQ-VAE against vector-quantize-pytorch's ResidualVQ between an equal encoder and decoder: time to equal validation error.

    python tests/bench/rqvae.py                             clustered synthetic vectors, 16,859 x 384
    python tests/bench/rqvae.py --vectors x.npy             any matrix of vectors

Both sides: the same layers, the same first weights, AdamW with one rate on one schedule, the same batches, latents
centred and scaled alike, codebooks started by k-means on all latents (ours) or on the first batch (`kmeans_init`,
the peer's own way), dead codes restarted. Each side trains its full schedule. The clock stops while validation error is
measured. The target is the larger of the two best errors, so both sides reach it; time counts from the first
step to the first measurement at or below the target, the start of the codebooks included.
"""
import argparse, copy, json, time
import numpy as np
import torch
from torch.nn import functional as F
from kmeans import synthetic
from semantic_ids.rqvae import RQVAE, mlp, residual_codes

class Clock:
    "Seconds spent training, and (seconds, step, validation error) at each measurement"
    def __init__(self): self.spent, self.log, self.start = 0., [], time.perf_counter()
    def measure(self, step, error):
        self.spent += time.perf_counter() - self.start
        self.log.append((self.spent, step, error()))
        self.start = time.perf_counter()

class Peer(torch.nn.Module):
    "Encoder, ResidualVQ, decoder"
    def __init__(self, d, a, hidden=(256, 128), latent=32):
        super().__init__()
        from vector_quantize_pytorch import ResidualVQ
        sizes = [d, *hidden, latent]
        self.encoder, self.decoder = mlp(sizes), mlp(sizes[::-1])
        self.vq = ResidualVQ(dim=latent, num_quantizers=a.levels, codebook_size=a.codes, kmeans_init=True, kmeans_iters=10,
                             threshold_ema_dead_code=a.dead, decay=a.decay, commitment_weight=.25, rotation_trick=a.rotation)
    def forward(self, x):
        q, codes, loss = self.vq(self.encoder(x))
        return self.decoder(q), codes, loss.sum()

def train(model, x, val, a, ours):
    "The loop of RQVAE.fit with measurements; the same for both sides but for the care of dead codes"
    torch.manual_seed(a.seed)
    books = [model.codebooks] if ours else []
    rest = [*model.encoder.parameters(), *model.decoder.parameters()]
    opt = torch.optim.AdamW([dict(params=rest, weight_decay=1e-4), dict(params=books, weight_decay=0.)] if ours else [dict(params=rest, weight_decay=1e-4)], lr=a.lr)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, a.lr, total_steps=a.steps, pct_start=.1)
    pick, clock = torch.Generator().manual_seed(a.seed), Clock()
    if ours:
        model.init_codebooks(model.latents(x), a.seed)
        used = torch.zeros(model.codebooks.shape[:2])
    def error():
        model.eval()
        with torch.no_grad(): e = F.mse_loss(model(val)[0], val).item()
        model.train()
        return e
    model.train()
    for step in range(1, a.steps + 1):
        b = x[torch.randint(len(x), (a.batch,), generator=pick)]
        y, codes, loss = model(b)
        opt.zero_grad(); (F.mse_loss(y, b) + loss).backward(); opt.step(); plan.step()
        if ours:
            used += torch.stack([torch.bincount(c, minlength=a.codes) for c in codes.T])
            if step % 20 == 0:
                if step < .8 * a.steps: model.restart_dead(model.latents(b), used, opt)
                used.zero_()
        if step % a.every == 0: clock.measure(step, error)
    return clock.log

def reached(log, target): return next((s, step) for s, step, e in log if e <= target)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--vectors', help='.npy file, (n, d)')
    p.add_argument('--n', type=int, default=16859)
    p.add_argument('--dim', type=int, default=384)
    p.add_argument('--levels', type=int, default=3)
    p.add_argument('--codes', type=int, default=256)
    p.add_argument('--steps', type=int, default=600)
    p.add_argument('--batch', type=int, default=1024)
    p.add_argument('--lr', type=float, default=3e-3)
    p.add_argument('--every', type=int, default=20, help='steps between measurements')
    p.add_argument('--dead', type=float, default=2, help="the peer's threshold_ema_dead_code")
    p.add_argument('--decay', type=float, default=.8, help="the peer's decay of codeword averages")
    p.add_argument('--rotation', action='store_true', help="the peer's default gradient, the rotation trick, in place of straight-through")
    p.add_argument('--seed', type=int, default=42)
    a = p.parse_args()
    torch.set_num_threads(1)
    x = torch.tensor(np.load(a.vectors).astype(np.float32) if a.vectors else synthetic(a.n, a.dim, a.seed))
    x = (x - x.mean(0)) / x.var(0, unbiased=False).mean().sqrt()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(a.seed))
    val, x = x[order[:len(x) // 10]], x[order[len(x) // 10:]]
    torch.manual_seed(a.seed)
    ours, peer = RQVAE(x.shape[1], n_levels=a.levels, codebook_size=a.codes), Peer(x.shape[1], a)
    peer.encoder.load_state_dict(copy.deepcopy(ours.encoder.state_dict())); peer.decoder.load_state_dict(copy.deepcopy(ours.decoder.state_dict()))
    logs = dict(ours=train(ours, x, val, a, True), peer=train(peer, x, val, a, False))
    for who, log in logs.items():
        s, step, e = log[-1]
        print(f'{who}: {step} steps in {s:.1f} s ({1000 * s / step:.1f} ms a step), last error {e:.4f}, best {min(l[2] for l in log):.4f}; '
              + ', '.join(f'{l[1]}: {l[2]:.4f}' for l in log[::max(1, len(log) // 8)]))
    target = max(min(l[2] for l in log) for log in logs.values())
    (s, step), (ps, pstep) = reached(logs['ours'], target), reached(logs['peer'], target)
    print(json.dumps(dict(name='rqvae', ours=round(s, 2), peer=round(ps, 2), ratio=round(ps / s, 2), unit='s', n=len(x), target=round(target, 4), steps=step, peer_steps=pstep,
                          error=round(min(l[2] for l in logs['ours']), 4), peer_error=round(min(l[2] for l in logs['peer']), 4))))

if __name__ == '__main__': main()
