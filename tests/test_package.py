"""The wheel, the import, and one page run alone against the wheel."""
import os, subprocess, sys, time
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
LIGHT = 'rqvae ids vocabulary finetuning decoding runs'.split()

def python(code, **env):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, **env}, cwd='/')

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    d = tmp_path_factory.mktemp('wheel')
    src = d / 'src'
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(src)], check=True)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(d), str(src)], check=True)
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(d / 'site'), *map(str, d.glob('*.whl'))], check=True)
    return d / 'site'

def test_import_is_light():
    done = python('import sys, semantic_ids; print([m for m in ("torch","polars","transformers","plotly") if m in sys.modules])')
    assert done.stdout.strip() == '[]', done

@pytest.mark.parametrize('module', LIGHT)
def test_gpu_modules_need_no_plotting(module):
    done = python(f'import sys, semantic_ids.{module}; print([m for m in ("polars","plotly","umap","sklearn","sentence_transformers") if m in sys.modules])')
    assert done.stdout.strip() == '[]', (done.stdout, done.stderr)

def test_wheel_carries_the_shop(wheel):
    done = python('import semantic_ids as s; print(s.__file__); print(len(s.load("shop").items))', PYTHONPATH=str(wheel))
    path, n = done.stdout.split()
    assert path.startswith(str(wheel)) and int(n) == 1729, done

def test_one_page_alone_against_the_wheel(wheel, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import pages, shutil; p = shutil.copy(pages.NBS / '07_ids.ipynb', {str(tmp_path)!r});" \
           "import json; nb = pages.read(p); nb['cells'].append(dict(cell_type='code', metadata={}, outputs=[], execution_count=None, source=['import semantic_ids; semantic_ids.__file__']));" \
           "pages.write(p, nb); pages.run(p); print(''.join(pages.read(p)['cells'][-1]['outputs'][0]['data']['text/plain']))"
    done = python(code, PYTHONPATH=str(wheel))
    assert str(wheel) in done.stdout, done.stderr
