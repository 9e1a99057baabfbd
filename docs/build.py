"""The documentation as pages: python -m docs.build [--out site] [--only PAGE] [--without-figures]

Every Markdown file of docs/ becomes a page. A block of code that is marked as a figure,

    ```python figure="heads"
    locate.patching(lm, task, "L*.head").plot()
    ```

is run, and what it prints and what its last expression gives stand under it: a figure (of Scores, theirs), or
anything that shows itself. One that only sets things up is marked

    ```python run
    lm = trimtab.load("smollm2-135m-instruct")
    ```

and is run with nothing under it. Any other block is only shown. The blocks of a page that are run share their names, so
that a later one goes on from an earlier; one that uses a name that no block before it defines ends the build before
anything is run. Figures are thus made by the code that is shown, with this version, and never pasted. A block that
fails, or a link to nothing, ends the build too.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import io
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from trimtab import __version__
from trimtab.figures import Figure
from trimtab.figures.style import figure_css, palette_css
from trimtab.values.scores import Scores

HERE = Path(__file__).parent
RUN = re.compile(r'python\s+(?:run|figure="([\w.-]+)")\s*$')
"""What marks a block that is run; its group is the name of a figure, None where nothing is shown."""
MARK = ".trimtab-docs"
"""The file that says that a folder is the build's own, to be written anew."""
FIRST = ("index.md", "studies.md", "tasks.md", "locate.md", "steer.md", "scores.md", "engine.md", "runs.md", "serve.md")
"""The order of pages; others follow by name."""
GROUPS = {"": "", "locate": "Locating methods", "steer": "Steering methods", "decisions": "Decisions"}


class BuildError(Exception):
    """What is wrong with the documentation: every broken block and link."""


@dataclass
class Page:
    """A page under way: where it comes from and goes, its tokens, the anchors it has, the links it makes."""

    source: Path
    path: Path
    tokens: list[Token]
    title: str
    anchors: set[str] = field(default_factory=set)
    html: str = ""


@dataclass(frozen=True)
class Block:
    """Code that is run: the name of its figure (None: nothing is shown), where it stands, and its token."""

    name: str | None
    place: str
    token: Token

    @property
    def title(self) -> str:
        """What a reader of the page looks for."""
        return "a block that is run" if self.name is None else f"the figure {self.name}"


