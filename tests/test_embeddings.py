"""Encoders of any layout, the store of vectors, padding, pools and what the user brings."""
import json, shutil, types
import numpy as np
import polars as pl
import pytest
import semantic_ids.embeddings as em
from hypothesis import given, settings, strategies as st
from semantic_ids.runs import InputError, read_json

TEXTS = [f'{a} game about {b}{c}' for a in ('quiet', 'loud', 'old') for b in ('soap', 'ships', 'a very long war between two stars') for c in ('', ' and cats')]

@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "An encoder with random weights, saved by the library"
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast
    torch.manual_seed(0)
    d = tmp_path_factory.mktemp('tiny')
    words = '[PAD] [UNK] [CLS] [SEP] [MASK] game about quiet loud old soap ships a very long war between two stars and cats instruct'.split()
    (d / 'vocab.txt').write_text('\n'.join(words))
    bert = BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64))
    bert.save_pretrained(d / 'raw'); BertTokenizerFast(str(d / 'vocab.txt')).save_pretrained(d / 'raw')
    body = Transformer(str(d / 'raw'))
    SentenceTransformer(modules=[body, Pooling(32)], prompts=dict(query='instruct ', document='')).save(str(d / 'whole'))
    return d / 'whole'

@pytest.fixture
def asked(monkeypatch):
    "The texts that reach the encoder"
    from sentence_transformers import SentenceTransformer
    seen, encode = [], SentenceTransformer.encode
    monkeypatch.setattr(SentenceTransformer, 'encode', lambda self, inputs, **kw: seen.extend(inputs) or encode(self, inputs, **kw))
    return seen

def copy(src, to): shutil.copytree(src, to); return to

# encoders

def test_a_folder_is_taken(tiny):
    assert em.lacking(tiny) == [] and em.find_encoder(str(tiny)) == tiny
    x = em.embed(TEXTS, tiny)
    assert x.shape == (18, 32) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)

@pytest.mark.parametrize('gone', ['config.json', 'model.safetensors', '1_Pooling/config.json'])
def test_a_folder_that_lacks_a_file_is_refused(tiny, tmp_path, gone):
    d = copy(tiny, tmp_path / 'd'); (d / gone).unlink()
    with pytest.raises(InputError, match=gone) as e: em.find_encoder(str(d))
    assert '\n' not in str(e.value)

def test_a_folder_without_tokenizer_is_refused(tiny, tmp_path):
    d = copy(tiny, tmp_path / 'd')
    for f in em._TOKENIZERS: (d / f).unlink(missing_ok=True)
    with pytest.raises(InputError, match='tokenizer'): em.find_encoder(str(d))

def test_sharded_weights(tiny, tmp_path):
    from transformers import AutoModel
    d = copy(tiny, tmp_path / 'd'); (d / 'model.safetensors').unlink()
    AutoModel.from_pretrained(tiny).save_pretrained(d, max_shard_size='20KB')
    shards = em._weights(d)
    assert len(shards) > 1
    np.testing.assert_allclose(em.embed(TEXTS, d), em.embed(TEXTS, tiny), atol=1e-6)
    (d / shards[-1]).unlink()
    assert em.lacking(d) == [shards[-1]]

def test_a_bare_transformer_gets_mean_pooling(tiny):
    bare = tiny.parent / 'raw'
    assert not (bare / 'modules.json').exists()
    np.testing.assert_allclose(em.embed(TEXTS, bare), em.embed(TEXTS, tiny), atol=1e-6)

def test_a_language_model_as_encoder(models_folder):
    x = em.embed(['A farm full of animals', 'Space'], models_folder / 'stories260K')
    assert x.shape == (2, 64) and np.isfinite(x).all()

def test_a_broken_encoder_is_one_line(tiny, tmp_path):
    d = copy(tiny, tmp_path / 'd'); (d / 'model.safetensors').write_bytes(b'no')
    with pytest.raises(InputError, match='cannot load') as e: em.embed(TEXTS, d)
    assert '\n' not in str(e.value)

