"Cleaning: each rule, properties on dirt of known truth, canonical names, schema, real data"
import html, json, re
import polars as pl
import pytest
from hypothesis import example, given, settings, strategies as st
import semantic_ids as sids
from semantic_ids.cleaning import (ATTRIBUTES, CUT, ENTITY, TAG, Cleaned, biggest_reductions, canonical, check_schema, clean, coverage, cut_back, dirty, keep_platform, looks_like_refusal,
                                   plot_lengths, profile, score, shortest, uncase, uncut, unescape, unpromo, unpromo_title, untag, units, vocabulary)
from semantic_ids.catalogue import LAUNCH, products
from semantic_ids.runs import InputError

def one(title='Braid', **kw): return pl.DataFrame(dict(item_id=['a'], title=[title]) | {k: [v] for k, v in kw.items()})
def text(t): return clean(one(description=t)).items['description'][0]
def title(t): return clean(one(t)).items['title'][0]

def one_line(f, *wanted):
    with pytest.raises(InputError) as e: f()
    assert '\n' not in str(e.value) and len(str(e.value)) < 400
    for w in wanted: assert w in str(e.value), (w, str(e.value))

@pytest.fixture(scope='module')
def fair():
    shop = sids.load('shop').items
    return shop.with_columns(description=pl.format('{} It was made by {} and published in {}. The publisher is {}, and the age rating is {}.', 'description', 'developer', 'year', 'publisher', 'esrb'))


# the rules of text

@pytest.mark.parametrize('dirt,want', [
    ('Pok&amp;amp;eacute;mon &#38;amp; Co &#x41;&#65;', 'Pokémon & Co AA'), ('AT&T, R&notes, &copy2 &bogus;', 'AT&T, R&notes, &copy2 &bogus;'), ('Don&#146;t', 'Don’t'),
    ('<p>One.</p><p>Two</p>', 'One. Two'), ('One<br>Two', 'One. Two'), ('<ul><li>Red<li>Blue</ul>', 'Red; Blue'), ('a <3 b, x<y and y>z, <Title>', 'a <3 b, x<y and y>z, <Title>'[:28] + ''),
    ('<script>var x = 1;</script>Text.', 'Text.'), ('A game.<!-- hidden --> More.', 'A game. More.'), ('Read <a href="http://x', 'Read'), ('&lt;b&gt;Bold&lt;/b&gt; move.', 'Bold move.'),
    ('A fine game. Free shipping on all orders! It has bosses.', 'A fine game. It has bosses.'), ('It weighs 3.5 lbs. Contact us today.', 'It weighs 3.5 lb.'),
    ('• Light\n• Strong\n• Blue', 'Light; Strong; Blue'), ('Includes: * 1 x Case * 2 x Film', 'Includes: 1 x Case; 2 x Film'), ('【Big】It is big. 【Red】It is red.', 'Big: It is big. Red: It is red.'),
    ('★ Sharp™ screen® ★', 'Sharp screen'), ('Hot at 90° now', 'Hot at 90° now'), ('**Bold** and __under__ text', 'Bold and under text'), ('Great!!!! Really????', 'Great! Really?'),
    ('Jump on every platform. Jump on every platform. Win.', 'Jump on every platform. Win.'), ('First part. Second part is cut...', 'First part.'), ('All of it is cut...', 'All of it is cut …'),
    ('One thing. Read more', 'One thing.'), ('One thing… see more »', 'One thing …'), ('NA', None), (' null ', None), ('', None), ('N/A', None),
])
def test_a_description(dirt, want):
    if '<Title>' in dirt: want = dirt
    assert text(dirt) == want

@pytest.mark.parametrize('dirt,want', [
    ('[Free Shipping] Halo 4 - Xbox 360', 'Halo 4 - Xbox 360'), ('Halo 4 (Xbox 360, brand new)', 'Halo 4 (Xbox 360)'), ('Halo 4 - Xbox 360 - BRAND NEW FACTORY SEALED!!', 'Halo 4 - Xbox 360'), ('Pok&eacute;mon Moon', 'Pokémon Moon'),
    ('<b>Rez</b> - PS2', 'Rez - PS2'), ('HALO 2', 'HALO 2'), ('NBA 2K2', 'NBA 2K2'), ("WWE '12", "WWE '12"), ('Punch-Out!! - Wii', 'Punch-Out!! - Wii'), ('New Super Mario Bros. - Wii', 'New Super Mario Bros. - Wii'),
    ('Guitar Hero: Warriors of Rock', 'Guitar Hero: Warriors of Rock'), ('Deal or No Deal - DS', 'Deal or No Deal - DS'), ('Cable, 10 Feet, 8gb', 'Cable, 10 ft, 8 GB'), ('Route 66" Stories', 'Route 66" Stories'), ('WHAT REMAINS OF EDITH - PS4', 'What Remains Of Edith - PS4'),
    ('Free Shipping', 'Free Shipping'), ('.hack//G.U. Last Recode', '.hack//G.U. Last Recode'), ('¡Mucha Lucha! (GBA)', '¡Mucha Lucha! (GBA)'), ('NA', None),
])
def test_a_title(dirt, want): assert title(dirt) == want