def build(source: Path, out: Path, run: bool = True, only: str | None = None) -> list[Path]:
    """Write every page of `source` to `out`, each figure also to out/figures. BuildError with all that is wrong.

    `out` is a new or empty folder, or one that an earlier build wrote. `run=False` runs no code, and so leaves figures
    out. `only`, such as "locate/patching.md", runs and writes that page, and leaves the others as they are.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise BuildError(f"{out} is not empty, and no earlier build wrote it: name another folder, or remove it")
    pages = [_read(path, source) for path in _ordered(source)]
    wanted = [page for page in pages if only in (None, page.source.relative_to(source).as_posix())]
    if not wanted:
        raise BuildError(f"there is no page {only} in {source}: give one as locate/patching.md")
    blocks = {page.source: list(_blocks(page)) for page in pages}
    problems = [problem for page in pages for problem in _linked(page, pages, source)]
    problems += [problem for page in pages for problem in undefined(blocks[page.source])]
    names: set[str] = set()
    for block in (block for page in pages for block in blocks[page.source] if block.name):
        if block.name in names:
            problems.append(f'{block.place}: the name "{block.name}" is taken by an earlier figure')
        names.add(str(block.name))
    made: dict[str, Figure] = {}
    if run and not problems:
        problems = [problem for page in wanted for problem in _run(blocks[page.source], made)]
    if problems:
        raise BuildError("\n".join(problems))
    if only is None:
        shutil.rmtree(out / "figures", ignore_errors=True)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("Written by docs/build.py, which writes this folder anew.\n", encoding="utf-8")
    for name, figure in made.items():
        figure.save(out / "figures" / f"{name}.svg")
    style = palette_css() + figure_css() + (HERE / "page.css").read_text(encoding="utf-8")
    for page in wanted:
        target = out / page.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_page(page, pages, style), encoding="utf-8")
    return [out / page.path for page in wanted]


def _blocks(page: Page) -> Iterator[Block]:
    for token in page.tokens:
        if token.type == "fence" and (match := RUN.match(token.info)):
            yield Block(match[1], f"{page.source}:{(token.map or [0])[0] + 1}", token)


def _run(blocks: list[Block], made: dict[str, Figure]) -> Iterator[str]:
    """Run the blocks of a page and put what they give behind them; what goes wrong is told."""
    shared: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        start = time.perf_counter()
        try:
            words, value = evaluate(block.token.content, shared, block.place)
            if block.name is not None:
                figure = _figure(value)
                block.token.meta["made"] = _shown(block.name, words, value, figure)
                if figure is not None:
                    made[block.name] = figure
        except Exception:  # noqa: BLE001 - whatever a block raises is told with its place
            yield f"{block.place}: {block.title} fails\n{traceback.format_exc(limit=-3)}"
            return  # the blocks after it would only fail for want of its names
        print(f"{block.place}: {block.title}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def undefined(blocks: list[Block]) -> Iterator[str]:
    """Every name that a block of a page reads and no block before it, nor the block itself, defines."""
    known = set(dir(builtins))
    for block in blocks:
        try:
            tree = ast.parse(block.token.content)
        except SyntaxError as error:
            yield f"{block.place}: {block.title} is no Python: {error}"
            continue
        for statement in tree.body:
            read, bound, inner = _names(statement)
            for name in sorted(read - known - inner):
                yield f"{block.place}: {block.title} uses {name}, which no block before it defines"
                known.add(name)
            known |= bound


def _names(statement: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """The names that a statement reads, those it binds, and those it binds before or only while it reads."""
    nodes = list(ast.walk(statement))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    late = statement.targets if isinstance(statement, ast.Assign) else []  # x = x + 1 reads x before it binds it
    after = {node.id for target in late for node in ast.walk(target) if isinstance(node, ast.Name)}
    return read, bound, bound - after


def evaluate(code: str, shared: dict[str, object], place: str) -> tuple[str, object]:
    """Run a block with the names that its page shares: what it prints, and the value of its last expression."""
    tree = ast.parse(code, place)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("_shown", ast.Store())], last.value)
        ast.fix_missing_locations(ast.copy_location(tree.body[-1], last))
    shared.pop("_shown", None)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(tree, place, "exec"), shared)
    return said.getvalue(), shared.pop("_shown", None)


def _figure(value: object) -> Figure | None:
    """A figure, or that of Scores; other things with a `plot` (a DataFrame) show themselves in their own way."""
    return value.plot() if isinstance(value, Scores) else value if isinstance(value, Figure) else None


def _shown(name: str, words: str, value: object, figure: Figure | None) -> str:
    parts = [f"<pre>{escape(words.rstrip())}</pre>"] if words.strip() else []
    own = getattr(value, "_repr_html_", None)
    if figure is not None:
        parts.append(f'<p class="title">{escape(figure.title)}</p>{figure.body()}')
    elif callable(own):
        parts.append(str(own()))
    elif value is not None:
        parts.append(f"<pre>{escape(repr(value))}</pre>")
    return f'<div class="made" id="figure-{escape(name)}">{"".join(parts)}</div>'


def _ordered(source: Path) -> list[Path]:
    found = sorted(source.rglob("*.md"), key=lambda path: path.relative_to(source).parts)

    def order(path: Path) -> tuple[int, int, str]:
        folder, name = str(path.relative_to(source).parent), path.name
        groups = list(GROUPS)
        group = groups.index("" if folder == "." else folder) if folder in (".", *GROUPS) else len(groups)
        place = FIRST.index(name) if name in FIRST else 0 if name == "README.md" else len(FIRST)
        return group, place, name

    return sorted(found, key=order)


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False, renderer=_math)
    markdown.add_render_rule("fence", _fence)
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def _math(content: str, options: dict[str, bool]) -> str:
    return convert(content, display="block" if options.get("display_mode") else "inline")


def _fence(self: object, tokens: list[Token], i: int, options: object, env: object) -> str:
    code = f"<pre><code>{escape(tokens[i].content, quote=False)}</code></pre>\n"
    return code + str(tokens[i].meta.get("made", ""))


def _read(path: Path, source: Path) -> Page:
    tokens = _markdown().parse(path.read_text(encoding="utf-8"))
    target = path.relative_to(source).with_suffix(".html")
    target = target.with_name("index.html") if target.name == "README.html" else target
    page = Page(path, target, tokens, path.stem)
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            words = "".join(child.content for child in inside.children or ())
            slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
            while slug in page.anchors:
                slug += "-1"
            page.anchors.add(slug)
            token.attrs["id"] = slug
            if token.tag == "h1" and page.title == path.stem:
                page.title = words
    return page


def _linked(page: Page, pages: list[Page], source: Path) -> Iterator[str]:
    """Turn links to other Markdown files into links to their pages; what leads nowhere is told."""
    by_source = {other.source.resolve(): other for other in pages}
    for token in page.tokens:
        for child in token.children or ():
            href = str(child.attrs.get("href", ""))
            if child.type != "link_open" or re.match(r"[a-z]+:", href):
                continue
            path, _, anchor = href.partition("#")
            target = (page.source.parent / path).resolve() if path else page.source.resolve()
            other = by_source.get(target) or by_source.get(target / "README.md")
            where = f"{page.source}:{(token.map or [0])[0] + 1}"
            if other is None:
                if not target.exists():
                    yield f'{where}: the link to "{href}" leads nowhere'
                child.tag = "span"  # a file of the repository, which the pages do not have
                child.attrs = {"class": "file"}
                _close(token, child)
                continue
            if anchor and anchor not in other.anchors:
                yield f'{where}: there is no heading "#{anchor}" in {other.source}'
            start = page.path.parent
            child.attrs["href"] = Path(os.path.relpath(other.path, start)).as_posix() + (f"#{anchor}" if anchor else "")


def _close(token: Token, opened: Token) -> None:
    """Let the end of a link that is none be the end of a span."""
    children = token.children or []
    for child in children[children.index(opened) :]:
        if child.type == "link_close":
            child.tag = "span"
            return


def _page(page: Page, pages: list[Page], style: str) -> str:
    body = _markdown().renderer.render(page.tokens, _markdown().options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(page.title)} · trimtab</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n</head>\n<body>\n{_navigation(page, pages)}\n<main>\n{body}</main>\n"
        f"<footer>trimtab {escape(__version__)}. The figures were made by the code above them.</footer>\n"
        "</body>\n</html>\n"
    )


def _navigation(page: Page, pages: list[Page]) -> str:
    parts: list[str] = []
    folders = dict.fromkeys(other.path.parent.as_posix() for other in pages)
    for folder in folders:
        rows = []
        for other in (p for p in pages if p.path.parent.as_posix() == folder):
            href = Path(os.path.relpath(other.path, page.path.parent)).as_posix()
            current = ' aria-current="page"' if other is page else ""
            rows.append(f'<li><a href="{escape(href)}"{current}>{escape(_short(other.title))}</a></li>')
        name = GROUPS.get("" if folder == "." else folder, folder)
        parts.append((f"<p>{escape(name)}</p>" if name else "") + f"<ul>{''.join(rows)}</ul>")
    return f'<nav aria-label="Pages">{"".join(parts)}</nav>'


def _short(title: str) -> str:
    return title.partition(":")[0]


def main() -> None:
    """Build the pages that the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the documentation as pages.")
    parser.add_argument("--source", type=Path, default=HERE)
    parser.add_argument("--out", type=Path, default=HERE.parent / "site")
    parser.add_argument("--only", metavar="PAGE", help="run and write one page, such as locate/patching.md")
    parser.add_argument("--without-figures", action="store_true", help="check links and names, and run no code")
    chosen = parser.parse_args()
    try:
        pages = build(chosen.source, chosen.out, run=not chosen.without_figures, only=chosen.only)
    except BuildError as error:
        sys.exit(f"error: {error}")
    print(f"{len(pages)} pages: {pages[0]}")


if __name__ == "__main__":
    main()
