"The comparison's own promises: the same questions, nothing learned from what is withheld, weights that do not change when items come in."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from semantic_ids.histories import Ragged, split
from semantic_ids.ids import make_ids
from semantic_ids.runs import InputError
from semantic_ids.semantic_sasrec import SemanticSASRec
from semantic_ids.showdown import averaged, cold_figures, contest, contestants, figures_of, grow, hash_contest, masks, thin, withhold

fast = settings(deadline=None, max_examples=40)
SIZES = dict(d_model=16, n_layers=1, n_heads=1, max_len=8, dropout=.1)

def histories(n_users, n_items, seed):
    rng = np.random.default_rng(seed)
    return Ragged.of([rng.integers(0, n_items, rng.integers(1, 9)).tolist() for _ in range(n_users)] + [[0, 1, 2]])

def table(n, seed=0):
    return make_ids(np.random.default_rng(seed).integers(0, 8, (n, 2)), [f'{i:03}' for i in range(n)], 16)

@fast
@given(st.integers(5, 40), st.integers(4, 30), st.integers(0, 999), st.floats(.05, 1))
def test_thin_asks_the_same_questions(users, items, seed, share):
    cut = split(histories(users, items, seed))
    few = thin(cut, share, seed)
    for which in ('valid', 'test'):
        assert (few.inputs(which).values == cut.inputs(which).values).all() and (getattr(few, which) == getattr(cut, which)).all()
    assert len(few.train) == max(1, round(share * len(cut.train))) and not len(few.extra)

@pytest.mark.parametrize('share', [0, -1, 1.5, float('nan')])
def test_thin_refuses_shares_that_are_none(share):
    with pytest.raises(InputError, match='share'): thin(split(histories(9, 5, 0)), share)

@fast
@given(st.integers(8, 40), st.integers(6, 30), st.integers(0, 999), st.floats(.02, .5))
def test_nothing_is_learned_from_what_is_withheld(users, items, seed, share):
    cut = split(histories(users, items, seed))
    part, order, n = withhold(cut, items, share, seed)
    assert sorted(order) == list(range(items)) and n == items - max(1, round(share * items))
    for r in (part.train, part.extra): assert not len(r.values) or r.values.max() < n
    assert not len(part.valid) or part.valid.max() < n
    rows = np.searchsorted(cut.users, part.users)
    assert (order[part.test] == cut.test[rows]).all() and (order[part.valid] == cut.valid[rows]).all()
    learned = sum(len(r.values) for r in (part.train, part.extra))
    warm = np.isin(np.concatenate([cut.train.values, cut.extra.values]), order[:n]).sum()
    assert learned == warm

def test_grown_models_say_the_same_about_old_items():
    ids, r = table(20), Ragged.of([[0, 3, 5], [7], [11, 2]])
    for hash in (False, True):
        torch.manual_seed(0)
        small = SemanticSASRec(ids.codes[:12], 16, hash=hash, **SIZES)
        if hash: torch.nn.init.normal_(small.item.weight)
        large = grow(small, ids.codes)
        torch.testing.assert_close(large.score(r, None)[:, :12], small.score(r, None))
        assert large.score(r, None).shape == (3, 20)

def test_grow_refuses_other_codes():
    ids = table(20)
    with pytest.raises(InputError, match='first rows'): grow(SemanticSASRec(ids.codes[:12], 16, **SIZES), ids.codes[::-1].copy())
    with pytest.raises(InputError, match='first rows'): grow(SemanticSASRec(ids.codes, 16, **SIZES), ids.codes[:3])

def test_a_hash_id_that_was_never_trained_is_never_hit():
    cut = split(histories(60, 12, 1))
    row = cold_figures(*hash_contest(12, cut, 0, SIZES, epochs=1))
    assert row['hit@10 cold'] == 0 and row['cold'] > 0 and row['hit@10 warm'] == row['hit@10 warm alone']

def test_contestants_differ_in_item_vectors_only():
    sizes = {n: f().sizes()['other'] for n, f in contestants(table(20), SIZES).items() if n not in ('semantic_ar', 'semantic_parallel')}
    assert len(set(sizes.values())) == 1 and len(sizes) == 4

def test_the_same_seed_gives_the_same_figures():
    cut, make = split(histories(40, 20, 3)), contestants(table(20), SIZES)['semantic_codes']
    a, b, c = (contest(make, cut, s, epochs=2)[1] for s in (1, 1, 2))
    same = lambda x, y: all(x[k] == y[k] for k in ('hit@10', 'mrr', 'coverage'))
    assert same(a, b) and not same(a, c)

def test_groups_are_rows_of_the_split():
    cut = split(histories(50, 15, 2))
    groups = masks(cut, 15)
    assert all(m.shape == (len(cut),) and m.dtype == bool for m in groups.values())
    assert (sum(groups[k].astype(int) for k in ('head', 'middle', 'tail', 'cold')) == 1).all()

def test_figures_by_hand():
    cut = split(Ragged.of([[2, 1, 0], [0, 1, 3]]))
    row = figures_of(lambda inputs, users: torch.tensor([[4., 3., 2., 1.]]).expand(len(inputs), -1), cut, 4, k=1)
    assert (row['hit@1'], row['coverage'], row['popularity_bias'], row['users']) == (.5, .5, 2., 2)

def test_one_seed_is_marked_and_strings_survive():
    row, = averaged([dict(model='m', seed=1, users=4, protocol='loo', **{'hit@10': .5})])
    assert row['seeds'] == 1 and row['protocol'] == 'loo' and row['users'] == 4 and row['ci95'] == pytest.approx(.49)
