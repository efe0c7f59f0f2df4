"""Compare the shapes that stand in comments with the tensors of a real run, through Python's trace hook.

How a letter gets its size: if its meaning begins with a configuration name (`C hidden_size`), it is that size. If it is
also an integer variable of the function, it is that variable. Otherwise the call takes it from the first shape that it
meets and holds every later one to it; met first inside a loop, it starts anew in each round. A meaning that ends in a
formula (`A assignments: T*K`) is held to it.
"""

import ast
import contextlib
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from .shape_claims import Claim, Shape, ShapeCommentError, Source, evaluate, names_in, read_shape, read_source

INNER_SCOPES = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"}


class Call:
    """The letters of one running function."""

    def __init__(self, source: Source, sizes: dict[str, int]):
        self.source, self.letters = source, source.letters
        # `C hidden_size` is that size, `W width: intermediate_size, or ...` is not.
        first_words = {letter: meaning.partition(" ")[0] for letter, meaning in source.letters.items()}
        self.configured = sizes | {letter: sizes[word] for letter, word in first_words.items() if word in sizes}
        self.bound: dict[str, tuple[Any, tuple[int, ...]]] = {}  # letter to its size and the loops it was met in
        self.products: dict[str, ast.expr] = {}  # terms such as G*Q that were met before G and Q
        self.running: Claim | None = None  # the claim whose statement is being executed

    def size(self, name: str, variables: dict[str, Any]) -> int | None:
        if name in self.letters and type(variables.get(name)) is int:
            return variables[name]
        return self.bound[name][0] if name in self.bound else self.configured.get(name)

    def start_round(self, loop_line: int) -> None:
        """Forget the letters that were first met inside this loop."""
        self.bound = {name: entry for name, entry in self.bound.items() if loop_line not in entry[1]}

    def check(self, where: str, label: str, shape: Shape, tensor: Any, frame: FrameType, loops=()) -> None:
        """Raise unless `tensor` has the claimed shape; bind the letters that are met for the first time."""
        if unknown := shape.names - self.letters.keys() - self.configured.keys():
            raise ShapeCommentError(f"{where}: {', '.join(sorted(unknown))} is not in the legend of the file")
        found = getattr(tensor, "shape", None)
        if found is None:
            raise ShapeCommentError(f"{where}: {label} is a {type(tensor).__name__}, not a tensor")
        variables = frame.f_locals
        if not self.fits(shape, tuple(found), variables, loops):
            sizes = {name: self.size(name, variables) for name in sorted(shape.names)}
            sizes = ", ".join(f"{name} = {'?' if size is None else size}" for name, size in sizes.items())
            raise ShapeCommentError(f"{where}: {label} is {tuple(found)}, claimed is {shape.text} with {sizes}")

    def fits(self, shape: Shape, found: tuple[int, ...], variables: dict[str, Any], loops: tuple[int, ...]) -> bool:
        terms = list(shape.terms)
        if None in terms:
            start, length = terms.index(None), len(found) - len(terms) + 1
            dots = found[start : start + length]
            if length < 0 or self.bound.setdefault("...", (dots, loops))[0] != dots:
                return False
            terms.pop(start)
            found = found[:start] + found[start + length :]
        if len(terms) != len(found):
            return False
        # Lone letters first: they settle the letters of the sums and products beside them.
        pairs = sorted(zip(terms, found, strict=True), key=lambda pair: len(names_in(pair[0])))
        return all(self.term_fits(term, size, variables, loops) for term, size in pairs)

    def term_fits(self, term: ast.expr, size: int, variables: dict[str, Any], loops: tuple[int, ...]) -> bool:
        known = {name: self.size(name, variables) for name in names_in(term)}
        unknown = [name for name, value in known.items() if value is None]
        if len(unknown) > 1:  # G*Q counts as a letter of its own until the call has met G and Q
            self.products[ast.unparse(term)] = term
            return self.bound.setdefault(ast.unparse(term), (size, loops))[0] == size
        if unknown:  # the term is linear in its one unknown letter: solve for it
            at_zero, at_one = (evaluate(term, known | {unknown[0]: value}) for value in (0, 1))
            if at_zero == at_one:
                return False
            known[unknown[0]] = (size - at_zero) / (at_one - at_zero)
            if known[unknown[0]].denominator != 1:
                return False
            self.bound[unknown[0]] = (int(known[unknown[0]]), loops)
        return evaluate(term, known) == size

    def check_formulas(self, frame: FrameType) -> None:
        """Hold every formula to the letters that the call has met, before they are forgotten."""
        for letter, formula in (self.source.formulas | self.products).items():
            sizes = {name: self.size(name, frame.f_locals) for name in names_in(formula)}
            size = self.size(letter, frame.f_locals)
            if None not in (size, *sizes.values()) and evaluate(formula, sizes) != size:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_firstlineno}"
                raise ShapeCommentError(f"{where}: {letter} is {size}, not {ast.unparse(formula)} with {sizes}")


