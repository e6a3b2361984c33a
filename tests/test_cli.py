"""The command line: help, doctor, and what it says to bad input."""
import json, os, subprocess, sys
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semantic_ids.pipeline import main
from semantic_ids.runs import presets

COMMANDS = 'quickstart run chat report bench doctor'.split()
N = 40


def items():
    "Forty products with vectors, so that no encoder is needed"
    x = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
    return dict(item_id=[f'i{k:02}' for k in range(N)], title=[f'Game {k}' for k in range(N)], platform=[('PC', 'Wii')[k % 2] for k in range(N)],
                genres=[[('Puzzle', 'Racing', 'Action')[k % 3]] for k in range(N)], vectors=x.tolist())


def histories():
    "Sixty users with seven purchases"
    return dict(user_id=[f'u{u:02}' for u in range(60)], item_ids=[[f'i{(u+3*k) % N:02}' for k in range(7)] for u in range(60)])


def write(folder, items, histories):
    folder.mkdir()
    pl.DataFrame(items).write_parquet(folder/'items.parquet')
    pl.DataFrame(histories).write_parquet(folder/'histories.parquet')
    return folder


def run(*args): return main(['run', '--preset', 'tiny', '--until', 'ids', *map(str, args)])


# One fault each: (name, what is done to items and histories, words that the message must hold)

def fault(f): FAULTS[f.__name__] = f; return f
FAULTS = {}
WORDS = dict(missing_column='title', missing_histories_column='item_ids', wrong_type='item_ids', duplicate_item='i03', unknown_item='nowhere',
             empty_histories='empty', one_item_histories='history', empty_catalogue='item', nan_vector='NaN', uneven_vectors='vectors', null_id='item_id', no_users='')

@fault
def missing_column(i, h): del i['title']
@fault
def missing_histories_column(i, h): del h['item_ids']
@fault
def wrong_type(i, h): h['item_ids'] = [3.5]*60
@fault
def duplicate_item(i, h): i['item_id'][4] = 'i03'
@fault
def unknown_item(i, h): h['item_ids'][7][2] = 'nowhere'
@fault
def empty_histories(i, h): h['item_ids'] = [[] for _ in h['item_ids']]
@fault
def one_item_histories(i, h): h['item_ids'] = [[x[0]] for x in h['item_ids']]
@fault
def empty_catalogue(i, h):
    for k in i: i[k] = i[k][:0]
@fault
def nan_vector(i, h): i['vectors'][3][2] = float('nan')
@fault
def uneven_vectors(i, h): i['vectors'][3] = i['vectors'][3][:5]
@fault
def null_id(i, h): i['item_id'][3] = None
@fault
def no_users(i, h):
    for k in h: h[k] = h[k][:0]


def one_line(capfd, code, want=2):
    "The error is one line on stderr, without a traceback"
    out, err = capfd.readouterr()
    lines = [l for l in err.splitlines() if l.startswith('semantic-ids: ')]
    assert code == want, err
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0] and 'Traceback' not in err, err
    return lines[0]


def no_stage(folder):
    "Nothing half written: no folder, or one without an unfinished stage"
    assert not list(folder.glob('.*')), list(folder.glob('.*'))
    for d in folder.glob('*'): assert (d/'stage.json').exists() or d.name.endswith('.partial'), d


@pytest.mark.parametrize('name', FAULTS)
def test_bad_frames(name, tmp_path, capfd):
    i, h = items(), histories()
    FAULTS[name](i, h)
    data = write(tmp_path/'data', i, h)
    line = one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    assert WORDS[name] in line
    no_stage(tmp_path/'to')


def test_an_empty_and_a_short_history_are_counted(tmp_path, capfd):
    h = histories()
    h['item_ids'][5], h['item_ids'][6] = [], h['item_ids'][6][:1]
    data = write(tmp_path/'data', items(), h)
    assert run('--data', data, '--to', tmp_path/'to', '--until', 'catalogue') == 0
    err = capfd.readouterr().err
    assert 'empty histories left out: 1' in err and 'for training only: 1' in err
    report = json.loads((tmp_path/'to'/'report.json').read_text())
    assert report['catalogue']['users'] == 59 and 1 in report['catalogue']['dropped'].values()


