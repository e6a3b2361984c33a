"""The atlas on strange catalogues: no attribute, one item, hostile titles."""
import numpy as np
import polars as pl
import pytest
from semantic_ids.atlas import atlas, browser, layout, map_figure, meaning, prefix_cosines, prefixes, shared, usage_figure
from semantic_ids.ids import make_ids
from semantic_ids.runs import InputError

HOSTILE = ['<script>alert(1)</script>', '</script><img src=x onerror=alert(2)>', '"><b>', '{name}', '% & ` $x$', '\u202eevil', 'é' * 500]

def table(n=40, k=4, seed=0, **columns):
    r = np.random.default_rng(seed)
    items = pl.DataFrame(dict(item_id=[f'i{j:03}' for j in range(n)], title=[HOSTILE[j % len(HOSTILE)] for j in range(n)], **columns))
    return make_ids(r.integers(0, k, (n, 2)), items['item_id'].to_list(), max(k, n)), items, r.normal(size=(n, 6)).astype(np.float32)

def test_the_file_keeps_hostile_titles_as_text(tmp_path):
    ids, items, x = table(platform=[('PC', '<i>Wii</i>')[j % 2] for j in range(40)])
    text = atlas(ids, items, tmp_path/'a.html', x, HOSTILE[0]).read_text(encoding='utf-8')
    for bad in ('<script>alert(1)', '<img src=x', '<i>Wii', '\\u003cscript\\u003ealert', '\\u003cimg'): assert bad not in text
    assert 'alert(1)' in text
    assert text.count('<h2>') == 4

@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_few_items(n, tmp_path):
    ids, items, x = table(n)
    assert atlas(ids, items, tmp_path/'a.html', x).exists()
    assert prefixes(ids, items)['items'].max() <= n

def test_no_vectors_and_no_attributes(tmp_path):
    ids, items, _ = table()
    text = atlas(ids, items, tmp_path/'a.html').read_text(encoding='utf-8')
    assert text.count('<h2>') == 2 and len(meaning(ids, items)) == 0

def test_missing_values_count_for_nothing():
    ids, items, _ = table(platform=[None] * 39 + ['PC'], genres=[[]] * 38 + [['Puzzle'], None])
    tree = prefixes(ids, items)
    assert tree.filter(depth=1)['items'].sum() == 40
    assert tree['shared'].is_null().any()

def test_prefixes_add_up():
    ids, items, x = table(200)
    tree = prefixes(ids, items, x)
    assert tree.group_by('depth').agg(pl.sum('items'))['items'].to_list() == [200, 200]
    for kind in ('sunburst', 'treemap'):
        f = browser(tree, kind=kind).data[0]
        v = dict(zip(f.ids, f.values))
        for p in set(f.parents) - {''}: assert v[p] == sum(v[i] for i, q in zip(f.ids, f.parents) if q == p)

def test_wrong_frames_and_kinds():
    ids, items, _ = table()
    with pytest.raises(InputError, match='39 items for 40'): prefixes(ids, items.head(39))
    with pytest.raises(InputError, match='treemap'): browser(prefixes(ids, items), kind='pie')

def test_the_map_is_the_same_twice():
    ids, items, x = table(120)
    (a, p), (b, q) = layout(x, most=60), layout(x, most=60)
    assert (a == b).all() and np.array_equal(p, q) and p.shape == (60, 2)
    assert len(map_figure(ids, items, a, p).data[0].x) == 60
    assert len(usage_figure(ids).data) == 2

def test_pairs_share_what_they_are_said_to_share():
    ids, items, x = table(300)
    same, cos = prefix_cosines(ids, x, pairs=4000)
    assert same.min() >= 0 and same.max() <= 2 and (abs(cos) <= 1.0001).all() and len(same) == len(cos)