def test_words_of_other_titles_teach_capitals():
    t = pl.Series(['BlazBlue: Central Fiction', 'BLAZBLUE CALAMITY TRIGGER', 'Calamity and more'])
    assert uncase(t, title=True).to_list()[1] == 'BlazBlue Calamity Trigger'

def test_only_pieces_of_words_are_cut():
    s = pl.Series(['The level is long. Beat the lev', 'Contents: case, cable, stylus', 'A stylus', 'Levels with mic', 'The Nintendo seal. Made by Ninten'])
    assert uncut(s).to_list() == ['The level is long.', 'Contents: case, cable, stylus', 'A stylus', 'Levels with mic', 'The Nintendo seal.']

@pytest.mark.parametrize('t', ["I'm sorry, but I cannot process this.", 'The product description was provided in a format that is not readable.', 'As an AI language model I have no access.', 'No product description was provided.',
                               'Please provide the product description to clean.', 'Unfortunately, the description is empty.', 'I am unable to generate a title.'])
def test_refusals(t): assert looks_like_refusal(t) and text(t) is None

@pytest.mark.parametrize('t', ['As an AI awakens, you must flee.', 'I cannot sleep, says the hero.', 'Sorry! The classic board game.', 'A text adventure in which nothing is given.', 'The controller is not included.', '', None])
def test_no_refusals(t): assert not looks_like_refusal(t)


# the whole

def test_shop_is_clean_already():
    shop = sids.load('shop').items
    done = clean(shop)
    same = ['item_id', 'title', 'description', 'platform', 'genres', 'themes', 'vibes', 'modes', 'series', 'price']
    assert isinstance(done, Cleaned) and done.items.select(same).equals(shop.select(same))
    assert not len(done.unknown) and not done.failed and set(done.counts) <= {'brand: read from the store'}
    assert set(LAUNCH) <= set(vocabulary()['platform']) and done.items['platforms'].list.len().eq(1).all()

def test_dirt_comes_out_and_nothing_else(fair):
    dirtied, truth = dirty(fair, seed=3)
    assert dirty(fair, seed=3)[0].equals(dirtied) and not dirty(fair, seed=4)[0].equals(dirtied)
    done = clean(dirtied)
    marks = {r['kind']: r for r in score(done.items, truth).to_dicts()}
    for k in ('none', 'tags', 'entities', 'bullets', 'advertising', 'refusal', 'cut with a mark'): assert marks[k]['right'] == 1, k
    assert marks['repeated']['right'] > .95 and marks['cut in a word']['right'] > .85 and marks['capitals']['right'] > .3
    assert max(r['lost'] for r in marks.values()) < .01
    titles = {r['kind']: r['right'] for r in score(done.items, truth, 'title').to_dicts()}
    assert all(titles[k] == 1 for k in ('none', 'tags', 'entities', 'advertising')) and titles['capitals'] > .75
    assert done.items['item_id'].equals(fair['item_id']) and done.before.equals(dirtied.select('item_id', 'title', 'description'))

def test_no_word_is_added(fair):
    dirtied, _ = dirty(fair, seed=5)
    done = clean(dirtied)
    words = lambda t: set(re.findall(r'\w+', (t or '').lower()))
    for column in ('title', 'description'):
        raw = untag(unescape(dirtied[column]))
        for before, after in zip(raw, done.items[column]): assert words(after) <= words(before), (before, after)

def test_cleaning_twice_changes_nothing(fair):
    once = clean(dirty(fair)[0])
    twice = clean(once.items)
    assert twice.items.equals(once.items) and not {k for k in twice.counts if not k.endswith('names')}

