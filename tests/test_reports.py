"Reports on ID tables: hand-computed numbers, bad input, re-assignment, the published layout"
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from semantic_ids.ids import SemanticIDs, buckets, make_ids, to_string
from semantic_ids.reports import entropy, gini, last_distances, read_mapping, reassign, report
from semantic_ids.runs import InputError

fast = settings(max_examples=60, deadline=None)

def test_level_numbers_by_hand():
    r = report(np.array([[0], [0], [0], [0], [1], [1], [2], [2]]), 4).frame.row(0, named=True)
    assert (r['used'], r['dead'], r['usage'], r['largest_bucket']) == (3, 1, .75, 4)
    assert r['entropy'] == pytest.approx(1.5) and r['perplexity'] == pytest.approx(2 ** 1.5)
    assert r['gini'] == pytest.approx(.375)
    assert (r['unique_share'], r['in_collision'], r['largest_code']) == (3 / 8, 1, .5)

def test_gini_and_entropy_at_their_ends():
    assert gini(np.array([2, 2, 2])) == 0 and gini(np.array([0, 0, 0, 8])) == .75
    assert entropy(np.array([5, 0])) == 0 and entropy(np.ones(8, int)) == pytest.approx(3)

def test_one_item_one_level_and_all_equal():
    one = report(np.array([[3]]), 8)
    assert one.warnings == [] and one.frame['unique_share'][0] == 1 and '1 item in 1 level' in one.words
    same = report(np.zeros((50, 2), int), 8)
    assert same.frame['largest_bucket'].to_list() == [50, 50] and same.frame['perplexity'].to_list() == [1, 1]
    assert '100 % of items share all codes; largest group 50' in same.warnings
    assert '50 items share one ID, more than the 8 values of a uniqueness code' in same.warnings
    assert 'level 1 uses 1 of 8 codes' in same.warnings and 'one first code carries 100 % of the items' in same.warnings
    same.figure(); assert '| level |' in same._repr_markdown_()

@pytest.mark.parametrize('codes', [np.array([[0., np.nan]]), np.array([[0, -1]]), np.array([[0, 8]]), np.array([[.5, 1]]), np.zeros((0, 3), int),
                                   np.zeros(3, int), np.zeros((3, 0), int), [[1, 2], [1]], [['a', 'b']], [[None, 1]], pl.DataFrame(dict(a=['x'])), pl.DataFrame(dict(codes=[[1, 2], [3]]))])
def test_what_is_no_table_of_codes_is_refused(codes):
    with pytest.raises(InputError): report(codes, 8)

def test_without_a_size_the_report_says_so_and_refuses_numbers_that_are_no_codes():
    assert 'dead codes above it do not show' in report(np.array([[3], [1]])).words
    for big in (np.array([[2**40]]), np.array([[1e300]]), np.array([[2**63]], np.uint64)):
        with pytest.raises(InputError): report(big)
    with pytest.raises(InputError): report(np.array([[3], [1]]), 4, items=pl.DataFrame(dict(platform=['PC'])))

def test_foreign_frames_and_id_tables_agree():
    codes = np.random.default_rng(0).integers(0, 8, (40, 3))
    a, b, c = report(codes, 8), report(pl.DataFrame(dict(codes=codes.tolist())), 8), report(pl.DataFrame(codes, schema=['a', 'b', 'c']), 8)
    d = report(make_ids(codes, range(40), 8))
    assert a.frame.equals(b.frame) and a.frame.equals(c.frame) and a.frame.equals(d.frame)
    assert 'uniqueness code uses' in d.words and 'uniqueness code uses' not in a.words

def test_vectors_are_checked_and_used():
    x, codes = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30)[:, None]
    r = report(codes, 30, x, x)
    assert r.overlap == 1 and r.cosine == pytest.approx(1) and '100 % of the five nearest' in r.words
    with pytest.raises(InputError): report(codes, 30, x[:-1], x[:-1])
    with pytest.raises(InputError): report(codes, 30, x, x * np.nan)

@st.composite
def tables(draw):
    n, levels, k = draw(st.integers(1, 30)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, k, (n, levels)), rng.integers(0, 4, (n, k)).astype(float), [f'i{j}' for j in rng.permutation(n)]

@fast
@given(tables(), st.sampled_from(['greedy', 'optimal']), st.randoms())
def test_reassign_keeps_every_other_code_and_makes_no_new_collision(table, how, rnd):
    codes, d, names = table
    w, (of, sizes) = reassign(codes, d, names, how), buckets(codes)
    assert (w.codes[:, :-1] == codes[:, :-1]).all()
    alone = sizes[of] == 1
    of2, sizes2 = buckets(w.codes)
    assert (w.codes[alone] == codes[alone]).all() and (sizes2[of2] == 1)[alone].all()
    group, members = buckets(codes[:, :-1]) if codes.shape[1] > 1 else (np.zeros(len(codes), int), np.array([len(codes)]))
    assert len(sizes2) == np.minimum(members, d.shape[1]).sum()                      # as unique as can be
    assert len(w.stuck) == len(codes) - len(sizes2) and (w.codes[w.stuck] == codes[w.stuck]).all()
    order = rnd.sample(range(len(codes)), len(codes))
    again = reassign(codes[order], d[order], [names[i] for i in order], how)
    np.testing.assert_array_equal(again.codes, w.codes[order])

