import pytest

from trimtab import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.SiteError, ValueError),
        (errors.PromptError, ValueError),
        (errors.EditError, ValueError),
        (errors.ModelError, RuntimeError),
        (errors.ModelFileError, OSError),
        (errors.FileError, OSError),
        (errors.MissingExtra, ImportError),
    ],
)
def test_every_error_is_a_trimtab_error_and_the_builtin_one_expects(error, builtin):
    assert issubclass(error, errors.TrimtabError)
    assert issubclass(error, builtin)


def test_a_model_file_error_is_a_model_error():
    assert issubclass(errors.ModelFileError, errors.ModelError)


def test_a_missing_extra_says_what_to_install():
    error = errors.MissingExtra("quant", "loading in 4 bit")
    assert 'pip install "trimtab[quant]"' in str(error)
    assert error.extra == "quant"


def test_nearest_ignores_case_and_gives_the_valid_spelling():
    assert errors.nearest("LOGITDIFF", ["logit_diff", "kl"]) == ' (did you mean "logit_diff"?)'


def test_nearest_is_silent_where_nothing_is_close():
    assert errors.nearest("zebra", ["resid_pre", "head"]) == ""
    assert errors.nearest("head", []) == ""
