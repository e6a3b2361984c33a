"""The site's promises, the README, and the export: what a reader would find out too late."""
import subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import pages

def test_site(): assert pages.site() == []
def test_stamps(): assert pages.stamps() == []
def test_readme(): assert (ROOT / 'README.md').read_text(encoding='utf-8') == pages.readme()

def test_a_changed_cell_breaks_the_stamp(tmp_path, monkeypatch):
    nb = pages.read(pages.NBS / '07_ids.ipynb')
    cell = next(c for c in nb['cells'] if c['cell_type'] == 'code' and not pages.flagged(c))
    cell['source'] = [*cell['source'], '\nx = 1']
    pages.write(tmp_path / '07_ids.ipynb', nb)
    monkeypatch.setattr(pages, 'NBS', tmp_path)
    assert len(pages.stamps()) == 1

def test_a_dead_link_is_found(tmp_path, monkeypatch):
    nb = pages.read(pages.NBS / '07_ids.ipynb')
    nb['cells'].append(dict(cell_type='markdown', metadata={}, source=['[gone](99_gone.ipynb) and @fig-none']))
    p = tmp_path / '07_ids.ipynb'
    pages.write(p, nb)
    faults = pages.page_faults(p, [q.name for q in pages.pages()])
    assert any('99_gone' in f for f in faults) and any('fig-none' in f for f in faults)

@pytest.mark.parametrize('page', [p.name for p in pages.pages()])
def test_pandoc_reads_the_prose(page):
    "The same Markdown reader as Quarto's: an unclosed ::: or a broken table shows here"
    import pypandoc
    nb = pages.read(pages.NBS / page)
    text = '\n\n'.join(pages.source(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    done = subprocess.run([pypandoc.get_pandoc_path(), '-f', 'markdown', '-t', 'html'], input=text, capture_output=True, text=True)
    assert done.returncode == 0 and 'unclosed' not in done.stderr, done.stderr

def test_no_private_names():
    "No machine path and no workplace name in anything that ships"
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    text = {'.py', '.md', '.ini', '.toml', '.yml', '.json', '.ipynb', '.txt', '.scss'}
    bad = [f for f in files if Path(f).suffix in text and not f.startswith('tools/') and (ROOT / f).exists()
           and pages.PRIVATE.search((ROOT / f).read_text(encoding='utf-8'))]
    assert bad == []
