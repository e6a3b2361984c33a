"""Executes the pages, stamps their outputs, writes README.md, and checks the site.

    python tools/pages.py run nbs/05_rqvae.ipynb     execute, keep outputs, stamp, clean
    python tools/pages.py stamps                     every kept output belongs to the code above it
    python tools/pages.py readme [--check]           README.md from nbs/index.ipynb
    python tools/pages.py site                       the promises of the site (see checks below)
"""
import argparse, hashlib, json, os, re, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
FLAGS = {'slow', 'gpu', 'notest'}
STAMP = 'semantic_ids'
PRIVATE = re.compile(r'(?:/home/|/root/|/Users/|/work/|/tmp/)[\w.-]+')
KEPT_ENV = dict(PLOTLY_RENDERER='plotly_mimetype+notebook_connected', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
                SEMANTIC_IDS_QUIET='1', PYTHONWARNINGS='ignore', MPLBACKEND='module://matplotlib_inline.backend_inline')

def pages(): return sorted(p for p in NBS.glob('*.ipynb') if not p.name.startswith('.'))
def read(p): return json.loads(Path(p).read_text(encoding='utf-8'))
def write(p, nb): Path(p).write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')
def source(c): return ''.join(c['source'])
def directives(c): return [l[2:].strip() for l in source(c).splitlines() if l.startswith('#|')]

def flagged(c):
    ds = directives(c)
    return any(d.split(':')[0].strip() in FLAGS or d.replace(' ', '') == 'eval:false' for d in ds)

def code_hash(nb):
    "Hash of the code cells that the kept outputs came from; directives do not change an output"
    body = lambda c: '\n'.join(l for l in source(c).splitlines() if not l.startswith('#|')).strip()
    cells = [body(c) for c in nb['cells'] if c['cell_type'] == 'code' and not flagged(c)]
    return hashlib.sha256('\n\0'.join(cells).encode()).hexdigest()[:16]