PIECE = st.sampled_from(['<b>', '</p>', '&amp;', '&#39;', '&lt;i&gt;', '* ', '• ', 'Buy now! ', 'See more', '...', '…', '. ', ' ', 'Mario', 'XBOX 360', 'PS4', '8gb', '\n', '\n\n', '!!!', '【a】', '<', '>', '&', '"', '[', ')', '-', '\x00', '\u200b', '\x1f', 'é', '日本', '🎮', '$', '\\'])

@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(PIECE, max_size=9).map(''.join), st.none() | st.lists(PIECE, max_size=14).map(''.join)), min_size=1, max_size=5))
@example(rows=[('', '-See more')])
def test_anything_goes_in(rows):
    x = pl.DataFrame(dict(item_id=[str(i) for i in range(len(rows))], title=[r[0] for r in rows], description=[r[1] for r in rows]), schema_overrides=dict(title=pl.String, description=pl.String))
    kept = x.clone()
    done = clean(x)
    assert x.equals(kept) and len(done.items) == len(x)
    for c in ('title', 'description'):
        t = done.items[c].drop_nulls()
        assert not t.str.contains('[\x00-\x1f]|  |^ | $').any() and (t != '').all()
        assert not t.str.contains('🎮').any()

def test_second_rows_for_one_id():
    x = pl.DataFrame(dict(item_id=['b', 'a', 'b', 'a', 'a'], title=['B', 'A', 'B', 'A', 'A'], description=['NA', 'One whole text.', 'The text of b.', 'Two whole texts.', None]))
    done = clean(x)
    assert done.items.select('item_id', 'description').rows() == [('a', 'One whole text.'), ('b', 'The text of b.')]
    assert done.counts['items: second rows for one id'] == 3 and clean(x).items.equals(done.items)

def test_raw_amazon_columns():
    x = pl.DataFrame(dict(parent_asin=['x', 'y', 'z'], title=['Pad for PS4', 'Zelda &amp; Link', 'Cable'], description=[['<b>Good.</b>', 'Free shipping!', 'Blue pad.'], [], None], features=[['★ Strong', '★ Strong', 'Money back guarantee'], [], None],
                          store=['HORI', 'Nintendo', None], categories=[['Video Games', 'PlayStation 4', 'Accessories', 'Controllers'], ['Video Games', 'Nintendo Switch', 'Games'], []], details=['{}', None, '{}'], price=['9.99', None, '1']))
    done = clean(x).items
    assert done['description'].to_list() == ['Good. Blue pad.', None, None] and done['features'].to_list() == [['Strong'], [], []]
    assert done.select('platform', 'product_type', 'hardware_type', 'brand').rows() == [('PlayStation 4', 'Accessory', 'Controller', 'HORI'), ('Nintendo Switch', 'Game', None, 'Nintendo'), (None, None, None, None)]
    assert done['details'].to_list() == ['{}', None, '{}']

def test_few_columns_and_bad_tables():
    assert clean(one()).items.columns == ['item_id', 'title']
    assert clean(pl.DataFrame(dict(item_id=[1], title=['A'])).to_pandas()).items['item_id'].to_list() == ['1']
    one_line(lambda: clean(pl.DataFrame(dict(title=['a']))), 'no column item_id')
    one_line(lambda: clean(pl.DataFrame(dict(item_id=['a']))), 'no column title')
    one_line(lambda: clean(pl.DataFrame(dict(item_id=['a'], title=[1]))), 'title', 'wanted text')
    one_line(lambda: clean(one()[:0]), 'no rows')
    one_line(lambda: clean(42), 'frame')
    one_line(lambda: clean(one(genres=[1, 2])), 'genres', 'wanted text or lists of text')

def test_another_vocabulary():
    mine = dict(vocabulary()['platform'], Garmin=['garmin \\w+'])
    x = one(platform='Garmin Fenix 7')
    assert clean(x).unknown.rows() == [('platform', 'Garmin Fenix 7', 1)]
    done = clean(x, canonical=dict(platform=mine))
    assert done.items['platform'].to_list() == ['Garmin'] and not len(done.unknown)


# platforms in titles

@pytest.mark.parametrize('before,after,want', [('Halo 4 - Xbox 360', 'Halo 4', 'Halo 4 - Xbox 360'), ('Halo (PS4)', 'Halo - PlayStation 4', 'Halo - PlayStation 4'), ('Fifa PS3/Xbox 360', 'Fifa PS3', 'Fifa PS3 - Xbox 360'),
                                               ('Mario Wii U', 'Mario Wii', 'Mario Wii - Wii U'), ('Braid', 'Braid', 'Braid'), ('Braid - PC', None, None), (None, 'Braid', 'Braid'), ('Pad for DS & Wii', 'Pad', 'Pad - Nintendo DS/Wii')])
