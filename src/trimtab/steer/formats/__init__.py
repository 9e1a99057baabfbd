"""Formats: interventions in the files of other tools.

    ours        safetensors with JSON, any intervention: `Intervention.save`
    gguf        llama.cpp's control vectors (`gguf.py`), which repeng writes too (`repeng.py`)
    easysteer   EasySteer's JSON (`easysteer.py`)

`load_vector` tells them apart by what they hold, `save_vector` writes them.
"""

from trimtab.steer.formats.easysteer import load_easysteer, save_easysteer
from trimtab.steer.formats.files import FORMS, check_vector, form_of, load_vector, save_vector
from trimtab.steer.formats.gguf import load_gguf, save_gguf
from trimtab.steer.formats.repeng import from_repeng, to_repeng

__all__ = [
    "FORMS",
    "check_vector",
    "form_of",
    "from_repeng",
    "load_easysteer",
    "load_gguf",
    "load_vector",
    "save_easysteer",
    "save_gguf",
    "save_vector",
    "to_repeng",
]
