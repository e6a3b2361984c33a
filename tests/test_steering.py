import random
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from semantic_ids import conversations as talk
from semantic_ids import steering
from semantic_ids.catalogue import fits, load
from semantic_ids.histories import encode, split
from semantic_ids.ids import make_ids
from semantic_ids.runs import InputError, preset

@pytest.fixture(scope='module')
def shop(): return load('shop').top(150)

@pytest.fixture(scope='module')
def f(shop): return talk.Facets(shop)

@pytest.fixture(scope='module')
def cut(shop): return split(encode(shop))

@pytest.fixture(scope='module')
def strings(shop):
    codes = np.random.default_rng(1).integers(0, 16, (len(shop.items), 3))
    return make_ids(codes, shop.items['item_id'].to_list(), 16).strings

patterns = talk.load_requests()
lists = st.lists(st.integers(0, 60), min_size=10, max_size=10, unique=True)

# counting

@given(lists, st.sets(st.integers(0, 60), min_size=1, max_size=50), st.integers(0, 10))
def test_a_score_is_a_share_and_empty_places_never_fit(row, good, filled):
    row = np.array(row[:filled] + [-1]*(10 - filled))
    out = steering.score(row, list(good))
    assert set(out) == {'top1', 'satisfaction@10' if len(good) >= steering.COMMON else 'recall@fit'}
    assert all(0 <= v <= 1 for v in out.values()) and out['top1'] == (filled > 0 and row[0] in good)
    if len(good) >= steering.COMMON: assert out['satisfaction@10'] == len(set(row) & good)/10

@given(lists, st.sets(st.integers(0, 60), min_size=steering.COMMON, max_size=50), st.randoms())
def test_the_order_of_ten_changes_top1_alone(row, good, rng):
    other = rng.sample(row, 10)
    assert steering.score(np.array(row), list(good))['satisfaction@10'] == steering.score(np.array(other), list(good))['satisfaction@10']

@given(st.lists(st.tuples(st.sampled_from(['a', 'b', 'c']), lists, st.sets(st.integers(0, 60), min_size=1, max_size=50)), min_size=1, max_size=12))
def test_a_summary_is_the_mean_of_its_requests(rows):
    requests, found = [dict(kind=k, fits=sorted(g)) for k, _, g in rows], [np.array(l) for _, l, _ in rows]
    out = steering.summary(requests, found, np.arange(10))
    assert out['prompts'] == len(rows)
    for kind in {k for k, _, _ in rows}:
        mine = [steering.score(np.array(l), sorted(g)) for k, l, g in rows if k == kind]
        for name in ('top1', 'satisfaction@10', 'recall@fit'):
            values = [s[name] for s in mine if name in s]
            assert out.get(name, {}).get(kind) == (pytest.approx(np.mean(values), abs=1e-4) if values else None)

def test_overall_counts_every_kind_alike():
    out = steering.overall({'top1': {'a': 1., 'b': 0.}, 'satisfaction@10': {'a': .5, 'b': .1}})
    assert out == dict(top1=.5, satisfaction=.3)

# requests

@settings(max_examples=40, deadline=None)
@given(st.sampled_from([p for p in patterns if not steering.concrete(p)]), st.integers(0, 10**6))
def test_a_filled_pattern_can_be_met_and_has_no_slot_left(f, pattern, seed):
    got = steering.fill(f, pattern, random.Random(seed))
    if got is None: return
    assert steering.concrete(got) and set(got['wants']) == set(pattern['wants']) and talk.mask_of(f, got['wants']).any()
    said = ' '.join(got['turns']).lower()
    assert all(steering.spoken(a, v).lower() in said for a, v in got['wants'].items() if isinstance(v, str))
    assert got == steering.fill(f, pattern, random.Random(seed))

def test_wishes_are_fulfilled_by_the_next_purchase(shop, f, cut):
    rows = np.arange(0, len(cut), 40)
    wishes = steering.next_wishes(shop, cut, rows, patterns)
    assert len(wishes) == len(rows) and all(cut.test[r] in w['fits'] for r, w in zip(rows, wishes))
    for w in wishes: np.testing.assert_array_equal(w['fits'], np.flatnonzero(fits(shop.items, w['wants'])))
    assert [w['turns'] for w in wishes] == [w['turns'] for w in steering.next_wishes(shop, cut, rows, patterns)]
    assert sum(not w['wants'] for w in wishes) == 0
    with pytest.raises(InputError, match='slots are all wanted'): steering.next_wishes(shop, cut, rows, [dict(kind='genre', turns=['a puzzle'], wants={'genre': 'Puzzle'})])

def test_relevance_hides_what_was_bought_and_keeps_to_the_filter(shop, cut, strings):
    rows, seen = np.arange(0, len(cut), 60), []
    wishes = steering.next_wishes(shop, cut, rows, patterns)
    def knows(chats, allowed):
        seen.append(allowed)
        return np.repeat(cut.test[rows][:, None], 10, 1), ['']*len(chats)
    out = steering.relevance(knows, cut, rows, wishes, strings)
    assert set(out.values()) == {1.} and len(seen) == 3
    for k, r in enumerate(rows):
        assert not any(m[k, cut.inputs('test')[r]].any() for m in seen) and all(m[k, cut.test[r]] for m in seen)
        assert set(np.flatnonzero(seen[1][k])) <= set(wishes[k]['fits'])