@functools.cache
def documented_shapes(code: CodeType) -> list[tuple[str, Shape]]:
    """Parameters whose shape the docstring gives: `hidden (B, T, C) to (B, T, C)`."""
    docstring = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found = [(name, read_shape(text)) for name in parameters
             for text in re.findall(rf"\b{name} \(([^()]*)\)", docstring)]
    return [(name, shape) for name, shape in found if shape is not None]


class ShapeChecker:
    """Follows the functions of the given files and remembers which claims a run has met."""

    def __init__(self, files: Iterable[Path], root: Path):
        self.sources = {str(path): read_source(path, root) for path in files}
        self.met: set[Claim] = set()
        self.sizes: dict[str, int] = {}

    @contextlib.contextmanager
    def watching(self, sizes: dict[str, int]) -> Iterator[None]:
        """Check everything that runs inside the block. `sizes` are the configuration's, by published name."""
        self.sizes, previous = sizes, sys.gettrace()  # a debugger or a coverage tool, perhaps
        sys.settrace(self.enter)
        try:
            yield
        finally:
            sys.settrace(previous)

    def unmet(self) -> list[str]:
        """Where the claims stand that no run has met."""
        claims = [claim for source in self.sources.values() for claim in source.claims]
        for source in self.sources.values():
            claims += [claim for fields in source.fields.values() for claim in fields.values()]
        return [claim.where for claim in claims if claim not in self.met]

    def enter(self, frame: FrameType, event: str, argument: Any):
        """The trace hook, called as each function starts: decide whether to follow it."""
        code = frame.f_code
        if code.co_name == "__init__" and code.co_filename == "<string>":
            self.check_fields(frame)
        source = self.sources.get(code.co_filename)
        if source is None or code.co_name in INNER_SCOPES:
            return None
        call = Call(source, self.sizes)
        where = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
        for name, shape in documented_shapes(code):
            if hasattr(frame.f_locals[name], "shape") and shape.names <= call.letters.keys() | call.configured.keys():
                call.check(where, name, shape, frame.f_locals[name], frame)

        def follow(frame: FrameType, event: str, argument: Any):
            self.step(frame, event, argument, source, call)
            return follow

        return follow

    def check_fields(self, frame: FrameType) -> None:
        """A dataclass is being made: check the fields whose shape its class body gives."""
        made = type(frame.f_locals["self"])
        source = self.sources.get(getattr(sys.modules[made.__module__], "__file__", None))
        if source is None:
            return
        call = Call(source, self.sizes)
        for name, claim in source.fields.get(made.__name__, {}).items():
            if frame.f_locals[name] is not None:
                call.check(claim.where, name, claim.shapes[0], frame.f_locals[name], frame)
                self.met.add(claim)

    def step(self, frame: FrameType, event: str, argument: Any, source: Source, call: Call) -> None:
        """A line begins, an exception passes, or the function returns: check the statement that has just ended."""
        claim = call.running
        if event == "exception" and argument[0] is not StopIteration:
            call.running = None  # its statement did not end
        elif event == "line" and not (claim and claim.first_line <= frame.f_lineno <= claim.last_line):
            if claim and claim.targets:
                self.check_assignment(claim, frame, call)
            call.start_round(frame.f_lineno)
            # A return inside `with` visits the line of the `with` once more before the function returns.
            if claim is None or claim.targets:
                call.running = source.claim_at.get(frame.f_lineno)
        elif event == "return":
            if claim and claim.targets:
                self.check_assignment(claim, frame, call)
            elif claim:
                self.check_values(claim, ["the result"], argument, frame, call)
            call.check_formulas(frame)

    def check_assignment(self, claim: Claim, frame: FrameType, call: Call) -> None:
        values = [eval(code, frame.f_globals, frame.f_locals) for _, code in claim.targets]
        labels = [text for text, _ in claim.targets]
        self.check_values(claim, labels, values if len(values) > 1 else values[0], frame, call)

    def check_values(self, claim: Claim, labels: list[str], values: Any, frame: FrameType, call: Call) -> None:
        """One shape is held to one tensor; several shapes to the items of a tuple, or to several targets."""
        values = [values] if len(claim.shapes) == 1 else list(values)
        if len(values) != len(claim.shapes):
            raise ShapeCommentError(f"{claim.where}: {len(claim.shapes)} shapes for {len(values)} tensors")
        if len(labels) < len(values):
            labels = [f"{labels[0]}[{i}]" for i in range(len(values))]
        for label, shape, value in zip(labels, claim.shapes, values, strict=True):
            call.check(claim.where, label, shape, value, frame, claim.loop_lines)
        self.met.add(claim)
