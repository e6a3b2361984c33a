"""A run that is killed gives the same report as one that is not."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest

from semantic_ids.runs import read_json

LOOSE = ('seconds', 'peak_rss_mb')
PROGRAM = [sys.executable, '-c', 'import sys; from semantic_ids.pipeline import main; sys.exit(main())']
ENV = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', OMP_WAIT_POLICY='PASSIVE')


def repeatable(o):
    "The parts of a report that must not change from run to run"
    if not isinstance(o, dict): return o
    return {k: repeatable(v) for k, v in o.items() if not (k.startswith(LOOSE) or '_per_second' in k)}


def start(folder): return subprocess.Popen([*PROGRAM, 'run', '--data', 'shop', '--preset', 'tiny', '--to', str(folder)], env=ENV,
                                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process, timeout=200):
    err = process.communicate(timeout=timeout)[1]
    assert process.returncode == 0, err


def kill_when(process, moment, timeout=120):
    "Kill -9 as soon as `moment()` holds, and say whether the process was still at work"
    end = time.time() + timeout
    while not moment():
        assert process.poll() is None, f'the run ended before its moment came: {process.stderr.read()}'
        assert time.time() < end, 'the moment never came'
        time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nobody disturbs"
    folder = tmp_path_factory.mktemp('whole')/'run'
    finish(start(folder))
    return folder


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "A run killed in an early stage, in the second SASRec and in the middle of finetuning, and then left alone"
    folder = tmp_path_factory.mktemp('killed')/'run'
    there = lambda path: lambda: (folder/path).exists()
    seen = []
    for moment in (there('embeddings/stage.json'), there('semantic_sasrec.partial/codes/checkpoint.safetensors'), there('llm.partial/finetuning/state.json')):
        kill_when(start(folder), moment)
        assert not (folder/'report.json').exists()
        seen.append({p.parent.name: p.stat().st_mtime_ns for p in folder.glob('*/stage.json')})
    finish(start(folder))
    return folder, seen


def test_same_report(whole, killed):
    a, b = (repeatable(read_json(f/'report.json')) for f in (whole, killed[0]))
    assert a == b


def test_kept_stages_are_not_made_again(killed):
    folder, seen = killed
    now = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob('*/stage.json')}
    assert set(seen[0]) < set(seen[1]) < set(seen[2]) < set(now)
    for before in seen: assert before.items() <= now.items()
    assert 'llm' not in seen[2]


def test_nothing_is_left_over(killed):
    assert [p.name for p in killed[0].iterdir() if p.name.startswith('.') or p.name.endswith('.partial')] == []


def test_same_ids(whole, killed):
    a, b = (read_json(f/'ids'/'ids.json')['hash'] for f in (whole, killed[0]))
    assert a == b


def test_same_language_model(whole, killed):
    a, b = (read_json(f/'llm'/'train.json') for f in (whole, killed[0]))
    for k in ('language', 'vocabulary', 'finetuning'): assert a[k]['loss'] == b[k]['loss']
    assert (whole/'llm'/'model.safetensors').read_bytes() == (killed[0]/'llm'/'model.safetensors').read_bytes()


def run(*args): return subprocess.run([*PROGRAM, *args], env=ENV, capture_output=True, text=True, timeout=200)


def test_finished_run_is_kept_and_prints_its_report(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.glob('*/stage.json')}
    r = run('run', '--preset', 'tiny', '--to', str(whole), '--json')
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout) == read_json(whole/'report.json')
    assert before == {p: p.stat().st_mtime_ns for p in whole.glob('*/stage.json')}


def test_damaged_stage_is_made_again(whole, tmp_path):
    folder = tmp_path/'run'
    shutil.copytree(whole, folder)
    table = folder/'ids'/'ids.parquet'
    table.write_bytes(table.read_bytes()[:50])
    r = run('run', '--preset', 'tiny', '--to', str(folder), '--until', 'ids')
    assert r.returncode == 0 and 'ids is damaged' in r.stderr
    assert read_json(folder/'ids'/'ids.json') == read_json(whole/'ids'/'ids.json')


def test_other_settings_make_only_what_depends_on_them(whole, tmp_path):
    folder = tmp_path/'run'
    shutil.copytree(whole, folder)
    r = run('run', '--preset', 'tiny', '--to', str(folder), '--until', 'ids', '--seed', '7')
    assert r.returncode == 0, r.stderr
    lines = {l.split()[1]: l.split()[2] for l in r.stderr.splitlines() if '/4 ' in l}
    assert lines['catalogue'] == lines['embeddings'] == 'kept'
    assert lines['quantizer'] != 'kept' and lines['ids'] != 'kept'


def test_report_has_what_the_design_promises(whole):
    r = read_json(whole/'report.json')
    assert {'preset', 'seconds', 'peak_rss_mb', 'device', 'versions', 'seed', 'catalogue', 'ids', 'recommenders', 'llm', 'steering'} <= set(r)
    assert {'popularity', 'last_item', 'content_knn', 'sasrec', 'semantic_codes', 'semantic_codes_hash', 'semantic_random', 'llm', 'oracle'} <= set(r['recommenders'])
    assert all(row['protocol'] == 'loo' and row['seen_excluded'] for row in r['recommenders'].values())
    assert {'language_loss', 'valid_rate', 'tokens_per_second_train'} <= set(r['llm'])
    assert r['ids']['unique'] and r['catalogue']['items'] == 100
    assert 'null' not in (whole/'report.json').read_text()


def test_html_report_is_one_safe_page(whole):
    page = (whole/'report.html').read_text()
    assert page.startswith('<!doctype html>') and 'data:image/png;base64,' in page
    assert 'src="http' not in page and '<script' not in page and '<link' not in page