def hub(cache, name, src):
    "The local Hub cache with one model in it"
    repo = cache / f'models--{name.replace("/", "--")}'
    (repo / 'refs').mkdir(parents=True); (repo / 'refs' / 'main').write_text('abc')
    return copy(src, repo / 'snapshots' / 'abc')

def test_any_name_is_found_in_the_local_hub_cache(tiny, tmp_path, monkeypatch):
    import huggingface_hub
    at, real = hub(tmp_path, 'who/any', tiny), huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **kw: real(name, cache_dir=tmp_path, **kw))
    assert em.find_encoder('who/any') == at
    (at / 'model.safetensors').unlink()
    assert em.from_cache('who/any') is None and em.from_cache('who/else') is None and em.from_cache('not a name') is None

def test_what_a_download_asks_for(tiny, monkeypatch, capsys):
    import huggingface_hub
    from fnmatch import fnmatch
    def fetch(name, local_files_only=False, allow_patterns=(), ignore_patterns=()):
        if local_files_only: raise FileNotFoundError
        take = lambda f: any(fnmatch(f, p) for p in allow_patterns) and not any(fnmatch(f, p) for p in ignore_patterns)
        assert all(map(take, ['model-00001-of-00002.safetensors', 'model.safetensors.index.json', '2_Dense/model.safetensors', 'merges.txt', '1_Pooling/config.json', 'chat_template.jinja']))
        assert not any(map(take, ['pytorch_model.bin', 'onnx/model.onnx', 'onnx/config.json', 'modeling.py']))
        return str(tiny)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
    assert em.find_encoder('who/any') == tiny and 'who/any' in capsys.readouterr().out

def test_a_download_without_safetensors_is_refused(tiny, tmp_path, monkeypatch):
    import huggingface_hub
    d = copy(tiny, tmp_path / 'd'); (d / 'model.safetensors').rename(d / 'pytorch_model.bin')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *a, **k: str(d))
    with pytest.raises(InputError, match='who/old: it has no model.safetensors'): em.find_encoder('who/old')

def test_minilm_by_its_short_name(monkeypatch):
    monkeypatch.setattr(em, 'from_cache', lambda name=em.ENCODER: name)
    assert {em.find_encoder(n) for n in ('auto', em.ENCODER, 'all-MiniLM-L6-v2')} == {em.ENCODER}
    assert em.find_encoder('all-mpnet-base-v2') == 'sentence-transformers/all-mpnet-base-v2'

# encoding

@settings(max_examples=15, deadline=None)
@given(picks=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=30), batch=st.integers(1, 9))
def test_a_vector_depends_on_nothing_but_its_text(tiny, picks, batch):
    whole = dict(zip(TEXTS, em.embed(TEXTS, tiny)))
    np.testing.assert_allclose(em.embed(picks, tiny, batch=batch), [whole[t] for t in picks], atol=1e-5)

def test_documents_get_no_query_prompt(tiny):
    plain = em.embed(TEXTS, tiny)
    assert np.abs(plain - em.embed(TEXTS, tiny, prompt='instruct ')).max() > 1e-3
    np.testing.assert_array_equal(plain, em.embed(TEXTS, tiny, prompt=''))

def test_dtypes(tiny):
    full = em.embed(TEXTS, tiny)
    half = em.embed(TEXTS, tiny, dtype='bfloat16')
    assert half.dtype == np.float32 and (full * half).sum(1).min() > .99 and np.abs(full - half).max() > 0
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)
    with pytest.raises(InputError, match='bfloat16'): em.embed(TEXTS, tiny, dtype='int3')

def test_chunks_change_nothing(tiny, monkeypatch):
    x = em.embed(TEXTS, tiny)
    monkeypatch.setattr(em, 'CHUNK', 4)
    np.testing.assert_allclose(em.embed(TEXTS, tiny), x, atol=1e-6)

def test_two_processes_give_the_same_vectors(tiny):
    np.testing.assert_allclose(em.embed(TEXTS, tiny, devices=['cpu', 'cpu']), em.embed(TEXTS, tiny), atol=1e-5)

