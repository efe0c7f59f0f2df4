"""The options that `tools.evaluate` and `tools.transcript` share: what is asked, and how it is answered."""

import argparse
from pathlib import Path

from reference.errors import UsageError
from reference.generate import SHIPPED_MODEL


def add_question_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="DIR",
                        help="checkpoint directory (default: the small model shipped here)")  # fmt: skip
    parser.add_argument("--backend", choices=("reference", "optimized"), default="reference",
                        help="which code runs the model (default: reference)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seed, other questions (default: 0)")
    parser.add_argument("--instant", action="store_true", help="answer without thinking first")
    parser.add_argument("--shapes", type=int, choices=(1, 2, 3, 4), metavar="N",
                        help="pictures with exactly N shapes (default: one to four in turn)")  # fmt: skip
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="long texts of about N tokens (default: 1,000 to 16,000)")  # fmt: skip
    parser.add_argument("--calls", type=int, metavar="N", help="chains of N calls (default: of 2 to 6, counted: to 12)")
    parser.add_argument("--parts", type=int, metavar="N", help="tasks of N independent parts (default: of 2 to 12)")
    parser.add_argument("--reworded", action="store_true",
                        help="ask in ordinary words that no training uses, where there are such")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="when sampling (default: 0.95)")
    parser.add_argument("--max-new-tokens", type=int, default=800, metavar="N",
                        help="tokens of one reply at most; a longer one is wrong (default: 800)")  # fmt: skip


def check_question_options(options: argparse.Namespace) -> None:
    """Raises UsageError for a value that its option cannot have."""
    from reference.request import check_sampling, check_seed  # imports torch, which --help does without

    check_positive(options, "tokens", "calls", "parts", "max_new_tokens")
    check_sampling(options.temperature, options.top_p)
    check_seed(options.seed)


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises UsageError for an option of these names that is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 1.")


def seed_of(index: int, options: argparse.Namespace) -> int:
    """What the replies to question `index` are sampled from: its own, so that no result depends on the batch size."""
    return (options.seed + index) % 2**63
