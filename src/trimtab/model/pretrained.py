"""Model and tokenizer by transformers, with every way in which that fails told in one error that says what to do.

Weights come from safetensors or GGUF only: pickles are refused, and no code that comes with a model is run unless the
options say so. What kind of source it is has been decided before (see `load.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab.errors import ModelError, ModelFileError, nearest
from trimtab.model import gguf
from trimtab.model.bundled import BUNDLED, pull, status
from trimtab.model.options import Options, Stored, need

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FAILS = (ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, AssertionError)


def pretrained(
    where: str | Path, options: Options, default: torch.dtype | Stored
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in eval mode and its tokenizer, from a folder (a Path) or a hub id (a string).

    Raises ModelError, or ModelFileError where weights are damaged or lacking.
    """
    from transformers import AutoConfig

    source: dict[str, object] = {
        "local_files_only": isinstance(where, Path),
        "trust_remote_code": options.trust_remote_code,
    }
    if options.revision is not None:
        source["revision"] = options.revision
    keywords = options.keywords(default)
    try:
        AutoConfig.from_pretrained(where, **source)
    except OSError as error:
        raise ModelError(_unreachable(where, error)) from error
    except _FAILS as error:
        raise ModelError(f'transformers cannot load "{where}": {_said(error)}') from error
    tokenizer = tokenizer_of(where, options)
    return _model(where, options, source | keywords), tokenizer


def pretrained_gguf(path: Path, options: Options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file of any architecture that transformers reads, dequantised to a plain model, and its tokenizer."""
    reader = gguf.read_gguf(path)
    architecture = gguf.architecture(reader)
    gguf.check_rotary(reader)
    need("accelerate", "big", "reading a GGUF file")
    import transformers
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    source: dict[str, object] = {"gguf_file": path.name, "local_files_only": True}
    if kind := getattr(transformers, "GgufConfig", None):
        source["quantization_config"] = kind(dequantize=True)
    try:
        hf = _model(path.parent, options, source | options.keywords(torch.float32))
        tokenizer = _gguf_tokenizer(path, reader, options)
    except ModelFileError:
        raise
    except ModelError as error:
        known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
        raise ModelError(
            f'the GGUF file "{path}" of architecture "{architecture}" cannot be loaded: {error}. '
            f"transformers reads these architectures from GGUF: {', '.join(known)}"
        ) from error
    if quantizer := getattr(hf, "hf_quantizer", None):
        quantizer.remove_quantization_config(hf)
    return hf, tokenizer


def tokenizer_of(where: str | Path, options: Options) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or the one from where it was said to be, or the one of the model `where`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    given = options.tokenizer
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    source: dict[str, object] = {"trust_remote_code": options.trust_remote_code}
    if given is None:
        if options.revision is not None:
            source["revision"] = options.revision
    elif not isinstance(given, str | Path):
        raise ModelError(f"tokenizer={given!r} is not a transformers tokenizer, nor the hub id or folder of one")
    elif given in BUNDLED:
        where = bundled_folder(str(given))
    else:
        folder = Path(given).expanduser()
        where = folder if isinstance(given, Path) or folder.is_dir() else given
    try:
        found = AutoTokenizer.from_pretrained(where, local_files_only=isinstance(where, Path), **source)
    except (OSError, *_FAILS) as error:
        raise ModelError(
            f'no tokenizer can be read from "{where}", give one with tokenizer=...: {_said(error)}'
        ) from error
    if len(found) < 2:
        raise ModelError(f'the tokenizer in "{where}" has no vocabulary: give one with tokenizer=...')
    return found


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model, pulled where it is not there yet; a damaged one is an error, not a download."""
    from trimtab.model.progress import bar

    now = status(name)
    if now.state == "damaged":
        raise ModelFileError(
            f'the bundled model {name} in "{now.folder}" is damaged: {now.problem}. '
            f"Make it again with: trimtab models pull {name}"
        )
    if now.state == "ready":
        return now.folder
    with bar(name) as progress:
        return pull(name, progress)


def no_pickles(where: str | Path, name: str) -> str:
    """What to say of weights that are a pickle."""
    return (
        f'"{where}" has no weights as safetensors, and a pickle ({name}) can run code when it is read. If you trust '
        'it, convert it once: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{where}', use_safetensors=False).save_pretrained('converted')\", with its tokenizer beside"
    )


def _model(where: str | Path, options: Options, keywords: dict[str, object]) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained
    try:
        loaded: Any = read(where, use_safetensors=True, output_loading_info=True, **keywords)
    except SafetensorError as error:
        raise ModelFileError(
            f'the weights in "{where}" are damaged or truncated ({_said(error)}): fetch them again'
        ) from error
    except OSError as error:
        raise ModelError(_unreachable(where, error)) from error
    except _FAILS as error:
        raise ModelError(f'transformers cannot load "{where}": {_said(error)}') from error
    hf, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise ModelFileError(
            f'the weights in "{where}" lack {len(lacking)} of the tensors of {type(hf).__name__}, such as '
            f"{lacking[0]}: the files are incomplete, or config.json is of another model "
            "(random numbers would stand in for them)"
        )
    if options.device is not None and options.quantize is None:
        hf.to(options.device)
    return hf.eval()


def _gguf_tokenizer(path: Path, reader: GGUFReader, options: Options) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file: ours where transformers would split text differently from the model's own."""
    if options.tokenizer is not None:
        return tokenizer_of(path.parent, options)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind, split = (gguf.metadata(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2" and split in gguf.SINGLE_DIGITS:
        config = {key: value for key, value in gguf.tokenizer_config(reader).items() if key != "tokenizer_class"}
        return PreTrainedTokenizerFast(tokenizer_object=gguf.byte_level_tokenizer(reader), **config)
    if kind == "gpt2" and split not in gguf.known_splits():
        warnings.warn(
            f'"{path.name}" splits text as "{split}", which transformers does not know: its tokenizer splits as GPT-2 '
            "does, and may give other tokens than the model was trained on. Give the model's own with tokenizer=...",
            stacklevel=2,
        )
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (OSError, *_FAILS) as error:
        raise ModelError(f"no tokenizer can be read from it, give one with tokenizer=...: {_said(error)}") from error


def _unreachable(where: str | Path, error: OSError) -> str:
    """What to say when files could not be had, from a folder or from the hub."""
    said = _said(error)
    if isinstance(where, Path):
        return f'transformers cannot load "{where}": {said}'
    if "safetensors" in said:
        return no_pickles(where, "pytorch_model.bin") + ". If it has GGUF files, name one with gguf_file=..."
    near = nearest(where.rpartition("/")[2], BUNDLED)
    return (
        f'cannot load "{where}": no bundled model is called that{near} (there is: {", ".join(BUNDLED)}), no file or '
        f"folder here is, and the Hugging Face hub did not give it: {said}. Check the name, your connection and your "
        "login; with HF_HUB_OFFLINE=1 what was fetched before is used at once"
    )


def _said(error: Exception) -> str:
    """The first line of what another library had to say, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, for loads of a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
