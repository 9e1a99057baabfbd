"""The documentation: its pages are built, its figures made by its code, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.build import HERE, MARK, RUN, BuildError, build, evaluate

PAGE = """# Title of `one`

A [link](folder/two.md#second-part), a [file](../src/x.py), $a_i \\cdot b_i$ and 5 $ more.

| a | b |
|---|---|
| 1 | <b>2</b> |

```python figure="first"
from trimtab.figures import Bar, Drawing, Figure, Value, bars

figure = Figure("Made now", (Drawing(bars([Bar("x < y", Value(0.5))], about="a", unit="nats")),))
print("said")
figure
```

```python figure="second"
figure.title.upper()
```

```python run
import numpy as np
import pandas as pd
from trimtab.values.scores import Scores

print("nobody sees this")
```

```python figure="third"
Scores(np.ones((2, 3)), ("example", "layer"), {}, "L{layer}.mlp_out")
```

```python figure="fourth"
pd.DataFrame({"site": ["x < y"]})
```

```python
raise RuntimeError("this block is shown only")
```
"""


@pytest.fixture
def docs(tmp_path):
    """A folder of two pages."""
    source = tmp_path / "docs"
    (source / "folder").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x.py").write_text("", encoding="utf-8")
    (source / "one.md").write_text(PAGE, encoding="utf-8")
    (source / "folder" / "two.md").write_text("# Two\n\n## Second part\n\n[back](../one.md)\n", encoding="utf-8")
    return source


def test_pages_hold_what_their_code_makes(docs, tmp_path):
    out = tmp_path / "site"
    assert build(docs, out) == [out / "one.html", out / "folder" / "two.html"]
    page = (out / "one.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "<pre>said</pre>" in page
    assert "<pre>&#x27;MADE NOW&#x27;</pre>" in page
    assert "this block is shown only" in page
    assert page.count("nobody sees this") == 1, "what a block without a figure prints is not shown"
    assert "<td>x &lt; y</td>" in page, "a table is shown as a table, though it has a plot"
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["first.svg", "third.svg"]
    assert "x &lt; y" in (out / "figures" / "first.svg").read_text(encoding="utf-8")
    assert "&lt;b&gt;2&lt;/b&gt;" in page
    assert "<math" in page
    assert "5 $ more" in page


def test_links_go_from_page_to_page(docs, tmp_path):
    build(docs, tmp_path / "site", run=False)
    one = (tmp_path / "site" / "one.html").read_text(encoding="utf-8")
    two = (tmp_path / "site" / "folder" / "two.html").read_text(encoding="utf-8")
    assert '<a href="folder/two.html#second-part">link</a>' in one
    assert '<span class="file">file</span>' in one
    assert '<a href="../one.html">back</a>' in two
    assert 'id="second-part"' in two
    assert '<a href="two.html" aria-current="page">Two</a>' in two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x](nowhere.md)", r'one\.md:3: the link to "nowhere.md" leads nowhere'),
        ("[x](folder/two.md#third)", r'one\.md:3: there is no heading "#third" in'),
        ('```python figure="a"\n1 / 0\n```', r"one\.md:3: the figure a fails\n(.|\n)*ZeroDivisionError"),
        ("```python run\n1 / 0\n```", r"one\.md:3: a block that is run fails\n(.|\n)*ZeroDivisionError"),
        ('```python figure="a"\n1\n```\n\n```python figure="a"\n1\n```', r'one\.md:7: the name "a" is taken'),
        ("```python run\n1 +\n```", r"one\.md:3: a block that is run is no Python"),
        (
            '```python\nlm = 1\n```\n\n```python figure="a"\nlm\n```',
            r"one\.md:7: the figure a uses lm, which no block before it defines",
        ),
        ("```python run\nx = x + 1\n```", r"one\.md:3: a block that is run uses x, which no block before it defines"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(docs, tmp_path, text, message):
    (docs / "one.md").write_text(f"# One\n\n{text}\n", encoding="utf-8")
    with pytest.raises(BuildError, match=message):
        build(docs, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_figure_that_cannot_be_drawn_is_told_with_its_place(docs, tmp_path):
    code = """
from trimtab.values.scores import Scores

class Broken(Scores):
    def plot(self, kind=None):
        raise RuntimeError("no ink")

Broken([[1.0]], ("example", "layer"), {}, "L{layer}.mlp_out")
"""
    (docs / "one.md").write_text(f'# One\n\n```python figure="a"{code}```\n', encoding="utf-8")
    with pytest.raises(BuildError, match=r"one\.md:3: the figure a fails\n(.|\n)*no ink"):
        build(docs, tmp_path / "site")


def test_names_of_functions_and_comprehensions_are_their_own(docs, tmp_path):
    code = (
        "def double(x):\n    return 2 * x\n[double(y) for y in range(3)]\nz, w = 1, 2\nimport os.path as p\n(z, w, p)\n"
    )
    (docs / "one.md").write_text(f"# One\n\n```python run\n{code}```\n", encoding="utf-8")
    build(docs, tmp_path / "site", run=False)


def test_only_a_folder_of_its_own_is_written_anew(docs, tmp_path):
    out = tmp_path / "site"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "photo.svg").write_text("mine", encoding="utf-8")
    with pytest.raises(BuildError, match="not empty, and no earlier build wrote it: name another folder"):
        build(docs, out, run=False)
    assert (out / "figures" / "photo.svg").read_text(encoding="utf-8") == "mine"
    (out / "figures" / "photo.svg").unlink()
    (out / "figures").rmdir()
    build(docs, out)  # an empty folder is as good as none
    assert (out / MARK).is_file()
    build(docs, out, run=False)
    assert not list((out / "figures").iterdir()), "figures of an earlier build are gone"


def test_one_page_can_be_built_alone(docs, tmp_path):
    out = tmp_path / "site"
    build(docs, out)
    before = (out / "one.html").read_text(encoding="utf-8")
    (docs / "one.md").write_text("# Title of another\n", encoding="utf-8")
    (docs / "folder" / "two.md").write_text(
        "# Two\n\n```python run\nx = 1\n```\n\n[back](../one.md)\n", encoding="utf-8"
    )
    assert build(docs, out, only="folder/two.md") == [out / "folder" / "two.html"]
    assert (out / "one.html").read_text(encoding="utf-8") == before
    assert "Title of another" in (out / "folder" / "two.html").read_text(encoding="utf-8")
    assert len(list((out / "figures").iterdir())) == 2
    with pytest.raises(BuildError, match=r"there is no page three\.md"):
        build(docs, out, only="three.md")


def test_a_block_gives_its_last_expression_and_shares_its_names():
    shared: dict[str, object] = {}
    assert evaluate("x = 2", shared, "here") == ("", None)
    assert evaluate("print(x)\nx + 1", shared, "here") == ("2\n", 3)
    assert "_shown" not in shared


def test_the_links_of_the_real_pages_hold_and_their_blocks_have_every_name_they_use(tmp_path):
    build(HERE, tmp_path / "site", run=False)
    for path in Path(HERE).rglob("*.md"):
        for info in re.findall(r"^```(python[^\n]+)\n", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert RUN.match(info), f"{path}: ```{info}"
