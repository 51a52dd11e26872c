"""The sources of Python's own standard library: 9 MB of real text on every machine.

They let a language model train without a download. The text is that of the Python that
runs, found through `sysconfig`, so it differs a little from version to version: of the
fixed list below, modules that a version lacks are left out (3.12 has no `asynchat`,
`asyncore`, `distutils`, `imp` and `smtpd`; 3.13 no `aifc`, `cgi`, `chunk`, `crypt`,
`telnetlib` and others of PEP 594), and what a later one adds does not come in. Losses
of different versions are not comparable: a run's folder keeps the digest of the bytes
and the version, and does not go on with others. Left out everywhere are tests,
`idlelib`, `lib2to3`, `encodings`, which are tables, and `pydoc_data`, one file as large
as fifty others.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.data.text import TextDataset, cut

# In this order, and the files of a package in that of their paths.
MODULES = """
__future__ _aix_support _bootsubprocess _collections_abc _compat_pickle _compression
_markupbase _osx_support _py_abc _pydecimal _pyio _sitebuiltins _strptime
_threading_local _weakrefset abc aifc antigravity argparse ast asynchat asyncio asyncore
base64 bdb bisect bz2 cProfile calendar cgi cgitb chunk cmd code codecs codeop
collections colorsys compileall concurrent configparser contextlib contextvars copy
copyreg crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis distutils
doctest email ensurepip enum filecmp fileinput fnmatch fractions ftplib functools
genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http
imaplib imghdr imp importlib inspect io ipaddress json keyword linecache locale logging
lzma mailbox mailcap mimetypes modulefinder multiprocessing netrc nntplib ntpath
nturl2path numbers opcode operator optparse os pathlib pdb pickle pickletools pipes
pkgutil platform plistlib poplib posixpath pprint profile pstats pty py_compile pyclbr
pydoc queue quopri random re reprlib rlcompleter runpy sched secrets
selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket socketserver
sqlite3 sre_compile sre_constants sre_parse ssl stat statistics string stringprep struct
subprocess sunau symtable sysconfig tabnanny tarfile telnetlib tempfile textwrap this
threading timeit tkinter token tokenize tomllib trace traceback tracemalloc tty turtle
turtledemo types typing unittest urllib uu uuid venv warnings wave weakref webbrowser
wsgiref xdrlib xml xmlrpc zipapp zipfile zipimport zoneinfo
""".split()
TESTS = ("test", "tests")
# Of 256 values that the hash of a file's name may begin with: a twentieth each.
_HELD_OUT = 13


def load(data_dir: Path | None = None) -> TextDataset:
    """Load the sources, whose files are held out by the hash of their names.

    Args:
        data_dir: must be None; the sources come with Python.

    Returns:
        Their bytes, in three splits.

    Raises:
        ValueError: a `data_dir` is given.
        FileNotFoundError: this Python has no sources.
    """
    if data_dir is not None:
        raise ValueError(
            "the data set 'stdlib' comes with Python and reads no other files; leave "
            f"data_dir out (got {data_dir})"
        )
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for path in files(root):
        name = path.relative_to(root).as_posix()
        # As Windows may have them, too.
        source = path.read_bytes().replace(b"\r\n", b"\n")
        parts[split_of(name)].append(source)
    if not all(parts.values()):
        raise FileNotFoundError(
            f"the data set 'stdlib' needs the sources of Python {python()}, which are "
            f"not in {root}: take a Python that was installed with them"
        )
    texts = {
        split: np.frombuffer(b"".join(sources), np.uint8)
        for split, sources in parts.items()
    }
    return cut("stdlib", **texts, origin={"python": python()})


def files(root: Path, modules: Iterable[str] = MODULES) -> Iterator[Path]:
    """Yield the sources of those modules that are there, in order.

    Args:
        root: the folder of the standard library.
        modules: their names.
    """
    for module in modules:
        package, single = root / module, root / f"{module}.py"
        if package.is_dir():
            inside = sorted(package.rglob("*.py"), key=lambda path: path.as_posix())
            yield from (
                path
                for path in inside
                if not set(TESTS) & set(path.relative_to(root).parts)
            )
        elif single.is_file():
            yield single


def split_of(name: str) -> str:
    """Return the split of a file: the same whatever other files there are.

    Args:
        name: its path below the standard library, with `/` between the parts.
    """
    first = hashlib.sha256(name.encode()).digest()[0]
    if first < _HELD_OUT:
        return "test"
    return "validation" if first < 2 * _HELD_OUT else "train"


def python() -> str:
    """Return the version of the Python whose sources these are."""
    return platform.python_version()