def test_missing_folder(tmp_path, capfd):
    assert 'nowhere' in one_line(capfd, run('--data', tmp_path/'nowhere', '--to', tmp_path/'to'))
    assert not (tmp_path/'to').exists()


def test_missing_file(tmp_path, capfd):
    data = write(tmp_path/'data', items(), histories())
    (data/'items.parquet').unlink()
    assert 'items' in one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    assert not (tmp_path/'to').exists()


@pytest.mark.parametrize('name', ['items.parquet', 'histories.parquet'])
def test_truncated_parquet(name, tmp_path, capfd):
    data = write(tmp_path/'data', items(), histories())
    (data/name).write_bytes((data/name).read_bytes()[:200])
    assert name in one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    assert not (tmp_path/'to').exists()


def test_wrong_vector_count(tmp_path, capfd):
    i = items()
    i['vectors'][-1] = None
    data = write(tmp_path/'data', i, histories())
    assert 'vectors' in one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    no_stage(tmp_path/'to')


def test_unwritable_folder(tmp_path, capfd):
    (tmp_path/'file').write_text('in the way')
    assert 'folder' in one_line(capfd, run('--to', tmp_path/'file'/'run'))
    assert (tmp_path/'file').read_text() == 'in the way'


def test_target_is_a_file(tmp_path, capfd):
    (tmp_path/'file').write_text('in the way')
    assert 'is a file' in one_line(capfd, run('--to', tmp_path/'file'))


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write everywhere')
def test_folder_without_permission(tmp_path, capfd):
    (tmp_path/'locked').mkdir(mode=0o500)
    assert 'ermission' in one_line(capfd, run('--to', tmp_path/'locked'/'run'))


def test_foreign_folder_is_left_alone(tmp_path, capfd):
    (tmp_path/'thesis.tex').write_text('years of work')
    assert 'not empty' in one_line(capfd, run('--to', tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_run_folder_of_another_catalogue(tmp_path, capfd):
    data = write(tmp_path/'data', items(), histories())
    assert run('--data', data, '--to', tmp_path/'to', '--until', 'catalogue') == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'to').rglob('*')}
    capfd.readouterr()
    assert 'another catalogue' in one_line(capfd, run('--data', 'shop', '--to', tmp_path/'to'))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path/'to').rglob('*')}


@pytest.mark.parametrize('args,word', [
    (['run', '--to', 'x', '--preset', 'huge'], 'quickstart'), (['run', '--to', 'x', '--until', 'lunch'], 'semantic_sasrec'),
    (['run', '--to', 'x', '--top', '0'], 'top'), (['run', '--to', 'x', '--top', 'many'], 'int'), (['run', '--to', 'x', '--top', '-3'], 'top'),
    (['run'], '--to'), (['run', '--to', 'x', '--data', 'amazon:'], 'amazon'), (['run', '--to', 'x', '--data', ''], ''), ([], 'COMMAND'),
    (['dance'], 'dance'), (['report', 'nowhere'], 'nowhere'), (['chat', 'nowhere'], 'nowhere'), (['quickstart', '--speed', '9'], '--speed')])
