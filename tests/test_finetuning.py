"""Finetuning: packing, targets, two processes, resume, the best weights, new rows, LoRA, memory plans; and the rows that the vocabulary adds."""
import copy, json, os, re, signal, subprocess, sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings, strategies as st

from semantic_ids.finetuning import (AdamW16, Learner, TokenData, by_chance, collate, collate_packs, encode_conversations, encode_texts, epoch_batches, epoch_packs, level_accuracy, chat_text,
                                     load_checkpoint, loss_of, mean_loss, memory_plan, optimizers, pack, recipe, recipes, _recomputed, replies, save_checkpoint, save_model, saved_bytes, train, with_lora)
from semantic_ids.ids import make_ids
from semantic_ids.runs import InputError, preset, presets, read_json
from semantic_ids.vocabulary import CHATML, EMPTY_THOUGHT, extend, grow_rows, load_base, matrices, prompt_text, row_drift, sid_tokens, translated, use_chatml

N, K = 40, 8
ENV = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', PYTHONPATH=os.pathsep.join(p for p in sys.path if p))


def material(tied=True):
    "A small model that knows the new words, and conversations of very different lengths"
    ids = make_ids(np.random.default_rng(0).integers(0, K, (N, 3)), [f'i{i:02}' for i in range(N)], K)
    facts = [f'game {i}: {"space race farm puzzle".split()[i % 4]}, {"PC Wii".split()[i % 2]}' for i in range(N)]
    model, tok = load_base('small', preset('tiny'), facts, tied=tied)
    start = extend(model, tok, ids, facts)
    rng, s = np.random.default_rng(0), ids.strings
    wish = [[dict(role='user', content=f'{facts[i]} <|rec|>'), dict(role='assistant', content=s[i])] for i in range(N)]
    past = [[dict(role='user', content=f"I bought {''.join(s[j] for j in rng.integers(0, N, 1 + i % 6))}. <|rec|>"), dict(role='assistant', content=s[i])] for i in range(N)]
    frame = pl.DataFrame(dict(messages=wish + past, learn=['assistant']*N + ['ids']*N))
    return model, tok, start, ids, frame


@pytest.fixture(scope='module', params=['tied', 'untied'])
def small(request): return material(request.param == 'tied')


@pytest.fixture
def model(small): return copy.deepcopy(small[0])


@pytest.fixture(scope='module')
def data(small): return encode_conversations(small[1], small[4])


KW = dict(batch_tokens=256, dtype='float32')


# --- packing ---