def test_platforms_come_back(before, after, want):
    s = lambda t: pl.Series([t], dtype=pl.String)
    assert keep_platform(s(before), s(after))[0] == want

def test_a_platform_taken_by_a_rule_comes_back():
    words = dict(title_promo=vocabulary()['title_promo'] + ['for xbox 360 only'])
    assert clean(one('Halo (for Xbox 360 only)'), canonical=words).items['title'][0] == 'Halo - Xbox 360'


# attributes and schema

@pytest.mark.parametrize('column,spelled,want', [('platform', 'Xbox Series X|S', ['Xbox Series X']), ('platform', 'PC|Mac', ['PC', 'Mac']), ('platform', 'New Nintendo 2DS XL', ['Nintendo 3DS']), ('platform', 'Nintendo 3DS & 2DS', ['Nintendo 3DS']),
    ('platform', 'Wii-U', ['Wii U']), ('platform', 'original Xbox', ['Xbox']), ('platform', 'PC Engine', ['TurboGrafx-16']), ('platform', 'Game Boy Advance SP', ['Game Boy Advance']), ('platform', 'Super Nintendo Entertainment System', ['Super Nintendo']),
    ('platform', 'null', None), ('platform', 'Garmin', None), ('product_type', 'DLC|Bundle', ['DLC', 'Bundle']), ('product_type', 'Board Game', ['Board Game']), ('genres', 'Action-Adventure', ['Action-Adventure']), ('genres', 'First-Person Shooter', ['Shooter']),
    ('genres', 'Puzzle-Platformer', ['Puzzle', 'Platformer']), ('modes', 'Single-player, Local Co-op, Online Multiplayer', ['Single-player', 'Local multiplayer', 'Co-op', 'Online multiplayer']), ('modes', '1-4 Players', ['Multiplayer']),
    ('hardware_type', 'Gaming Mouse Pad', ['Mouse Pad']), ('hardware_type', 'Controller Skin', ['Controller Skin']), ('brand', 'EA Games', ['Electronic Arts'])])
def test_canonical(column, spelled, want): assert canonical(pl.Series([spelled]), column)[0][0].to_list() == want if want else canonical(pl.Series([spelled]), column)[0][0] is None

def test_canonical_names_are_fixed_points():
    words = vocabulary()
    for column in ('platform', 'genres', 'themes', 'modes', 'product_type', 'hardware_type'):
        for name in words[column]: assert name in (canonical(pl.Series([name]), column)[0][0].to_list()), (column, name)
    for column in ('platform', 'product_type', 'modes'):
        for name in words[column]: assert canonical(pl.Series([name]), column)[0][0].to_list() == [name], (column, name)

def test_unknown_values_are_counted():
    names, unknown = canonical(pl.Series([['PC', 'Foo'], ['Foo'], None, ['Bar|PS4'], []]), 'platform')
    assert names.to_list() == [['PC'], None, None, ['PlayStation 4'], None] and unknown.rows() == [('Foo', 2), ('Bar', 1)]

def test_schema():
    good = pl.DataFrame(dict(item_id=['a', 'b'], platform=['PC', None], genres=[['Puzzle'], []], modes=[None, ['Co-op']], product_type=['Game', 'DLC'], brand=['x', None]))
    assert check_schema(good) is good
    one_line(lambda: check_schema(good.with_columns(platform=pl.Series(['PC', 'PS4']))), 'row 2', '(b)', 'platform', "'PS4'")
    one_line(lambda: check_schema(good.with_columns(genres=pl.Series([['Puzzle'], ['Puzle']]))), 'row 2', "'Puzle'", "'Puzzle'")
    one_line(lambda: check_schema(good.with_columns(genres=pl.Series(['Puzzle', 'Action']))), 'genres', 'wanted lists of text')
    one_line(lambda: check_schema(good.with_columns(brand=pl.Series([1, 2]))), 'brand', 'whole numbers')


# reports

