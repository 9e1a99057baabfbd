"""Interventions on the Hugging Face hub: our own file, a control vector where it is one, and a card."""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import EditError, FileError
from trimtab.model.hub import download, is_repo, upload
from trimtab.steer.formats.files import FILE, check_vector, load_vector, save_vector
from trimtab.steer.permanent.card import model_card
from trimtab.values.edit import Intervention

if TYPE_CHECKING:
    from trimtab.model.lm import LM
    from trimtab.values.findings import Evaluation

GGUF = "controlvector.gguf"


def push_to_hub(
    intervention: Intervention,
    repo_id: str,
    *,
    card: str | None = None,
    evaluation: Evaluation | None = None,
    base_model: str = "",
    licence: str = "",
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Upload an intervention",
) -> str:
    """Put an intervention on the hub: `intervention.safetensors`, a README.md, and, where it is one, a control vector.

    Args:
        intervention: what is put there.
        repo_id: "owner/name"; made where it is not there.
        card: the text of README.md; by default `model_card` of what is known.
        evaluation: effects and side effects, for that card.
        base_model: the hub id of the model that it is for.
        licence: as the hub names them, such as "apache-2.0".
        private: whether a repository that is made can be seen by its owner only.
        revision: a branch that is there already; by default main.
        token: by default that of the login.
        endpoint: of another hub than huggingface.co.
        message: of the commit.

    Returns the repository's address. Raises FileError where the hub refuses or cannot be reached.
    """
    text = card or model_card(
        intervention, evaluation=evaluation, base_model=base_model, licence=licence, repo_id=repo_id
    )
    with tempfile.TemporaryDirectory() as folder:
        write_files(intervention, Path(folder), text)
        return upload(
            Path(folder),
            repo_id,
            private=private,
            token=token,
            endpoint=endpoint,
            revision=revision,
            message=message,
        )


def write_files(intervention: Intervention, folder: Path, card: str) -> None:
    """What `push_to_hub` puts up, in a folder, which `from_pretrained` reads too."""
    save_vector(intervention, folder / FILE)
    (folder / "README.md").write_text(card, encoding="utf-8")
    try:
        save_vector(intervention, folder / GGUF, "gguf")
    except EditError:  # it is more than a control vector can say
        (folder / GGUF).unlink(missing_ok=True)


def from_pretrained(
    source: str | PathLike[str],
    lm: LM | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    any_model: bool = False,
) -> Intervention:
    """An intervention from the hub, or from a folder with the same files.

    Args:
        source: "owner/name", or a folder, which comes first where there is one.
        lm: the model that it is for; with one it is checked as `load_vector` does.
        revision: branch, tag or commit; name a commit to get what you looked at.
        token: by default that of the login.
        endpoint: of another hub than huggingface.co.
        cache_dir: where files are kept; by default huggingface_hub's cache.
        any_model: take it also where it was made for weights with another hash.

    Raises FileError where there is none, SiteError and EditError where it does not fit the model.
    """
    name = str(source)
    if name and Path(name).is_dir():
        return load_vector(name, lm, any_model=any_model)
    if not is_repo(name):
        raise FileError(f'there is no folder "{name}", and it is no repository of the hub ("owner/name")')
    cache = None if cache_dir is None else Path(cache_dir)
    path = download(name, FILE, revision=revision, token=token, endpoint=endpoint, cache_dir=cache)
    found = load_vector(path, form="trimtab")
    if lm is not None:
        check_vector(lm, found, any_model=any_model)
    return found