@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(50, 120))
@settings(max_examples=60, deadline=None)
def test_pack_keeps_everything_and_fits(lengths, row_tokens):
    packs = pack(range(len(lengths)), np.array(lengths), row_tokens)
    assert sorted(r for p in packs for r in p) == list(range(len(lengths)))
    assert all(sum(lengths[r] for r in p) <= row_tokens for p in packs)
    assert sum(sum(lengths[r] for r in p) <= row_tokens//2 for p in packs) <= 1, 'two half-empty rows would have been one'


def test_packed_rows_are_as_good_as_alone(model, data):
    "Every logit of a packed conversation is the logit of the conversation alone, with every kind of attention"
    packs = epoch_packs(data, 512, 128, seed=0)[0]
    assert max(map(len, packs)) > 1
    x, learn, pos = collate_packs(data, packs, 128)
    for kind in ('sdpa', 'eager'):
        model.set_attn_implementation(kind)
        logits = model(input_ids=x, position_ids=pos, use_cache=False).logits
        for i, p in enumerate(packs):
            at = 0
            for r in p:
                t, l = data[r]
                alone = model(input_ids=torch.from_numpy(t.astype(np.int64))[None], use_cache=False).logits[0]
                assert torch.allclose(logits[i, at:at + len(t)], alone, atol=1e-4)
                assert (x[i, at:at + len(t)].numpy() == t).all() and (learn[i, at + 1:at + len(t)].numpy() == l[1:]).all() and not learn[i, at]
                at += len(t)
            assert not learn[i, at:].any()


def test_packed_loss_is_the_padded_loss(model, data):
    packs = epoch_packs(data, 512, 128, seed=0)[0]
    rows = np.array([r for p in packs for r in p])
    packed, padded = loss_of(model, *collate_packs(data, packs, 128)), loss_of(model, *collate(data, rows))
    assert abs(packed.item() - padded.item()) < 1e-5


def test_packed_epoch_sees_everything_once(data):
    batches = epoch_packs(data, 512, 128, seed=3)
    assert sorted(r for b in batches for p in b for r in p) == list(range(len(data)))
    assert batches == epoch_packs(data, 512, 128, seed=3) != epoch_packs(data, 512, 128, seed=3, epoch=1)
    fill = [sum(data.lengths[p]) for b in batches for p in b]
    assert np.mean(fill)/128 > .9
    with pytest.raises(InputError, match='encode with max_len=8'): epoch_packs(data, 512, 8, seed=0)


def test_order_is_a_function_of_seed_and_epoch(data):
    order = lambda *a: [b.tolist() for b in epoch_batches(data, 512, *a)]
    assert order(0, 1) == order(0, 1) != order(0, 0)
    assert sorted(r for b in order(5) for r in b) == list(range(len(data)))


# --- targets ---

def test_loss_only_where_it_should_be(small, data):
    _, tok, start, ids, frame = small
    for i, (kind, talk) in enumerate(zip(frame['learn'], frame['messages'].to_list())):
        t, learn = data[i]
        said = tok.decode(t[learn]).removesuffix('\n')
        read = tok.decode(t[~learn])
        assert '<|im_start|>assistant' in read and '<|im_end|>' in read
        asked = re.findall(r'<[|]sid_[0-9]+[|]>', talk[0]['content'])
        assert said == (''.join(asked) if kind == 'ids' else '') + talk[-1]['content'] + '<|im_end|>'
    assert (data.targets == [data[i][1][1:].sum() for i in range(len(data))]).all()


def test_only_targets_matter(model, data):
    "Another token where nothing is learned before the last target changes the loss only through what is read, and padding not at all"
    rows = epoch_batches(data, 512, 0)[0]
    (x, learn), (y, _) = collate(data, rows), collate(data, rows, pad=7)
    assert loss_of(model, x, learn).item() == loss_of(model, y, learn).item()
    assert loss_of(model, x, torch.zeros_like(learn)).item() == 0


def test_nothing_to_learn_is_said(small):
    with pytest.raises(InputError, match='nothing to learn'): encode_texts(small[1], [])
    with pytest.raises(InputError, match='nothing to learn'): encode_conversations(small[1], small[4][:0])
    with pytest.raises(InputError, match="lack the column 'learn'"): encode_conversations(small[1], small[4].drop('learn'))


def test_model_and_words_must_fit(small, data):
    model, tok = load_base('small', preset('tiny'), ['a game'])
    with pytest.raises(InputError, match='call extend'): encode_conversations(tok, small[4])
    with pytest.raises(InputError, match='extend model and tokenizer together'): train(model, data, 2)


# --- one loop, in pieces ---

def test_pieces_of_a_batch_are_the_batch(model, data):
    whole, pieces = copy.deepcopy(model), copy.deepcopy(model)
    a, b = train(whole, data, 8, **KW), train(pieces, data, 8, accumulate=3, recompute=2, **KW)
    assert np.allclose(a['loss'], b['loss'], atol=1e-3) and a['tokens'] == b['tokens']
    with torch.inference_mode(): assert not loss_of(pieces, *collate(data, [0])).requires_grad


def test_packed_training_learns(model, data):
    log = train(model, data, 24, batch_tokens=512, row_tokens=128, dtype='float32')
    assert np.mean(log['loss'][-3:]) < .8*np.mean(log['loss'][:3])


def test_loss_that_is_no_number_is_one_clear_error(model, data, tmp_path):
    "And the weights are those of the step before"
    def spoil(step, loss):
        if step == 4: matrices(model)[0].data[data.tokens[0]] = float('nan')
    with pytest.raises(InputError, match='the loss is nan; try a smaller lr than 0.003') as e: train(model, data, 60, log=spoil, checkpoint=tmp_path/'c', every=2, **KW)
    assert '\n' not in str(e.value)
    assert len(read_json(tmp_path/'c'/'state.json')['loss']) == 4


def test_bad_settings(model, data):
    with pytest.raises(InputError, match='unknown optimizer'): train(model, data, 2, optimizer='sgd')
    for k, v in dict(steps=-1, batch_tokens=0, accumulate=0, every=0).items():
        with pytest.raises(InputError, match=f'{k} is {v}'): train(model, data, **dict(dict(steps=2), **{k: v}))
    with pytest.raises(InputError, match='unknown dtype'): train(model, data, 2, dtype='int8')
    with pytest.raises(InputError, match="optimizer='adamw'"): train(model, data, 2, dtype='float16')


def test_time_budget_ends_annealed(model, data):
    seen = []
    log = train(model, data, 100_000, seconds=1.5, log=lambda *a: seen.append(a), **KW)
    assert 2 < len(log["loss"]) == len(seen) < 100_000


# --- resume ---

class Killed(Exception): pass


@pytest.mark.parametrize('options', [dict(), dict(optimizer='adamw', row_tokens=128, accumulate=2), dict(rows_from=0)], ids=['muon', 'packed', 'rows'])
def test_resume_is_the_uninterrupted_run(small, data, tmp_path, options):
    model, val = small[0], encode_conversations(small[1], small[4][::7])
    options = {k: small[2] if k == 'rows_from' else v for k, v in options.items()}
    def run(folder=None, stop=None):
        m = copy.deepcopy(model)
        def log(step, loss):
            if step == stop: raise Killed
        return m, train(m, data, 12, val=val, probe=lambda step: dict(square=step**2), checkpoint=folder, every=3, log=log, **KW, **options)
    with pytest.raises(Killed): run(tmp_path/'c', 7)
    (a, resumed), (b, whole) = run(tmp_path/'c'), run()
    for k in ('loss', 'val', 'probes', 'tokens'): assert resumed[k] == whole[k]
    assert [s for s, _ in whole['val']] == [3, 6, 9, 12] == [p['step'] for p in whole['probes']]
    for p, q in zip(a.parameters(), b.parameters()): assert torch.equal(p, q)


def test_resume_of_sixteen_bits(small, data, tmp_path):
    "Rounding by chance is part of the random state that a checkpoint keeps"
    def run(folder=None, stop=None):
        torch.manual_seed(1)
        m = copy.deepcopy(small[0]).to(torch.bfloat16)
        def log(step, loss):
            if step == stop: raise Killed
        return m, train(m, data, 8, optimizer='adamw16', checkpoint=folder, every=3, log=log, batch_tokens=256)['loss']
    with pytest.raises(Killed): run(tmp_path/'c', 5)
    (a, resumed), (b, whole) = run(tmp_path/'c'), run()
    assert resumed == whole and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_best_weights_are_kept(small, data):
    "A learning rate far too high makes the last weights worse than earlier ones"
    m, val = copy.deepcopy(small[0]), encode_conversations(small[1], small[4][::5])
    log = train(m, data, 40, lr=.2, optimizer='adamw', val=val, every=2, **KW)
    best = min(v for _, v in log['val'])
    assert best < log['val'][-1][1] or best == log['val'][-1][1]
    assert abs(mean_loss(m, val) - best) < 1e-4


# --- new rows ---

def test_old_rows_do_not_move(small, data):
    model, start = copy.deepcopy(small[0]), small[2]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    old = [m[:start].detach().clone() for m in matrices(model)]
    train(model, data, 6, rows_from=start, row_tokens=128, accumulate=2, **KW)
    tables = matrices(model)
    assert all(torch.equal(m[:start], o) for m, o in zip(tables, old))
    for n, p in model.named_parameters(): assert torch.equal(p, before[n]) == (not any(p is m for m in tables)), n


def test_lora_and_new_rows(small, data):
    pytest.importorskip('peft')
    model, tok, start = copy.deepcopy(small[0]), small[1], small[2]
    old = [m[:start].detach().clone() for m in matrices(model)]
    inner = next(p for n, p in model.named_parameters() if 'q_proj' in n).detach().clone()
    small_one = with_lora(model, start, rank=4)
    log = train(small_one, data, 30, lr=3e-3, optimizer='adamw', **KW)
    assert np.mean(log['loss'][-5:]) < np.mean(log['loss'][:5])
    before = mean_loss(small_one, data)
    plain = small_one.merge_and_unload()
    assert abs(mean_loss(plain, data) - before) < 1e-3
    assert all(torch.equal(m[:start], o) for m, o in zip(matrices(plain), old)), 'an old row moved'
    assert len(matrices(plain)) == len(old)
    assert not torch.equal(next(p for n, p in plain.named_parameters() if 'q_proj' in n), inner)


# --- sixteen bits ---

def test_rounding_by_chance_is_right_on_average():
    torch.manual_seed(0)
    x = torch.tensor([1.001, -1.001, 3e-5, 0., -12345.6]).repeat(40_000, 1)
    y = by_chance(x.contiguous()).float()
    assert torch.allclose(y.mean(0), x[0], rtol=2e-4, atol=1e-7)
    gap = (y - x).abs().max(0).values
    assert (gap <= x[0].abs()*2**-7).all() and (y[:, 3] == 0).all()


def test_adamw16_is_adamw_in_32_bits():
    torch.manual_seed(0)
    a = torch.nn.Linear(8, 8); b = copy.deepcopy(a)
    kw = dict(lr=1e-2, betas=(.9, .95), weight_decay=.1)
    for m, opt in ((a, torch.optim.AdamW(a.parameters(), **kw)), (b, AdamW16(b.parameters(), **kw))):
        for i in range(20):
            opt.zero_grad(); (m(torch.ones(3, 8)*i/20) - 1).square().mean().backward(); opt.step()
    for p, q in zip(a.parameters(), b.parameters()): assert torch.allclose(p, q, atol=1e-5)


def test_small_steps_survive():
    p, q = (torch.nn.Parameter(torch.ones(4000, dtype=torch.bfloat16)) for _ in range(2))
    for w, opt in ((p, torch.optim.AdamW([p], lr=1e-4, weight_decay=0.)), (q, AdamW16([q], lr=1e-4))):
        for _ in range(100): w.grad = torch.ones_like(w); opt.step()
    assert (p == 1).all(), 'plain rounding loses every step'
    assert abs(q.float().mean().item() - .99) < 1e-3


# --- eight billion ---

def test_memory_of_eight_billion():
    from transformers import Qwen3Config, Qwen3ForCausalLM
    with torch.device('meta'):
        big = Qwen3ForCausalLM(Qwen3Config(vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                                           tie_word_embeddings=False, max_position_embeddings=40_960)).to(torch.bfloat16)
    assert sum(p.numel() for p in big.parameters()) == 8_190_735_360
    big.resize_token_embeddings(152_704, mean_resizing=False)
    assert [len(m) for m in matrices(big)] == [152_704]*2
    plan = memory_plan(big, 'adamw16')
    assert plan == dict(weights=15.3, gradients=15.3, states=30.5, total=61.1) and plan['total'] < 79
    assert memory_plan(big.float(), 'adamw')['total'] > 120


def test_saved_bytes_grow_with_tokens_and_layers(model, data):
    rows = epoch_batches(data, 256, 0)[0][:2]
    x, learn = collate(data, rows)
    model.set_attn_implementation('sdpa'); model.train()
    one, two = saved_bytes(model, x, learn), saved_bytes(model, x.repeat(2, 1), learn.repeat(2, 1))
    assert 1.9 < two/one < 2.1


def test_recompute_keeps_less(model, data):
    "Each layer computed twice, every second, none: less memory, more, most; the gradient is the same"
    x, learn = collate(data, epoch_batches(data, 256, 0)[0])
    model.set_attn_implementation('sdpa'); model.train()
    kept, grads = [], []
    for every in (1, 2, 0):
        with _recomputed(model, every):
            kept.append(saved_bytes(model, x, learn))
            model.zero_grad(); loss_of(model, x, learn).backward(); grads.append(matrices(model)[0].grad.clone())
    assert kept[0] < kept[1] < kept[2]
    assert all(torch.allclose(g, grads[2], atol=1e-6) for g in grads)


def test_recipes_belong_to_presets(small, data):
    assert set(recipes) < set(presets) and recipe('quickstart') == ('float32', {})
    for name in recipes:
        weights, options = recipe(name)
        m = copy.deepcopy(small[0]).to(getattr(torch, weights))
        p = preset(name)
        options = dict(optimizer=p.optimizer, dtype=p.dtype) | options | (dict(dtype='bfloat16') if name == 'colab' else {})
        log = train(m, data, 1, batch_tokens=2048, **options)
        assert len(log['loss']) == 1 and np.isfinite(log['loss']).all()


def test_fsdp_config_is_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file
    import semantic_ids
    c = load_config_from_file(str(Path(semantic_ids.__file__).parent/'fsdp.json'))
    assert c.distributed_type == 'FSDP' and int(c.fsdp_config['fsdp_version']) == 2 and c.mixed_precision == 'bf16'


# --- probes ---

def test_level_accuracy_and_replies(small, data):
    model, tok, start, ids, frame = small
    model = copy.deepcopy(model)
    before = level_accuracy(model, tok, data, ids)
    log = train(model, data, 60, batch_tokens=512, dtype='float32', probe=lambda step: dict(levels=level_accuracy(model, tok, data, ids)), every=30)
    after = log['probes'][-1]['levels']
    assert len(before) == len(after) == 4 and np.mean(after) > np.mean(before) + .1
    by_hand = []
    for i in range(len(data)):
        t, learn = data[i]
        guess = model(input_ids=torch.from_numpy(t.astype(np.int64))[None]).logits[0, :-1].argmax(-1).numpy()
        by_hand += [((c - start - 3)//K, c == g) for c, g, on in zip(t[1:], guess, learn[1:]) if on and c >= start + 3 and c < start + 3 + 4*K]
    assert np.allclose(after, [np.mean([h for l, h in by_hand if l == k]) for k in range(4)], atol=.002)
    said = replies(model, tok, [m[:1] for m in frame['messages'].to_list()[:3]], 8)
    assert len(said) == 3 and said[0] == replies(model, tok, [frame['messages'].to_list()[0][:1]], 8)[0]


def test_trackers_hear_every_step(model, data):
    from accelerate.tracking import GeneralTracker
    class Note(GeneralTracker):
        name, requires_logging_directory, heard = 'note', False, []
        tracker = property(lambda self: self)
        def store_init_configuration(self, values): pass
        def log(self, values, step=None, **kw): self.heard.append((step, values))
    note = Note()
    log = train(model, data, 4, trackers=[note], **KW)
    assert [s for s, _ in note.heard] == [0, 1, 2, 3] and [v['loss'] for _, v in note.heard] == log['loss']
    assert all(v['grad_norm'] > 0 for _, v in note.heard)


# --- two processes ---

def one_run(folder):
    "An untied head, batches that do not divide evenly; the process that writes also says what it saw"
    torch.set_num_threads(1)
    model, tok, start, ids, frame = material(tied=False)
    data = encode_conversations(tok, frame)
    log = train(model, data, 10, batch_tokens=256, dtype='float32', val=encode_conversations(tok, frame[::9]), checkpoint=folder/'ck', every=4)
    save_model(model, tok, folder/'model', 'float32')
    if os.environ.get('RANK', '0') == '0': (folder/'log.json').write_text(json.dumps(dict(loss=log['loss'], val=log['val'], tokens=log['tokens'], n=int(os.environ.get('WORLD_SIZE', 1)))))


def sharded_run(folder):
    "The same model cut into pieces by FSDP: loss, a step, a checkpoint and the saved model are those of the whole one"
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    model, tok, start, ids, frame = material(tied=False)
    data = encode_conversations(tok, frame)
    xs = collate(data, epoch_batches(data, 256, 0)[0])
    alone, learner, mesh = copy.deepcopy(model), Learner(model), init_device_mesh('cpu', (2,))
    for m in [m for m in learner.modules() if type(m).__name__ in learner._no_split_modules]: fully_shard(m, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    losses = []
    for call, m in ((learner, model), (Learner(alone), alone)):
        opts = optimizers(m, 1e-2, 'adamw')
        for _ in range(3):
            loss = call(*xs); loss.backward(); losses.append(loss.item())
            if len(losses) == 2: save_checkpoint(folder/'sharded', model, opts, dict(key='k', loss=losses[:]), write=dist.get_rank() == 0); dist.barrier(); assert load_checkpoint(folder/'sharded', model, opts, 'k')['loss'] == losses
            for o in opts: o.step(); o.zero_grad()
    save_model(model, tok, folder/'whole', 'float32'); dist.barrier()
    assert np.allclose(losses[:3], losses[3:], atol=1e-5), losses
    for p, q in zip(load_base(str(folder/'whole'))[0].parameters(), alone.parameters()): assert torch.allclose(p, q, atol=1e-4)


def test_two_processes_are_one(tmp_path):
    "Two processes that talk through gloo see the losses of one and end at its weights"
    (tmp_path/'run.py').write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_finetuning import *\none_run(Path({str(tmp_path/'two')!r})); sharded_run(Path({str(tmp_path/'two')!r}))")
    for k in ('one', 'two'): (tmp_path/k).mkdir()
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'run.py')]
    two = subprocess.Popen(launch, env=dict(ENV, ACCELERATE_USE_CPU='true'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    one_run(tmp_path/'one')
    out = two.communicate(timeout=300)[0]
    assert two.returncode == 0, out[-2000:]
    a, b = (read_json(tmp_path/k/'log.json') for k in ('one', 'two'))
    assert (a['n'], b['n']) == (1, 2) and a['tokens'] == b['tokens']
    assert np.allclose(a['loss'], b['loss'], atol=1e-3) and np.allclose(a['val'], b['val'], atol=1e-3)
    p, q = (load_base(str(tmp_path/k/'model'))[0] for k in ('one', 'two'))
    assert max((x - y).abs().max().item() for x, y in zip(p.parameters(), q.parameters())) < 1e-3
    assert len(read_json(tmp_path/'two'/'ck'/'state.json')['loss']) == 8


# --- the vocabulary ---

def test_old_rows_stand_still_in_sixteen_bits(small, data):
    "Rounding by chance leaves a number alone that has no step to make"
    model, start = copy.deepcopy(small[0]).to(torch.bfloat16), small[2]
    old, new = ([m.detach().clone()[s] for m in matrices(model)] for s in (slice(start), slice(start, None)))
    train(model, data, 6, lr=1e-3, optimizer='adamw16', rows_from=start, batch_tokens=256)
    assert all(torch.equal(m[:start], o) for m, o in zip(matrices(model), old))
    assert not any(torch.equal(m[start:], n) for m, n in zip(matrices(model), new))


def test_drift_knows_the_markers(small):
    "One level moved is one level reported, not three rows of its neighbour"
    model, tok, start, ids, _ = small
    before = matrices(model)[0].detach().clone()
    for level in range(4):
        now, at = before.clone(), tok.convert_tokens_to_ids(f'<|sid_{level*K}|>')
        now[at:at + K] *= 1.5
        gone = row_drift(now, before, start, 4, K)
        assert abs(gone.pop(f'level_{level + 1}') - .5) < 1e-5 and set(gone.values()) == {0.}
    now = before.clone(); now[start:start + 3] *= 2
    assert abs(row_drift(now, before, start, 4, K)['markers'] - 1) < 1e-5


def test_codebook_is_translated(small):
    "Where words are a linear function of item vectors, a codebook vector lands where its words are"
    ids, rng = small[3], np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(N, 16)))
    x = rows.numpy()@rng.normal(size=(16, 24))
    words = [[i] for i in range(N)]
    books = np.zeros((4*K, 24)); books[:N//2] = x[:N//2] - x.mean(0)
    z = translated(rows, words, x, books, ridge=1e-9)
    want = rows[:N//2] - rows.mean(0)
    assert torch.nn.functional.cosine_similarity(z[:N//2], want).min() > .999
    assert (z[N//2:] == 0).all() and torch.allclose(z[:N//2].std(1), rows.std().expand(N//2), rtol=1e-3)


def test_extend_with_a_codebook(small):
    ids, tied = small[3], len(matrices(small[0])) == 1
    facts, rng = [f'game {i}' for i in range(N)], np.random.default_rng(0)
    rows = []
    for codebook in (None, (rng.normal(size=(N, 12)), rng.normal(size=(4*K, 12)))):
        model, tok = load_base('small', preset('tiny'), facts, tied=tied)
        start = extend(model, tok, ids, facts, codebook=codebook)
        rows.append(torch.cat([m[start:len(tok)].detach() for m in matrices(model)]))
        assert torch.isfinite(rows[-1]).all()
    assert torch.equal(rows[0][:3], rows[1][:3]) and not torch.equal(rows[0][3:], rows[1][3:])


def test_empty_thought_is_qwens(models_folder):
    "With the block, our template writes what Qwen3's own writes when thinking is off"
    from transformers import AutoTokenizer
    tok, theirs = (AutoTokenizer.from_pretrained(models_folder/'qwen_tokenizer') for _ in range(2))
    use_chatml(tok, EMPTY_THOUGHT)
    turns = [dict(role=r, content=c) for r, c in (('system', 'S'), ('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', 'd'))]
    for n in (2, 3, 4, 5):
        assert prompt_text(tok, turns[:n]) == theirs.apply_chat_template(turns[:n], add_generation_prompt=True, tokenize=False, enable_thinking=False)
        assert chat_text(tok, turns[:n]) == theirs.apply_chat_template(turns[:n], tokenize=False, enable_thinking=False)
    plain = use_chatml(theirs)
    assert '<think>' not in prompt_text(plain, turns[:2]) and plain.chat_template == CHATML


def test_the_true_vocabulary_on_the_meta_device(models_folder):
    "Qwen3-8B's tables hold 267 spare rows; 1,027 new tokens make 152,704"
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    tok = use_chatml(AutoTokenizer.from_pretrained(models_folder/'qwen_tokenizer'))
    known = len(tok)
    tok.add_tokens(sid_tokens(4, 256))
    assert len(tok) - known == 1027 and 151_936 - known == 267
    with torch.device('meta'): m = Qwen3ForCausalLM(Qwen3Config(vocab_size=151_936, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False))
    grow_rows(m, tok)
    assert [len(w) for w in matrices(m)] == [152_704]*2


def test_stories260k_is_trained_packed(models_folder, small):
    "A Llama, by the same functions: packed rows, new rows first, then LoRA"
    pytest.importorskip('peft')
    ids, frame = small[3], small[4]
    model, tok = load_base(str(models_folder/'stories260K'))
    start = extend(model, tok, ids, [f'item {i}' for i in range(N)])
    data = encode_conversations(tok, frame, max_len=256)
    old = [m[:start].detach().clone() for m in matrices(model)]
    train(model, data, 3, rows_from=start, row_tokens=256, batch_tokens=512, dtype='float32')
    lora = with_lora(model, start, rank=4)
    log = train(lora, data, 12, row_tokens=256, batch_tokens=512, optimizer='adamw', dtype='float32')
    assert np.mean(log['loss'][-3:]) < np.mean(log['loss'][:3])
    assert all(torch.equal(m[:start], o) for m, o in zip(matrices(lora.merge_and_unload()), old))
