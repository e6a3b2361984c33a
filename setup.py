from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
s = cfg['DEFAULT']
words = lambda key: s.get(key, '').split()
extras = {k.removesuffix('_requirements'): words(k) for k in s if k.endswith('_requirements')}
extras['all'] = sorted({r for k, v in extras.items() if k != 'dev' for r in v})

setup(
    name=s['repo'], version=s['version'], description=s['description'], author=s['author'], license=s['license'],
    url=s['git_url'], keywords=words('keywords'), python_requires='>=' + s['min_python'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[s['lib_name'], s['lib_name'] + '.*']), package_data={s['lib_name']: ['*.json', '*.jsonl', 'shop/**/*', 'results/*.json']}, include_package_data=False,
    install_requires=words('requirements'), extras_require=extras,
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f"{s['lib_name']}={s['lib_name']}._modidx:d"]},
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Education', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 *(f'Programming Language :: Python :: 3.{v}' for v in (11, 12, 13))],
    zip_safe=False)
