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

@pytest.fixture(autouse=True)
def one_thread():
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope='session')
def x():
    "400 unit vectors around twenty centres"
    import numpy as np
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 24))[rng.integers(0, 20, 400)] + .3 * rng.normal(size=(400, 24))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

@pytest.fixture(scope='module')
def model(x):
    "A small RQ-VAE of these vectors, new for each file"
    from semantic_ids.rqvae import RQVAE
    return RQVAE(24, hidden=(32,), d_latent=8, codebook_size=16).fit(x, steps=80)