def test_bad_usage(args, word, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert word in one_line(capfd, main(args))
    assert not list(tmp_path.iterdir())


def test_broken_report(tmp_path, capfd):
    (tmp_path/'report.json').write_text('{"preset": ')
    assert 'report.json' in one_line(capfd, main(['report', str(tmp_path)]))


def test_not_utf8_csv(tmp_path, capfd):
    d = tmp_path/'data'
    d.mkdir()
    (d/'items.csv').write_bytes(b'item_id,title\n1,Pok\xe9mon\n')
    (d/'histories.csv').write_text('user_id,item_ids\n')
    one_line(capfd, run('--data', d, '--to', tmp_path/'to'))
    assert not (tmp_path/'to').exists()


# What people really hand over: each is one line and leaves nothing behind

HEAD, SOLD = 'item_id,title,price\n', 'user_id,item_id,date\n1,a,2024-01-01\n1,b,2024-01-02\n1,c,2024-01-03\n'
SHOP = HEAD + 'a,Rye,1\nb,Wheat,2\nc,Oats,3\n'
TABLES = {'empty items': ('', SOLD), 'blank items': ('\n\n', SOLD), 'no rows': (HEAD, SOLD), 'empty histories': (SHOP, ''), 'ragged': (SHOP + 'd,Bun,4,5\n', SOLD), 'short row': (SHOP + 'd\n', SOLD), 'two titles': ('item_id,title,title\na,b,c\n', SOLD),
          'id twice': (SHOP + 'a,Rye,1\n', SOLD), 'id of spaces': (SHOP + '"  ",Bun,4\n', SOLD), 'id of zero width': (SHOP + 'd\u200b,Bun,4\n', SOLD), 'id with NUL': (SHOP + 'd\0,Bun,4\n', SOLD), 'endless id': (SHOP + 'd'*9999 + ',Bun,4\n', SOLD),
          'word for a price': (SHOP + 'd,Bun,cheap\n', SOLD), 'negative price': (SHOP + 'd,Bun,-4\n', SOLD), 'infinite price': (SHOP + 'd,Bun,inf\n', SOLD), 'two decimal marks': (SHOP + 'd,Bun,1.50\ne,Roll,"1,50"\n', SOLD), 'two currencies': (SHOP + 'd,Bun,$1\ne,Roll,1 €\n', SOLD),
          'bar in an id': (SHOP + 'd|e,Bun,4\n', 'user_id,item_ids\n1,a|b|d|e\n'), 'no such item': (SHOP, SOLD + '1,\u05e9🎮,2024-01-04\n'), 'no time': (SHOP, SOLD + '1,a,\n'), 'no such day': (SHOP, SOLD + '1,a,2024-02-30\n'),
          'day and clock': (SHOP, 'user_id,item_id,order_date,time\n1,a,2024-01-01,10:00\n'), 'two sorts of id': ('sku,asin,title\na,b,Rye\n', SOLD), 'binary': ('\x89PNG\n\0\0,\0\n', SOLD), 'numbers': ('1,2,3\n4,5,6\n', SOLD), 'one column': ('item_id\na\n', SOLD)}

@pytest.mark.parametrize('name', TABLES)
def test_malformed_csv(name, tmp_path, capfd):
    (tmp_path/'data').mkdir()
    for n, text in zip(('items', 'histories'), TABLES[name]): (tmp_path/'data'/f'{n}.csv').write_text(text, encoding='utf-8')
    line = one_line(capfd, run('--data', tmp_path/'data', '--to', tmp_path/'to'))
    assert '.csv' in line and len(line) < 500 and line.isprintable()
    assert not (tmp_path/'to').exists()

@pytest.mark.parametrize('column', [pl.Series([3.5]*N), pl.Series([True]*N), pl.Series([[1]]*N), pl.Series([[['x']]]*N), pl.Series([b'x']*N), pl.Series([None]*N), pl.Series([{'a': 1}]*N), pl.Series(range(N)).cast(pl.Decimal(9, 2)),
                                    pl.Series(range(N)).cast(pl.Datetime), pl.Series(range(N)).cast(pl.Date), pl.Series(range(N)).cast(pl.Duration), pl.Series(range(N)).cast(pl.Time), pl.Series(['x']*N, dtype=pl.Categorical)], ids=lambda c: str(c.dtype))
def test_malformed_ids(column, tmp_path, capfd):
    data = write(tmp_path/'data', items() | dict(item_id=column), histories())
    assert 'items.parquet' in one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    no_stage(tmp_path/'to')

@pytest.mark.parametrize('data', ['a folder,a folder', 'nowhere.csv,nowhere.csv', 'one.csv,', ',', 'a,b,c', 'x'*5000, 'amazon:'], ids=lambda d: d[:20])
def test_odd_sources(data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a folder').mkdir()
    one_line(capfd, run('--data', data, '--to', tmp_path/'to'))
    assert not (tmp_path/'to').exists()

def test_a_guess_is_said(tmp_path, capfd):
    (tmp_path/'p.csv').write_bytes('SKU;Name;Preis\na;Brötchen;0,45 €\nb;Brot;4,50 €\nc;Kuchen;20,00 €\n'.encode('cp1252'))
    (tmp_path/'s.csv').write_text('Kunde;SKU;Datum\n1;c;03.01.2024\n1;a;01.01.2024\n1;b;02.01.2024\n')
    assert run('--data', f"{tmp_path/'p.csv'},{tmp_path/'s.csv'}", '--to', tmp_path/'to', '--until', 'catalogue') == 0
    err = capfd.readouterr().err.splitlines()
    assert "p.csv: separator ';', encoding Windows-1252" in err and "items.title: column 'Name'" in err and "histories.timestamp: column 'Datum'" in err
    kept = pl.read_parquet(tmp_path/'to'/'catalogue'/'items.parquet')
    assert kept['price'].to_list() == [.45, 4.5, 20] and kept['title'][0] == 'Brötchen'


# A title with HTML and control characters must neither break the pages nor reach the terminal raw

def test_evil_titles(tmp_path, capfd):
    i = items()
    i['title'][0] = '<script>alert(1)</script>\x1b[31m \x00[bold]red[/bold]'
    data = write(tmp_path/'data', i, histories())
    code = run('--data', data, '--to', tmp_path/'to')
    out, err = capfd.readouterr()
    assert '\x1b[31m' not in out + err
    if code == 2: assert len(err.splitlines()) == 1 and not (tmp_path/'to').exists()
    else:
        assert code == 0, err
        page = (tmp_path/'to'/'report.html').read_text()
        assert '<script>' not in page and '\x1b' not in page and '\x00' not in page


def test_interrupt_says_how_to_go_on(tmp_path, capfd, monkeypatch):
    def stop(*a): raise KeyboardInterrupt
    monkeypatch.setattr('semantic_ids.pipeline.make_quantizer', stop)
    monkeypatch.setattr('semantic_ids.pipeline.inspect.getsource', lambda f: '')
    data = write(tmp_path/'data', items(), histories())
    assert 'resumes' in one_line(capfd, run('--data', data, '--to', tmp_path/'to'), 130)
    no_stage(tmp_path/'to')


def test_full_disk_is_one_line(tmp_path, capfd, monkeypatch):
    def full(*a): raise OSError(28, 'No space left on device', str(tmp_path/'to'/'x'))
    monkeypatch.setattr('semantic_ids.pipeline.make_quantizer', full)
    monkeypatch.setattr('semantic_ids.pipeline.inspect.getsource', lambda f: '')
    data = write(tmp_path/'data', items(), histories())
    assert 'disk is full' in one_line(capfd, run('--data', data, '--to', tmp_path/'to'), 1)
    no_stage(tmp_path/'to')


def test_small_run_and_its_report(tmp_path, capfd):
    data = write(tmp_path/'data', items(), histories())
    assert run('--data', data, '--to', tmp_path/'to', '--json') == 0
    out, err = capfd.readouterr()
    r = json.loads(out)
    assert err == '' and r['catalogue']['items'] == N and r['ids']['unique'] is True and 'llm' not in r
    assert main(['report', str(tmp_path/'to')]) == 0
    assert 'Semantic IDs' in capfd.readouterr().out
    assert main(['report', str(tmp_path/'to'), '--json']) == 0
    assert json.loads(capfd.readouterr().out) == r
    assert run('--data', data, '--to', tmp_path/'to', '--quiet') == 0
    assert capfd.readouterr() == ('', '')


def test_csv_gives_the_same_catalogue(tmp_path, capfd):
    i, h = items(), histories()
    del i['vectors'], i['genres']
    a = write(tmp_path/'a', i, h)
    b = tmp_path/'b'
    b.mkdir()
    pl.DataFrame(i).write_csv(b/'items.csv')
    pl.DataFrame(h).with_columns(pl.col('item_ids').list.join('|')).write_csv(b/'histories.csv')
    hashes = []
    for d in (a, b):
        assert run('--data', d, '--to', tmp_path/f'to-{d.name}', '--until', 'catalogue') == 0, capfd.readouterr().err
        hashes.append(json.loads((tmp_path/f'to-{d.name}'/'catalogue'/'catalogue.json').read_text())['hash'])
    assert hashes[0] == hashes[1]


def test_quickstart_ends_with_tables_relatives_and_conversations(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets, 'quickstart', presets['tiny'])
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    assert main(['quickstart']) == 0
    out = capfd.readouterr().out
    assert os.environ['HF_HUB_OFFLINE'] == '1'
    for words in ('semantic_codes_hash', 'shares', '<|sid_start|>', 'sci-fi and action games for Xbox', 'animal and cute games', 'but for PlayStation?', 'Why', 'semantic-ids chat shop'):
        assert words in out, words
    assert (tmp_path/'runs'/'quickstart'/'report.html').exists()
    monkeypatch.setattr('sys.stdin', StringIO('I like racing games. <|rec|>\n\nbut cheap \x1b[31mones <|rec|>\n'))
    assert main(['chat', 'runs/quickstart', '--json']) == 0
    turns = [json.loads(l) for l in capfd.readouterr().out.splitlines()]
    assert len(turns) == 2 and all(len(t['items']) == 3 for t in turns)


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help(command, capfd):
    assert main([*command.split(), '--help']) == 0
    out = capfd.readouterr().out
    assert out.startswith('usage: semantic-ids') and all(c in out for c in (COMMANDS if not command else ['--json', '--quiet']))


def test_doctor(capfd):
    assert main(['doctor', '--json']) == 0
    r = json.loads(capfd.readouterr().out)
    assert {'torch', 'cores', 'can', 'encoder'} <= set(r) and set(r['can']) >= {'tiny', 'quickstart', 'gpu'}
    assert main(['doctor']) == 0
    assert 'torch' in capfd.readouterr().out


def test_program_is_installed():
    r = subprocess.run([Path(sys.executable).parent/'semantic-ids', '--json', 'run', '--to', 'x', '--preset', 'huge'], capture_output=True, text=True)
    assert (r.returncode, r.stdout, len(r.stderr.splitlines())) == (2, '', 1)


@pytest.mark.real
def test_real_games_2023(data_folder, tmp_path, capfd):
    folder = data_folder/'video_games_2023_sample'
    if not folder.is_dir(): pytest.skip(f'no {folder.name} in the real data')
    assert main(['run', '--data', str(folder), '--preset', 'tiny', '--to', str(tmp_path/'to'), '--json']) == 0
    r = json.loads(capfd.readouterr().out)
    assert r['ids']['unique'] and 'oracle' not in r['recommenders'] and 0 <= r['recommenders']['llm']['hit@10'] <= 1
    assert 'language_loss' in r['llm'] and (tmp_path/'to'/'report.html').exists()


# Columns by name, unknown items left out, benchmarks

def test_columns_and_drop(tmp_path, capsys):
    i, h = items(), histories()
    i['Artikel'] = i.pop('title')
    h['item_ids'][7][2] = 'nowhere'
    d = write(tmp_path/'d', i, h)
    assert run('--data', d, '--to', tmp_path/'a', '--columns', 'title=Artikel') == 2
    assert 'nowhere' in capsys.readouterr().err
    assert run('--data', d, '--to', tmp_path/'b', '--columns', 'title=Artikel', '--drop') == 0
    assert json.loads((tmp_path/'b'/'report.json').read_text())['catalogue']['dropped']['purchases of unknown items left out'] == 1

@pytest.mark.parametrize('words', ['title', 'title=', '=Name', 'title=Name,,'])
def test_columns_that_say_nothing(words, tmp_path, capsys):
    assert run('--data', 'shop', '--to', tmp_path/'x', '--columns', words) == 2
    assert capsys.readouterr().err.count('\n') == 1

def test_bench_of_no_such_name(capsys):
    assert main(['bench', 'nothing']) == 2
    assert 'quantizers' in capsys.readouterr().err

def test_bench_goes_on(tmp_path, capsys, monkeypatch):
    from semantic_ids import bench
    all_of = bench.quantizers
    monkeypatch.setattr(bench, 'quantizers', lambda *a: {k: v for k, v in all_of(*a).items() if k == 'random'})
    args = ['bench', 'quantizers', '--preset', 'tiny', '--top', '100', '--to', str(tmp_path/'q.json')]
    assert main(args) == 0
    first = json.loads((tmp_path/'q.json').read_text())['rows']
    monkeypatch.setattr(bench, 'quantizers', lambda *a: {k: v for k, v in all_of(*a).items() if k in ('random', 'residual k-means')})
    assert main(args) == 0
    again = json.loads((tmp_path/'q.json').read_text())['rows']
    assert again[0] == first[0] and [r['model'] for r in again] == ['random', 'residual k-means']
