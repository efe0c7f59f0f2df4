"""Print the TypeScript-style declaration of a JSON list of tools, as it stands in the prompt."""

import argparse
import sys

from reference.command import CHECK_FAILED, DONE, OneLineParser, read_json, run
from reference.errors import TemplateError, UsageError
from reference.tool_declaration import declare_tools

EXAMPLES = """examples:
  echo '[{"type": "function", "function": {"name": "ping"}}]' | python -m tools.declare_tools /dev/stdin
  echo '[{"type": "function", "function": {"name": "ping"}}]' | python -m tools.declare_tools /dev/stdin --as-given
"""


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.declare_tools",
        description=f"{__doc__} Exit 1 where a schema has no such form (the prompt then carries JSON).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.json", help="a JSON list of OpenAI tool declarations")
    parser.add_argument("--as-given", action="store_true", help="keep the order of keys instead of sorting them first")
    options = parser.parse_args(argv)

    tools = read_json(options.file, "the list of tools")
    if not isinstance(tools, list):
        raise UsageError(f"{options.file}: found a JSON {type(tools).__name__}, expected a list of tools: [...].")
    try:
        declaration = declare_tools(tools, sort=not options.as_given)
    except TemplateError as error:
        print(f"error: {error}", file=sys.stderr)
        return CHECK_FAILED
    sys.stdout.buffer.write(declaration.encode("utf-8", errors="replace"))  # JSON can spell half a surrogate pair
    sys.stdout.buffer.flush()
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