def test_nothing_fits_an_impossible_wish(f):
    none = steering.impossible(f, patterns, 50)
    assert len(none) == 50 and not any(talk.mask_of(f, r['wants']).any() for r in none) and all(steering.concrete(r) for r in none)
    assert steering.impossible(f, [], 5) == []

# what is said

def test_refusals_are_counted_on_both_sides(shop, f):
    can, cannot = steering.requests_for(shop, patterns[:8], 5), steering.impossible(f, patterns, 20)
    no = {talk.as_messages([talk.ask_items(r['turns'][0])])[1]['content'] for r in cannot}
    honest = lambda chats: [f'Puzzle: {talk.NOTHING}' if c[1]['content'] in no else strings_of(c) for c in chats]
    strings_of = lambda c: '<|sid_start|>'
    assert steering.honesty(honest, can, cannot) == dict(rightly=1., wrongly=0., wishes=20)
    assert steering.honesty(lambda chats: [talk.NOTHING]*len(chats), can, cannot)['wrongly'] == 1.

def test_a_wish_is_restated_exactly_or_not(shop):
    requests = steering.requests_for(shop, [p for p in patterns if p['kind'] in ('genre', 'platform')], 4)
    said = [talk.understood(r['wants']) + ':\n' for r in requests]
    assert set(steering.restated(requests, said)['understood'].values()) == {1.}
    assert set(steering.restated(requests, ['']*len(said))['understood'].values()) == {0.}

def test_names_of_bundles_are_claims(f):
    sets = steering.bundles(f, 10)
    assert len(sets) == 10 and all(len(set(s)) == 3 for s in sets)
    true = [next(v for names, m in f.member.values() for v, row in zip(names, m) if row[s].all()) for s in sets]
    assert steering.bundle_score(f, sets, [f'The {v} Bundle' for v in true])['precision'] == 1.
    assert steering.bundle_score(f, sets, ['The Nonsense Bundle']*10)['precision'] == 0.
    assert steering.bundle_score(f, [], [])['words'] == 0

def test_items_that_do_not_exist_are_found_out(strings):
    a, b = strings[:2]
    answers = [f'{a}\n{b}', f'{a}{a}', '<|sid_start|><|sid_9999|><|sid_end|>', f'{a}<|sid_3|>']
    out = steering.generated(lambda chats, seed: answers, [[]], strings, n=6, batch=4)
    assert out == dict(items=6, missing=1, duplicates=1, broken=1)

def test_a_list_that_breaks_its_filter_is_found_out(shop):
    requests = steering.requests_for(shop, patterns[:40], 3)
    obeys = lambda chats, ok: (np.array([np.resize(np.flatnonzero(m), 10) for m in ok]), ['']*len(chats))
    breaks = lambda chats, ok: (np.array([np.resize(np.flatnonzero(~m), 10) for m in ok]), ['']*len(chats))
    assert steering.enforced(obeys, requests, len(shop))['fit'] == 1. and steering.enforced(breaks, requests, len(shop))['fit'] == 0.

def test_search_by_names_finds_what_is_named(f):
    names = f.member['platform'][0][:5]
    found = steering.word_search(f)([talk.as_messages([f'something for {n}']) for n in names])[0]
    assert all(f.member['platform'][1][j, row[0]] for j, row in enumerate(found))

# benches

SMALL = dict(eval_prompts=1, eval_users=8, rq_steps=20, sasrec_epochs=1)

@pytest.fixture(scope='module')
def controls(tmp_path_factory):
    from semantic_ids.bench import bench_controls
    file = tmp_path_factory.mktemp('controls')/'controls.json'
    return file, bench_controls(load('shop'), file, preset('tiny', **SMALL))

def test_all_three_namings_and_search_are_measured(controls):
    rows = {r['model']: r for r in controls[1]['rows']}
    assert list(rows) == ['semantic IDs', 'random IDs', 'titles', 'search', 'search, not re-ranked', 'content_knn']
    for n in ('semantic IDs', 'random IDs', 'titles'):
        r = rows[n]
        assert r['valid_rate'] == 1. and r['users'] == 8 and set(r['language_loss']) == {'before', 'after'}
        assert {'hit@10', 'hit@10 words', 'hit@10 filter', 'hit@10 words and filter', 'top1', 'satisfaction', 'steering'} <= set(r)
    assert rows['semantic IDs']['levels'] == rows['random IDs']['levels'] == 4 < rows['titles']['levels']
    assert 'hit@10' not in rows['search'] and rows['search']['protocol'] == 'loo'

def test_measured_rows_are_kept(controls, monkeypatch):
    from semantic_ids import bench
    monkeypatch.setattr(bench, 'speaker', lambda *a: pytest.fail('measured again'))
    again = bench.bench_controls(load('shop'), controls[0], preset('tiny', **SMALL))
    assert again['rows'] == controls[1]['rows']