def test_reports(fair):
    done = clean(dirty(fair.head(60))[0])
    p = profile(done)
    assert p['when'].to_list() == ['before', 'after']*2 and p.filter(pl.col('when') == 'before')['html'].sum() > 0 and p.filter(pl.col('when') == 'after').select('html', 'entity', 'promo').sum_horizontal().sum() == 0
    cut = biggest_reductions(done, 7)
    assert len(cut) == 7 and cut['cut'].is_sorted(descending=True) and cut.columns == ['item_id', 'before', 'after', 'cut']
    assert shortest(done, 4)['characters'].is_sorted() and len(shortest(done, 4, 'title')) == 4
    c = coverage(done)
    assert set(c['field']) >= {'title', 'description', 'platform', 'genres'} and c['filled'].is_between(0, 1).all()
    fig = plot_lengths(done)
    assert len(fig.data) == 4 and sum(fig.data[0].y) == 60
    assert len(plot_lengths(clean(one())).data) == 2 and len(profile(clean(one()))) == 2


# real data; the expressions are this test's own, wider than the module's

ANY_TAG, ANY_ENTITY = r'</?[a-zA-Z!][^<>]*>', r'&#?[a-zA-Z0-9]+;'
ANY_PROMO = r'(?i)\b(?:free (?:fast )?shipping|buy (?:it )?now|order (?:now|today)|add to (?:your )?cart|satisfaction guarantee|money.?back|contact us|customer (?:service|support)|click here|hot sale|limited.time offer|while supplies last|perfect gift|best price|\d+% off)\b'
NAMED = {'PlayStation 5': r'ps ?5|playstation ?5', 'PlayStation 4': r'ps ?4|playstation ?4', 'PlayStation 3': r'ps ?3|playstation ?3', 'PlayStation 2': r'ps ?2|playstation ?2', 'PSP': 'psp', 'Xbox 360': r'xbox ?360', 'Xbox One': r'xbox ?one', 'Xbox Series X': r'xbox ?series', 'Wii U': r'wii ?u',
         'Wii': 'wii', 'Nintendo 3DS': '3ds', 'Nintendo DS': 'ds', 'Nintendo Switch': 'switch', 'PC': 'pc', 'Mac': 'mac', 'GameCube': 'game ?cube', 'Game Boy': 'game ?boy', 'Nintendo 64': 'nintendo 64|n64', 'Dreamcast': 'dreamcast', 'Genesis': 'genesis', 'Vita': 'vita'}

def test_the_sample_comes_out_clean(data_folder):
    for x in (pl.read_parquet(data_folder/'video_games_2023_sample'/'items.parquet'), sids.load(data_folder/'video_games_2023_sample').items):
        done = clean(x)
        assert len(done.items) == 1000 and not done.failed
        everything = pl.concat([done.items['title'], done.items['description'], done.items['features'].explode(empty_as_null=False, keep_nulls=False)]).drop_nulls()
        for p in (ANY_TAG, ANY_ENTITY, ANY_PROMO): assert not everything.filter(everything.str.contains(p)).to_list()
        assert done.items['description'].null_count() == 0
        check_schema(done.items)

@pytest.mark.parametrize('name', ['video_games_2023_sample', 'video_games', 'video_games_2023'])
def test_the_platform_stays_in_every_title(data_folder, name):
    x = pl.read_parquet(data_folder/name/'items.parquet')
    done = clean(x)
    before, after = (s.fill_null('').str.replace_all('&reg;|&trade;|®|™', '') for s in (x['title'], done.items['title']))
    for platform, p in NAMED.items():
        had, has = before.str.contains(rf'(?i)\b(?:{p})\b'), after.str.contains(rf'(?i)\b(?:{p})\b')
        assert not (had & ~has).any(), (platform, before.filter(had & ~has).to_list()[:3])
    assert not after.str.contains(ANY_ENTITY).any() and not after.str.contains(TAG).any()

def test_the_sample_dirtied(data_folder):
    x = clean(sids.load(data_folder/'video_games_2023_sample').items).items
    marks = {r['kind']: r for r in score(clean(dirty(x)[0]).items, dirty(x)[1]).to_dicts()}
    for k in ('none', 'tags', 'entities', 'advertising', 'refusal'): assert marks[k]['right'] > .9 and marks[k]['lost'] < .02, marks[k]

def test_platform_spellings_fall_to_names(data_folder):
    raw = pl.read_parquet(data_folder/'video_games_2023'/'items.parquet')['platform']
    names, unknown = canonical(raw, 'platform')
    full = raw.list.len().fill_null(0) > 0
    assert raw.explode().drop_nulls().n_unique() == 1202 and names.explode().drop_nulls().n_unique() <= 80
    assert (full & (names.list.len().fill_null(0) > 0)).sum()/full.sum() > .999
    assert unknown['n'].sum()/raw.explode().drop_nulls().len() < .005 and unknown['n'][0] < 20
