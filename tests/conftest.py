import os
from pathlib import Path
import pytest

DATA = Path(os.environ.get('SEMANTIC_IDS_DATA', Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'))

@pytest.fixture(scope='session')
def data_folder():
    "The folder of real data; tests that need it skip where there is none"
    if not DATA.is_dir(): pytest.skip(f'no real data at {DATA.name}: set SEMANTIC_IDS_DATA')
    return DATA

@pytest.fixture(scope='session')
def models_folder(data_folder):
    "Real tokenizers and models, beside the real data"
    folder = data_folder.parent / 'models'
    if not folder.is_dir(): pytest.skip('no models folder beside SEMANTIC_IDS_DATA')
    return folder

def pytest_sessionfinish(session, exitstatus):
    "A real-data test that was skipped although the data are there is a failure"
    skipped = session.config.stash.get(SKIPPED, [])
    if DATA.is_dir() and skipped:
        print('\nskipped although the real data exist:', *skipped)
        session.exitstatus = 1

SKIPPED = pytest.StashKey()

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and {'data_folder', 'models_folder'} & set(item.fixturenames):
        item.config.stash.setdefault(SKIPPED, []).append(item.nodeid)