def test_a_deal_keeps_the_tree_and_moves_the_items():
    from semantic_ids.bench import dealt
    from semantic_ids.ids import Trie
    ids = make_ids(np.random.default_rng(0).integers(0, 8, (200, 3)), [f'{i:03}' for i in range(200)], 64)
    other = dealt(ids)
    assert sorted(ids.strings) == sorted(other.strings) and ids.item_ids == other.item_ids and (ids.codes != other.codes).any(1).mean() > .9
    assert Trie(ids.codes).sizes == Trie(other.codes).sizes

def test_titles_are_scored_as_a_plain_reading_scores_them(tmp_path):
    import torch
    from semantic_ids.bench import TitleStep, Titled, speaker
    from semantic_ids.decoding import _reading, prompt_tokens
    from semantic_ids.ids import beam
    w = speaker(load('shop').top(60), preset('tiny', rq_steps=20, llm_steps=6), tmp_path/'run', 'titles')
    a = Titled(w)
    begun = prompt_tokens(a.model, a.tok, [talk.words_prompt('a puzzle for my pc')], '<|sid_start|>')
    with _reading(a.model, 'float32'): items, scores = beam(TitleStep(a.model, a.tok, w.trie.n_levels, begun), w.trie, 60, 1, None, 60)
    rest = [a.tok(s.removeprefix('<|sid_start|>'), add_special_tokens=False)['input_ids'] for s in w.ids.strings]
    with torch.no_grad(): logp = [a.model(torch.tensor([begun[0] + t])).logits[0, len(begun[0])-1:-1, :len(a.tok)].float().log_softmax(-1) for t in rest]
    exact = np.array([sum(float(l[k, x]) for k, x in enumerate(t)) for l, t in zip(logp, rest)])
    np.testing.assert_allclose(scores[0].numpy(), exact[items[0].numpy()], atol=1e-3)
    np.testing.assert_allclose(scores[0].numpy(), np.sort(exact)[::-1], atol=1e-3)

def test_titles_of_purchases_are_learned(tmp_path):
    from semantic_ids.bench import speaker, titles_learned
    from semantic_ids.finetuning import encode_conversations
    from semantic_ids.vocabulary import load_base
    w = speaker(load('shop').top(60), preset('tiny', rq_steps=20, llm_steps=4), tmp_path/'run', 'titles')
    tok = load_base(str(w.folder/'llm'))[1]
    frame = w.talks.filter(w.talks['learn'] == 'ids').head(20)
    start, end = tok.convert_tokens_to_ids(['<|sid_start|>', '<|sid_end|>'])
    plain = encode_conversations(tok, frame)
    data = titles_learned(plain, frame, start, end)
    learned = [tok.decode(t[l]) for t, l in (data[i] for i in range(len(frame)))]
    for text, messages in zip(learned, frame['messages'].to_list()):
        told = [s for s in w.ids.strings if s in messages[1]['content']]
        assert told and all(s.removeprefix('<|sid_start|>') in text for s in told) and 'bought' not in text

def test_new_items_are_unknown_until_they_are_added(tmp_path):
    from semantic_ids.bench import bench_new_items, new_figures, without
    whole = load('shop').top(100)
    part, cold = without(whole)
    assert cold.sum() == 5 and set(part.items['item_id']) == set(whole.items['item_id'].filter(~cold))
    assert not set(part.histories['item_ids'].explode()) & set(whole.items['item_id'].filter(cold))
    out = {r['model']: r for r in bench_new_items(load('shop'), tmp_path/'new.json', preset('tiny', **SMALL))['rows']}
    assert set(out) == {'items added', 'search', 'prefixes'} and all(0 <= out[m][k] <= 1 for m in ('items added', 'search') for k in ('shown', 'places', 'fair', 'hit@10 new', 'hit@10 old'))
    assert out['items added']['new_items'] == 5 and out['items added']['users_new'] > 0
    perfect = new_figures(np.tile(np.arange(10), (2, 1)), [dict(fits=np.arange(20))]*2, np.arange(30) < 10)
    assert (perfect['shown'], perfect['places'], perfect['fair']) == (1., 1., .5)

def test_a_finished_run_is_asked_everything(tmp_path):
    from semantic_ids.bench import bench, bench_steering, opened
    file = tmp_path/'steering.json'
    out = {r['model']: r for r in bench_steering(None, file, preset('tiny', **SMALL), items=40)['rows']}
    assert {'model', 'unsteered', 'search', 'search by names', 'relevance', 'understood', 'explanations', 'bundles', 'language', 'honesty', 'generated', 'where'} <= set(out)
    assert out['where']['fit'] == 1. and [out['generated'][k] for k in ('missing', 'duplicates', 'broken')] == [0, 0, 0] and out['generated']['items'] >= 40
    assert out['model']['top1'] > out['unsteered']['top1']
    assert bench_steering(None, file, preset('tiny', **SMALL), items=40)['rows'] == list(out.values())
    with pytest.raises(InputError, match='no catalogue/'): opened(tmp_path, preset('tiny'))
