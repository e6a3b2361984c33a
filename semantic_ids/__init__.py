"Give items semantic IDs, teach them to a language model, and recommend in plain words"
from importlib import import_module

__version__ = '0.1.0'
_home = dict(load='catalogue', from_frames='catalogue', Catalogue='catalogue', Recommender='recommender', run='pipeline', results='runs',
             preset='runs', InputError='runs')
__all__ = sorted(_home)

def __getattr__(name):
    if name in _home: return getattr(import_module(f'.{_home[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__(): return [*globals(), *_home]