@fast
@given(tables())
def test_optimal_costs_no_more_than_greedy_when_all_find_a_code(table):
    codes, d, names = table
    g, o = reassign(codes, d, names), reassign(codes, d, names, 'optimal')
    if not len(g.stuck): assert o.extra <= g.extra + 1e-9

def test_nearest_item_keeps_its_code():
    d = np.array([[.5, 1.], [.1, 2.]])
    assert reassign(np.zeros((2, 1), int), d).codes.tolist() == [[1], [0]]
    tie = reassign(np.zeros((2, 1), int), np.zeros((2, 2)), ['b', 'a'])
    assert tie.codes.tolist() == [[1], [0]]

@pytest.mark.parametrize('codes,d,kw', [(np.zeros((2, 1), int), np.zeros((3, 2)), {}), (np.zeros((2, 1), int), np.full((2, 2), np.nan), {}), (np.full((2, 1), 5), np.zeros((2, 2)), {}),
                                        (np.array([[0, 5], [0, 1]]), np.zeros((2, 2)), {}), (np.full((2, 1), -1), np.zeros((2, 2)), {}), (np.zeros((2, 1), int), np.zeros((2, 2)), dict(how='sinkhorn')), (np.zeros((2, 1)), np.zeros((2, 2)), {}), (np.zeros((2, 1), int), np.zeros((2, 2)), dict(item_ids=['a', 'a']))])
def test_reassign_refuses(codes, d, kw):
    with pytest.raises(InputError): reassign(codes, d, **kw)

def test_last_distances_by_loops():
    rng = np.random.default_rng(1)
    x, mean, books, codes = rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=(2, 4, 3)), rng.integers(0, 4, (5, 2))
    want = [[((x[i] - mean - books[0, codes[i, 0]] - b) ** 2).sum() for b in books[1]] for i in range(5)]
    np.testing.assert_allclose(last_distances(x, mean, books, codes), want)

@fast
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 1000))
def test_mapping_round_trip(n, levels, seed):
    codes = np.random.default_rng(seed).integers(0, 32, (n, levels))
    ids = make_ids(codes, [f'B{i:03d}' for i in range(n)], 32)
    back = read_mapping(pl.DataFrame(dict(parent_asin=ids.item_ids, semantic_id=ids.strings, title=['t'] * n)), levels, 32)
    assert back.hash == ids.hash

GOOD = to_string([64, 57, 125, 0], 256)

def test_the_published_example():
    assert GOOD == '<|sid_start|><|sid_64|><|sid_313|><|sid_637|><|sid_768|><|sid_end|>'
    assert read_mapping(pl.DataFrame(dict(parent_asin=['B1'], semantic_id=[GOOD]))).codes.tolist() == [[64, 57, 125, 0]]

@pytest.mark.parametrize('text', ['', None, 'x', GOOD + GOOD, GOOD + '\n', ' ' + GOOD, GOOD.replace('64', '-1'), GOOD.replace('64', '٣'), GOOD.replace('64', '9' * 5000), GOOD.replace('<|sid_768|>', ''),
                                  GOOD.replace('313', '64'), GOOD.replace('768', '1024'), GOOD.replace('<|sid_end|>', ''), GOOD.replace('64', '')])
def test_hostile_strings_are_refused_by_row(text):
    x = pl.DataFrame(dict(parent_asin=['B1', 'B2'], semantic_id=[GOOD, text]), schema=dict(parent_asin=pl.String, semantic_id=pl.String))
    with pytest.raises(InputError, match=r'row 2 \(B2\)'): read_mapping(x)

def test_bad_mapping_files(tmp_path):
    for text in ('', 'a,b\n1,2\n', 'parent_asin,semantic_id\n', f'parent_asin,semantic_id\nB1,{GOOD}\nB1,{GOOD}\n', f'parent_asin,semantic_id\n,{GOOD}\n'):
        f = tmp_path / 'm.csv'; f.write_text(text)
        with pytest.raises(InputError): read_mapping(f)
    (tmp_path / 'm.parquet').write_bytes(b'PAR1')
    with pytest.raises(InputError): read_mapping(tmp_path / 'm.parquet')
    with pytest.raises(InputError): read_mapping(tmp_path / 'absent.parquet')
