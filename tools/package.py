"""Puts a finished run of the shop into the package: python tools/package.py RUN_FOLDER

The folder is what `semantic-ids run --data shop --preset release --to RUN_FOLDER` leaves. Conversations stay behind; everything that
pages and `Recommender.load('shop')` read is copied, package.json says which format and which IDs they are, and the results called
'shop' say how it was made and what it reached.
"""
import shutil, sys
from datetime import date
from pathlib import Path
from semantic_ids.ids import SemanticIDs
from semantic_ids.runs import FORMAT_VERSION, InputError, read_json, shop_path, write_json

PARTS = 'embeddings quantizer ids sasrec semantic_sasrec llm'.split()

def package(run):
    run, shop = Path(run), shop_path()
    report = read_json(run/'report.json')
    if report['preset'] != 'release': raise InputError(f"{run}: made with preset {report['preset']}; the package holds a release run")
    if read_json(run/'catalogue'/'catalogue.json')['hash'] != read_json(shop/'catalogue'/'catalogue.json')['hash']:
        raise InputError(f'{run}: made from another shop than the one in the package; run it again')
    for part in PARTS:
        shutil.rmtree(shop/part, ignore_errors=True)
        shutil.copytree(run/part, shop/part, copy_function=shutil.copyfile)
    shutil.copyfile(run/'report.json', shop/'report.json')
    write_json(shop/'package.json', dict(format_version=FORMAT_VERSION, ids=SemanticIDs.load(shop/'ids').hash))
    write_json(shop.parent/'results'/'shop.json', record(run, f'semantic-ids run --data shop --preset release --to {run.name}'))
    size = sum(f.stat().st_size for f in shop.rglob('*') if f.is_file())
    print(f'{shop}: {size/1e6:.1f} MB')

def record(run, command):
    "How a run was made, and its figures"
    report, log = read_json(run/'report.json'), read_json(run/'llm'/'train.json')
    stages = {k: dict(steps=len(log[k]['loss']), tokens=log[k]['tokens'], seconds=round(log[k]['seconds'], 1), last_loss=log[k]['loss'][-1]) for k in ('language', 'vocabulary', 'finetuning')}
    about = {k: report[k] for k in ('preset', 'seed', 'device', 'versions', 'seconds', 'peak_rss_mb', 'ids', 'llm', 'steering')}
    return dict(command=command, data=report['catalogue'], date=str(date.today()), **about, training=stages,
                rows=[dict(model=k, **v) for k, v in report['recommenders'].items()])

if __name__ == '__main__': package(sys.argv[1])