def run(path, timeout=600):
    "Execute the unflagged cells top to bottom in an empty folder and keep what they print"
    import nbformat
    from nbclient import NotebookClient
    nb = read(path)
    live = [c for c in nb['cells'] if not (c['cell_type'] == 'code' and flagged(c))]
    doc = nbformat.reads(json.dumps({**nb, 'cells': [dict(c, id=f'c{i}') for i, c in enumerate(live)]}), as_version=4)
    doc.metadata['kernelspec'] = dict(name='python3', display_name='python3', language='python')
    os.environ.update(KEPT_ENV)
    with tempfile.TemporaryDirectory() as d:
        NotebookClient(doc, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': d}}).execute()
    for c, done in zip(live, doc.cells):
        if c['cell_type'] == 'code': c['outputs'] = [o for o in json.loads(json.dumps(done.outputs)) if o.get('name') != 'stderr']
    nb['metadata'] = {'kernelspec': dict(name='python3', display_name='python3', language='python'), STAMP: {'code': code_hash(nb)}}
    write(path, nb)
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; import sys; nbdev_clean(sys.argv[1])', str(path)], check=True, cwd=ROOT)

def stamps():
    "Faults: pages whose kept outputs were made by other code than the page shows"
    faults = []
    for p in pages():
        nb = read(p)
        if not any(c['cell_type'] == 'code' for c in nb['cells']): continue
        kept = nb['metadata'].get(STAMP, {}).get('code')
        if kept != code_hash(nb): faults.append(f'{p.name}: outputs are not from this code; run `python tools/pages.py run nbs/{p.name}`')
    return faults

def text_of(output):
    data = output.get('data', {})
    for mime in ('text/markdown', 'text/plain'):
        if mime in data: return mime, ''.join(data[mime])
    return 'text/plain', ''.join(output.get('text', ''))

def readme():
    "README.md: markdown cells as they are, code fenced, text outputs below"
    out = []
    for c in read(NBS / 'index.ipynb')['cells']:
        hidden = any(d in ('hide', 'echo: false') for d in directives(c)) if c['cell_type'] == 'code' else False
        if c['cell_type'] == 'markdown': out.append(source(c).strip())
        elif c['cell_type'] == 'code':
            code = '\n'.join(l for l in source(c).splitlines() if not l.startswith('#|')).strip()
            if code and not hidden: out.append(f'```python\n{code}\n```')
            for o in c.get('outputs', []):
                mime, text = text_of(o)
                out.append(text.strip() if mime == 'text/markdown' else '\n'.join('    ' + l for l in text.rstrip().splitlines()))
    return '\n\n'.join(s for s in out if s) + '\n'

def hrefs(node):
    if isinstance(node, str): yield node
    elif isinstance(node, list):
        for n in node: yield from hrefs(n)
    elif isinstance(node, dict):
        for k in ('href', 'contents', 'left', 'right'): yield from hrefs(node.get(k, []))

def anchors(nb):
    text = '\n'.join(source(c) for c in nb['cells'])
    heads = {re.sub(r'[^\w -]', '', h.lower()).strip().replace(' ', '-') for h in re.findall(r'^#+ (.+)$', text, re.M)}
    return heads | set(re.findall(r'\{#([\w-]+)', text))

def page_faults(p, names):
    nb, faults = read(p), []
    md = '\n'.join(source(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    first = source(nb['cells'][0])
    if not re.match(r'# .+\n+> .+', first): faults.append('the first cell needs a title and a > subtitle')
    if p.stat().st_size > 1024**2: faults.append(f'{p.stat().st_size/1024:.0f} KB; a page stays under 1 MB')
    labels = {d.split(':', 1)[1].strip() for c in nb['cells'] if c['cell_type'] == 'code' for d in directives(c) if d.startswith('label:')}
    labels |= set(re.findall(r'\{#((?:fig|tbl)-[\w-]+)', md))
    for ref in set(re.findall(r'@((?:fig|tbl)-[\w-]+)', md)) - labels: faults.append(f'@{ref} has no label')
    for link in re.findall(r'\]\(([^)\s]+)\)', md):
        if re.match(r'(https?:|mailto:|data:)', link): continue
        name, _, anchor = link.partition('#')
        target = p.name if not name else name
        if target.endswith('.ipynb'):
            if target not in names: faults.append(f'link to {link}, which is not a page')
            elif anchor and anchor not in anchors(read(NBS / target)): faults.append(f'no anchor {link}')
        elif not (NBS / target).exists(): faults.append(f'link to {link}, which does not exist')
    outs = json.dumps([o for c in nb['cells'] if c['cell_type'] == 'code' for o in c.get('outputs', [])])
    if m := PRIVATE.search(outs): faults.append(f'a machine path in an output: {m.group(0)}')
    if '"output_type": "error"' in outs: faults.append('a stored traceback')
    if 'Unable to display output' in outs: faults.append('an output that cannot be displayed')
    return [f'{p.name}: {f}' for f in faults]

def site():
    "Faults of the site, as far as they show without rendering it"
    import yaml
    faults, link = [], NBS / '_quarto.yml'
    if not link.is_symlink() or os.readlink(link) != '../_quarto.yml': faults.append('nbs/_quarto.yml is not a symlink to ../_quarto.yml')
    cfg = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))
    names, render = [p.name for p in pages()], cfg['project']['render']
    side = [h for h in hrefs(cfg['website']['sidebar']) if h.endswith('.ipynb')]
    for what, listed in (('render', render), ('sidebar', side)):
        if sorted(listed) != names: faults.append(f'{what} lists {sorted(set(listed) ^ set(names))} differently from nbs/')
    for p in pages(): faults += page_faults(p, names)
    return faults

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what', choices=['run', 'stamps', 'readme', 'site'])
    ap.add_argument('pages', nargs='*'); ap.add_argument('--check', action='store_true')
    a = ap.parse_args()
    if a.what == 'run':
        for p in a.pages or pages(): print(p); run(p)
    elif a.what == 'readme':
        old, new = (ROOT / 'README.md').read_text(encoding='utf-8'), readme()
        if a.check and old != new: sys.exit('README.md differs from nbs/index.ipynb; run `python tools/pages.py readme`')
        if not a.check: (ROOT / 'README.md').write_text(new, encoding='utf-8')
    else:
        faults = stamps() if a.what == 'stamps' else site()
        if faults: sys.exit('\n'.join(faults))

if __name__ == '__main__': main()
