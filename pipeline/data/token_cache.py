"""Tokenise files and datasets once: their samples are kept under a key made of all that determines them.

Other content, another tokenizer, template or setting, other libraries, or a change in this folder's code give
another key. So nothing that is kept is ever out of date, and what is not used any more may be deleted at any
time.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Optional, TypeVar

from huggingface_hub import constants
from tqdm import tqdm

from pipeline import durable
from pipeline.config import DATA_SUFFIXES, DataConfig
from pipeline.data import token_file
from pipeline.data.hub import fingerprint
from pipeline.data.reading import Reading

CHANGE_NO_TOKEN = ("pool", "pool_weights", "target", "test", "rotate_targets", "cache_folder")
"""Settings of ``data`` that are not in the key: the content of files and datasets is in it instead of their
names, and the others change no token. All the rest is in it, so that a new setting cannot be forgotten."""
Result = TypeVar("Result")
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


@dataclass(frozen=True)
class Kept:
    """Samples in a file (``token_file.TokenFile``)."""

    manifest: Path
    is_reused: bool
    is_temporary: bool
    """The folder is this run's own, to be removed once the file is mapped."""
    notes: list[str]
    """Sentences for the log: why the samples are tokenised again."""


def folder_of(data: DataConfig) -> Optional[Path]:
    """Folder of the kept samples; None where ``data.cache_folder`` keeps nothing."""
    if data.cache_folder == "auto":
        return Path(constants.HF_HOME) / "filter_then_weight"
    return Path(os.path.expandvars(data.cache_folder)).expanduser() if data.cache_folder else None


def obtain(
    names: list[str],
    tokenizer,
    data: DataConfig,
    setting: str,
    beat: Callable[[], None],
    shows_progress: bool,
) -> Kept:
    """The samples of ``names``, from the cache if it has them, else made and put there.

    Args:
        setting: the setting that holds ``names``, for messages.
        beat: called several times a second as long as the work goes on; what it raises ends the work.

    Raises:
        ValueError: as ``sources.read`` and ``chat.tokenize_all`` do; also if a file changes meanwhile, or the
            folder cannot be written.
    """
    folder, notes = folder_of(data), list[str]()
    stamps = _stamps(names)  # from before the key is made

    def make(path: Path) -> None:
        _make(path, names, stamps, tokenizer, data, setting, beat, shows_progress)

    key, obstacle = key_of(names, tokenizer, data, setting, beat) if folder else (None, "")
    if obstacle:
        notes.append(f"{setting} is tokenised anew at every start: {obstacle}")
    if folder is None or key is None:
        return Kept(_in_a_folder_of_its_own(make), False, True, notes)
    path = folder / f"{key}.json"
    with _using(folder):
        if path.exists():
            problem = token_file.damage(path, beat)
            if problem is None:
                return Kept(path, True, False, notes)
            notes.append(f"{setting} is tokenised again, as what was kept of it cannot be used: {problem}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        token_file.remove_stale(folder, "[0-9a-f]" * len(key))
        make(path)
    return Kept(path, False, False, notes)


def _in_a_folder_of_its_own(make: Callable[[Path], None]) -> Path:
    with _using(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="tokens-"))
        try:
            make(folder / "samples.json")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder / "samples.json"


@contextmanager
def _using(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of the folder: errors in reading data are ValueErrors
        raise ValueError(
            f"data.cache_folder: tokenised samples cannot be kept in {folder}: {error}. Name a folder that "
            "can be written to and has room"
        ) from error


def _make(
    path: Path,
    names: list[str],
    stamps: list[tuple],
    tokenizer,
    data: DataConfig,
    setting: str,
    beat: Callable[[], None],
    shows_progress: bool,
) -> None:
    """Read, tokenise and write, sample by sample."""

    def on_record() -> None:
        beat()
        progress.update()

    def counts() -> dict[str, int]:
        if _stamps(names) != stamps:
            raise ValueError(
                f"{setting}: a file was written to while it was read: start again when it is complete"
            )
        return reading.counts()

    reading = Reading(names, tokenizer, data, setting, on_record)
    with tqdm(
        desc=f"tokenising {setting}", unit=" samples", disable=not shows_progress, delay=2, mininterval=1.0
    ) as progress:  # delay: not shown where the work is over before
        token_file.write(path, reading.parts(), counts, beat)


def key_of(
    names: list[str], tokenizer, data: DataConfig, setting: str, beat: Callable[[], None]
) -> tuple[Optional[str], str]:
    """The hash of all that determines the samples, and ''; or None, and the reason why there is none."""
    if not tokenizer.is_fast:
        return None, f"{type(tokenizer).__name__}, which is no fast tokenizer, cannot be written down"
    contents = []
    for name in names:
        content = _content(name, setting, beat)
        if content is None:
            return None, f"{name} does not say what it holds"
        contents.append(content)
    settings = {f.name: getattr(data, f.name) for f in fields(data) if f.name not in CHANGE_NO_TOKEN}
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):  # all of them: which ones make tokens may change
        code.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    libraries = {**{name: version(name) for name in LIBRARIES}, "python": platform.python_version()}
    described = [contents, _tokenizer(tokenizer), settings, libraries, code.hexdigest()]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32], ""


def _content(name: str, setting: str, beat: Callable[[], None]) -> Optional[list]:
    """The content behind a name, and the parts of the name that ids and sources have; None if not known."""
    if name.startswith("demo:"):
        return [name]  # follows from the code
    if Path(name).suffix not in DATA_SUFFIXES:
        found = _beating(lambda: fingerprint(name, setting), beat)
        return [name, found, version("datasets")] if found else None
    if not os.path.isfile(name):
        return None  # reading it will say so
    try:
        return [Path(name).stem, Path(name).suffix, *durable.described(Path(name), beat)]
    except OSError as error:
        raise ValueError(f"{setting}: {name} cannot be read: {error}") from error


def _beating(action: Callable[[], Result], beat: Callable[[], None]) -> Result:
    """The result of ``action``, with a beat every half second until it is there.

    This is for downloads of datasets, which show us no progress; where one hangs, the library ends it.
    """
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(action)
        while wait([found], timeout=0.5).not_done:
            beat()
        return found.result()


def _tokenizer(tokenizer) -> dict:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # of the tokenizer's last call
        del backend[state]
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "backend": backend,
        "template": tokenizer.chat_template,
        "special": [
            tokenizer.special_tokens_map,
            tokenizer.all_special_tokens,
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        ],
    }


def _stamps(names: list[str]) -> list[tuple]:
    """Identity, size and time of the last change of each file among ``names``."""
    found = [os.stat(name) for name in names if os.path.isfile(name)]
    return [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
