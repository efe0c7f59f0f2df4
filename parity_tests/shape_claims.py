"""Read the shapes that source files claim in their comments; `shape_comments.py` compares them with a run.

A file opens with a legend of letters (`# B batch   T new tokens   C hidden_size`). A comment that starts with a
parenthesis, at the end of an assignment or a return, claims one shape per target; free text may follow. So does one
at a dataclass field and, in a docstring, `name (B, T)` where `name` is a parameter. Terms are legend letters,
configuration names, integers, `...`, and sums and products of these (`N+P`, `h/2*w/2`, `2N`).
"""

import ast
import functools
import io
import re
import tokenize
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import CodeType

ONE_SHAPE = re.compile(r"\(([^()]*)\)")
LEADING_SHAPES = re.compile(r"(?:\([^()]*\)\s*)+")
TERM_NODES = (ast.BinOp, ast.Name, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Load)


class ShapeCommentError(AssertionError):
    """A comment that is not what the tensor was, or that nothing could check."""


@dataclass(frozen=True)
class Shape:
    """A claimed shape: as written, and its terms; None stands for `...`."""

    text: str
    terms: tuple[ast.expr | None, ...]

    @property
    def names(self) -> set[str]:
        return set().union(*(names_in(term) for term in self.terms if term is not None))


@dataclass(frozen=True, eq=False)
class Claim:
    """One commented statement."""

    where: str  # file:line of the comment
    first_line: int
    last_line: int
    targets: tuple[tuple[str, CodeType], ...]  # what is assigned, as text and as code; empty for a return
    shapes: tuple[Shape, ...]
    loop_lines: tuple[int, ...]  # first lines of the loops around it


@dataclass
class Source:
    """What one file claims."""

    letters: dict[str, str]  # the legend: letter to meaning
    claims: list[Claim] = field(default_factory=list)
    fields: dict[str, dict[str, Claim]] = field(default_factory=dict)  # class name to field name to claim

    @functools.cached_property
    def formulas(self) -> dict[str, ast.expr]:
        """Letters whose meaning ends in a formula of other letters: `A assignments: T*K`."""
        shapes = {letter: read_shape(meaning.rpartition(": ")[2]) for letter, meaning in self.letters.items()
                  if ": " in meaning}
        return {letter: shape.terms[0] for letter, shape in shapes.items()
                if shape is not None and shape.names <= self.letters.keys()}

    @functools.cached_property
    def claim_at(self) -> dict[int, Claim]:
        """Line number to the claim whose statement covers it."""
        return {line: claim for claim in self.claims for line in range(claim.first_line, claim.last_line + 1)}


def read_source(path: Path, root: Path) -> Source:
    """Collect the legend and the claims of a file. Raises ShapeCommentError for a claim that nothing could check."""
    text = path.read_text(encoding="utf-8")
    whole_line, trailing = split_comments(text)
    source, tree = Source(read_legend(whole_line)), ast.parse(text)
    for line, comment in trailing.items():
        if comment.startswith("("):
            where = f"{path.relative_to(root)}:{line}"
            add_claim(source, where, statements_around(tree, line), read_shapes(comment, where))
    return source


def split_comments(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line, without their hash: those alone on a line at the left edge, and those after code."""
    whole_line, trailing = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            if token.line[:column].strip():
                trailing[line] = token.string.lstrip("# ")
            elif column == 0:
                whole_line[line] = token.string.lstrip("# ")
    return whole_line, trailing


def read_legend(comments: dict[int, str]) -> dict[str, str]:
    """Letters and meanings, from lines such as `B batch   T new tokens` and the ones that continue them below."""
    letters, last_line = {}, None
    for line, text in sorted(comments.items()):
        entries = [entry.split(" ", 1) for entry in re.split(r" {3,}", text)]
        is_list = all(len(entry) == 2 for entry in entries) and (len(entries) > 1 or last_line == line - 1)
        if is_list:
            letters.update(entries)
            last_line = line
    return letters


def read_shapes(comment: str, where: str) -> tuple[Shape, ...]:
    leading = LEADING_SHAPES.match(comment)
    shapes = tuple(read_shape(inside) for inside in ONE_SHAPE.findall(leading[0])) if leading else (None,)
    if None in shapes:
        raise ShapeCommentError(f"{where}: no shape can be read from {comment!r}")
    return shapes


def read_shape(text: str) -> Shape | None:
    """Parse the inside of one parenthesis; None if it is not a shape."""
    terms = []
    for part in text.strip().removesuffix(",").split(","):
        try:
            term = None if part.strip() == "..." else read_term(part)
        except SyntaxError:
            return None
        terms.append(term)
    return Shape(f"({text.strip()})", tuple(terms)) if terms.count(None) <= 1 else None


def read_term(text: str) -> ast.expr:
    """Parse `N+P` or `2N`. Raises SyntaxError for anything but sums and products of names and integers."""
    term = ast.parse(re.sub(r"\b(\d+)(?=[A-Za-z])", r"\1*", text.strip()), mode="eval").body
    for node in ast.walk(term):
        if not isinstance(node, TERM_NODES) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            raise SyntaxError(text)
    return term


def names_in(term: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(term) if isinstance(node, ast.Name)}


def evaluate(term: ast.expr, values: dict[str, int | Fraction]) -> Fraction:
    """The exact value of a term: h/2*w/2 is a quarter of h*w, also where h is odd."""
    if isinstance(term, ast.Constant):
        return Fraction(term.value)
    if isinstance(term, ast.Name):
        return Fraction(values[term.id])
    left, right = evaluate(term.left, values), evaluate(term.right, values)
    match term.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
    return left / right


def statements_around(tree: ast.Module, line: int) -> list[ast.stmt]:
    """The statements that contain the line, outermost first."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno]
    return sorted(found, key=lambda node: (node.lineno, -node.end_lineno))


def assigned(statement: ast.stmt) -> list[ast.expr]:
    """The targets of an assignment, a tuple taken apart; none for any other statement."""
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        return [statement.target]
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        return list(target.elts) if isinstance(target, ast.Tuple | ast.List) else [target]
    return []


def add_claim(source: Source, where: str, around: list[ast.stmt], shapes: tuple[Shape, ...]) -> None:
    statement, targets = around[-1], assigned(around[-1])
    if not targets and not isinstance(statement, ast.Return):
        raise ShapeCommentError(f"{where}: a shape stands where nothing is assigned or returned")
    if len(targets) > 1 and len(targets) != len(shapes):
        raise ShapeCommentError(f"{where}: {len(shapes)} shapes for {len(targets)} targets, {ast.unparse(statement)}")
    texts = [ast.unparse(target) for target in targets]
    claim = Claim(
        where, statement.lineno, statement.end_lineno, tuple((text, compile(text, where, "eval")) for text in texts),
        shapes, tuple(node.lineno for node in around if isinstance(node, ast.For | ast.While)))
    owner = around[-2] if len(around) > 1 else None
    if isinstance(owner, ast.ClassDef):
        source.fields.setdefault(owner.name, {})[texts[0]] = claim
    else:
        source.claims.append(claim)