def test_cut_is_the_librarys_cut(tiny):
    from sentence_transformers import SentenceTransformer
    theirs = SentenceTransformer(str(tiny)).encode_document(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(em.embed(TEXTS, tiny, dim=8), theirs, atol=1e-6)
    for dim in (0, 33):
        with pytest.raises(InputError, match='32 dimensions'): em.embed(TEXTS, tiny, dim=dim)

@pytest.mark.parametrize('texts, match', [([], 'no texts'), (['a', None], 'text 1'), (['a', 3], 'text 1')])
def test_bad_texts_are_refused(texts, match):
    with pytest.raises(InputError, match=match): em.embed(texts)

# the store

def test_only_what_changed_is_embedded_again(tiny, tmp_path, asked):
    x = em.embed(TEXTS + TEXTS[:3], tiny, cache=tmp_path)
    assert sorted(asked) == sorted(TEXTS)
    np.testing.assert_array_equal(x[18:], x[:3])
    asked.clear(); y = em.embed([*TEXTS[1:], 'a new game'], tiny, cache=tmp_path)
    assert asked == ['a new game']
    np.testing.assert_array_equal(y[:-1], x[1:18])
    asked.clear(); em.embed(TEXTS, tiny, dim=4, cache=tmp_path)
    assert asked == []

def test_other_settings_never_share_vectors(tiny, tmp_path, asked):
    other = copy(tiny, tmp_path / 'other')
    from safetensors.numpy import load_file, save_file
    save_file({k: v * 1.01 for k, v in load_file(other / 'model.safetensors').items()}, other / 'model.safetensors', metadata=dict(format='pt'))
    ways = [dict(), dict(dtype='bfloat16'), dict(prompt='instruct '), dict(encoder=other)]
    for kw in ways: em.embed(TEXTS, **{'encoder': tiny, 'cache': tmp_path / 'c', **kw})
    assert len(asked) == 18 * 4 and len([d for d in (tmp_path / 'c').iterdir()]) == 4

def test_weights_that_change_in_place_are_loaded_again(tiny, tmp_path):
    from safetensors.numpy import load_file, save_file
    d = copy(tiny, tmp_path / 'd')
    x = em.embed(TEXTS, d, cache=tmp_path / 'c')
    rng = np.random.default_rng(0)
    save_file({k: v + rng.normal(size=v.shape).astype(v.dtype) * .1 if v.dtype.kind == 'f' else v for k, v in load_file(d / 'model.safetensors').items()}, d / 'model.safetensors', metadata=dict(format='pt'))
    assert np.abs(em.embed(TEXTS, d, cache=tmp_path / 'c') - x).max() > 1e-3

def test_a_kill_loses_one_chunk(tiny, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(em, 'CHUNK', 4)
    real, calls = em.keep, []
    def keep(*a):
        if len(calls) == 3: raise KeyboardInterrupt
        calls.append(a); real(*a)
    monkeypatch.setattr(em, 'keep', keep)
    with pytest.raises(KeyboardInterrupt): em.embed(TEXTS, tiny, cache=tmp_path)
    assert len(asked) == 16
    asked.clear(); monkeypatch.setattr(em, 'keep', real)
    x = em.embed(TEXTS, tiny, cache=tmp_path)
    assert len(asked) == 18 - 12
    np.testing.assert_allclose(x, em.embed(TEXTS, tiny), atol=1e-6)

def half(f): f.write_bytes(f.read_bytes()[:-40])
def flip(f): b = bytearray(f.read_bytes()); b[-3] ^= 1; f.write_bytes(b)
def empty(f): f.write_bytes(b'')

@pytest.mark.parametrize('spoil', [half, flip, empty])
def test_a_damaged_chunk_is_made_again_and_said(tiny, tmp_path, asked, monkeypatch, spoil):
    monkeypatch.setattr(em, 'CHUNK', 6)
    x = em.embed(TEXTS, tiny, cache=tmp_path)
    asked.clear(); said = []
    monkeypatch.setattr(em, 'say', said.append)
    spoil(sorted(tmp_path.rglob('*.safetensors'))[0])
    np.testing.assert_allclose(em.embed(TEXTS, tiny, cache=tmp_path), x, atol=1e-6)
    assert len(asked) == 6 and len(said) == 1 and 'damaged' in said[0]
    asked.clear(); em.embed(TEXTS, tiny, cache=tmp_path)
    assert asked == []

def test_nothing_is_written_unless_asked(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    em.embed(TEXTS, tiny)
    assert list(tmp_path.iterdir()) == []

# a catalogue

def catalogue(n=6, **columns):
    return types.SimpleNamespace(items=pl.DataFrame(dict(item_id=[f'{i:03}' for i in range(n)], title=TEXTS[:n], platform=['PC', 'Wii'] * (n // 2), **columns)))

def test_settings_reach_the_encoder(tiny, tmp_path, asked):
    x, info = em.catalogue_vectors(catalogue(), tiny, dim=8, cache=tmp_path)
    assert x.shape == (6, 8 + 2) and info['text_dim'] == 8 and len(asked) == 6
    assert em.catalogue_vectors(catalogue(), tiny, dim=8, cache=tmp_path)[0].tolist() == x.tolist() and len(asked) == 6

def test_shipped_vectors_are_for_the_usual_settings_only(monkeypatch):
    from semantic_ids.catalogue import load
    top = load('shop').top(30)
    monkeypatch.setattr(em, 'embed', lambda texts, *a, **k: np.eye(len(texts), 50, dtype=np.float32))
    x, _ = em.catalogue_vectors(top)
    assert x.shape[1] == 485
    np.testing.assert_array_equal(em.catalogue_vectors(top, cache='unused')[0], x)
    for kw in (dict(dim=50), dict(prompt='q')): assert em.catalogue_vectors(top, **kw)[0].shape[1] < 485

def test_own_vectors_as_an_array(asked):
    x = np.random.default_rng(0).normal(size=(6, 5)) * 100
    got, info = em.catalogue_vectors(catalogue(), vectors=x)
    column, _ = em.catalogue_vectors(catalogue(vectors=x.tolist()))
    np.testing.assert_array_equal(got, column)
    np.testing.assert_allclose(got, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-3)
    assert info['encoder'] == 'own' and asked == []
    with pytest.raises(InputError, match='5 rows for 6 items'): em.catalogue_vectors(catalogue(), vectors=x[:5])

@pytest.mark.parametrize('row, match', [(0., 'first row 2 of length 0'), (1e20, 'first row 2'), (np.inf, 'NaN or infinity')])
def test_a_row_without_direction_is_refused(row, match):
    x = np.eye(4); x[2] = row
    with pytest.raises(InputError, match=match): em.check_vectors(x, 4)

# judging

@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 40), seed=st.integers(0, 99))
def test_twins_cosine_by_all_pairs(n, seed):
    rng = np.random.default_rng(seed)
    x, game = rng.normal(size=(n, 4)), rng.integers(0, 3, n).astype(str)
    u = em.unit_rows(x)
    pairs = [(u[i] @ u[j]) for i in range(n) for j in range(i) if game[i] == game[j]]
    if pairs: assert np.isclose(em.twins_cosine(x, game), np.mean(pairs))

def test_measured_rows_are_kept_and_replaced(tiny, tmp_path):
    from semantic_ids.catalogue import load
    items, to = load('shop').items.head(12), tmp_path / 'r' / 'encoders.json'
    for encoder in (str(tiny), str(tiny.parent / 'raw'), str(tiny)): em.measure_encoder(items, encoder, to, dim=16)
    rows = read_json(to)['rows']
    assert [r['model'] for r in rows] == [str(tiny.parent / 'raw'), str(tiny)]
    assert all(r['dimensions'] == 16 and r['texts'] == 12 and 0 <= r['same_platform'] <= 1 and r['texts_per_second'] > 0 for r in rows)
    assert json.loads(to.read_text())['rows'][0]['norm_max'] == 1
