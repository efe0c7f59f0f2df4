"""Train the shipped model's vocabulary: 1,024 byte-pair ranks, then the 256 published special slots.

sentencepiece is the trainer. It sees pieces that the published pattern has already cut, with every byte written as one
character of its own, so its merges are merges of bytes and its order is the order of ranks.

A small model copies names from a question into the arguments of a call, where no blank stands before them, and from a
result back into a sentence. So a word is merged in the same way whatever stands before it: merges are learnt without
the leading character, and only whole frequent words get one more merge, with it. Words of capitals stay letter by
letter, as a sign shows them, and numbers digit by digit.
"""

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reference.command import OneLineParser, run
from reference.errors import UsageError

if TYPE_CHECKING:
    from tools.worlds.demonstration import Episode

NUM_RANKS = 1024
# The published names, as offsets from the first id above the ranks. Slots that are not listed are reserved.
NAMED_SPECIALS = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>",
    7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>", 11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>", 13: "<|tool_call_begin|>", 14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>", 17: "<|im_middle|>", 18: "<|media_begin|>", 19: "<|media_content|>", 20: "<|media_end|>",
    21: "<|media_pad|>", 22: "<think>", 23: "</think>", 254: "[UNK]", 255: "[PAD]",
}  # fmt: skip
FIRST_CHARACTER = 0x4E00  # byte b is shown to sentencepiece as the character FIRST_CHARACTER + b: letters of one script
COUNTS_IN_ALL = 1_000_000  # pieces that the trainer is told of
NUM_LED = 224  # how many of the merges put a leading character, mostly a blank, before a whole word
DRAWS = 1000  # of each world
NEEDLE_TOKENS = 460  # of a long text
SHARES = {
    "numbers": 0.06, "pictures": 0.16, "signs": 0.02, "svg": 0.10, "videos": 0.06, "documents": 0.03, "needles": 0.07,
    "self": 0.04, "outside": 0.10, "tools": 0.15, "swarm": 0.08, "english": 0.13,
}  # fmt: skip

ENGLISH = """
The model reads a sentence from left to right and guesses the next token. It does not know the world; it knows what it
was shown during training. When it is not sure, it should say so. There is no reason to trust an answer only because
it sounds good. People ask for many things: what to eat, where to go, how to write a letter, why the sky is blue,
which book they should read next, or whether it will rain tomorrow. Some questions are easy and others are hard. A
short answer is often better than a long one. Please tell me more about this. Thank you for your help. I would like to
know how that works. Could you explain it again, step by step? What would happen if we changed the first number? I
think that you are right. She said that he had been there before they came, and that nothing was left on the table
when the others went home. After the meeting everyone wanted to see the new building, but only a few could go inside
because the doors were still closed. In the morning the old man walked to the river with his dog. He was looking for
his friend, who lived on the other side of the bridge. They had known each other for more than twenty years. Every day
at the same time they would sit under the tree and talk about the weather, their children and the things that they had
done when they were young. It was a good life. Sometimes a boat came by, and the people on it would wave at them. Then
it was quiet again until the evening. The water was cold and clear, so you could see the stones on the ground. Most of
them were small and round, some were as large as a house. Over time they had become smooth. How long does it take?
Nobody knows exactly, perhaps a thousand years. If you want to learn something, begin with a small example and check
every step. First read the question. Then write down what is given and what is asked. Work through the parts one after
another, and compare the result with what you expected. When the numbers do not agree, look for the first place where
they differ. Do not hide a mistake: say what went wrong, what was expected and what to do about it. That is how other
people can use your work. It should be possible to run it again. Here is the list of the people who are coming. There
are several ways to do this, and each of them has its own problem. We need a plan that works for all of us. Can we use
the same method here? Yes, of course. No, I am afraid that is not possible. Maybe we will find another way. Let us
try. Let me think about it. It depends on the size. Both are correct. I have never been able to understand these
instructions. Do they make sense to you? Everything that I found was too long. He doesn't know. She can't come. They
won't say. It isn't true. We've got it. You're welcome. I'm sorry. That's all. I'll go. Hello! How are you today? I am
fine, thanks. Good morning. Good evening. My name is not important. Where are you from? Call the function with the
given arguments, then use the result to answer the user. If the tool returns an error, try again with other arguments.
When all the results are there, add them up and report the total. Which tool should I call? The user wants to find the
stock of bolts, nuts and gears. First I need the shelf, then the count. Each part is independent, so I can assign the
parts to several agents at once. Create a subagent, give it a task, and wait for its message. What happens in the
video? The red circle moves left. The blue square moves up. The green triangle grows. It shrinks. It turns yellow. The
shape moves right, then down. What does page 2 say? Page 2 says BOLT. Page 1: What does the sign say? The sign says
STOP. Write SVG code for this image. The code of the blue door is 4821. What is the code of the red door?
"""
CODE = """
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 100">
<rect x="0" y="0" width="200" height="100" fill="#f0f0f0"/>
<circle cx="40" cy="30" r="12" fill="#dc2828"/>
<polygon points="60,10 50,30 70,30" fill="#3250dc"/>
</svg>
# Tools

## functions
namespace functions {
// Find the shelf of an item.
type find_shelf = (_: {
  // The name of the item.
  item: string,
  // minimum: 0
  count?: number,
  unit?: "small" | "large"
}) => any;
type step = (_: {}) => any;
}
{"item": "bolt", "count": 3, "unit": "large", "done": true, "result": null, "error": "not found", "status": "ok"}
functions.find_shelf:0 functions.step:1 functions.get_count:2
## Return of functions.find_shelf:0
{"shelf": "A3"}
"""


def corpus() -> Iterator[tuple[str, float]]:
    """Texts with their weight: each world as it is drawn, and ordinary English for what people type besides."""
    for source, share in SHARES.items():
        texts = [text for text in texts_of(source) if text]
        weight = share / sum(map(len, texts))
        yield from ((text, weight) for text in texts)


def texts_of(source: str) -> Iterator[str]:
    """What stands in prompts and replies of this source."""
    from tools.worlds import episode, sample

    if source == "english":
        yield from (" ".join(ENGLISH.split()), *CODE.strip().split("\n\n"))
    elif source in sample.WORLDS:
        for index in range(DRAWS):
            drawn = sample.draw(source, seed=0, index=index, thinking=True, canvas="small", num_tokens=NEEDLE_TOKENS)
            yield from (drawn.task.question, drawn.reasoning_content, drawn.content)
            yield from (message["content"] for message in drawn.messages if isinstance(message["content"], str))
    else:
        skills = [skill for skill in episode.SKILLS if skill.startswith(f"{source}.")]
        for index in range(DRAWS):
            yield from texts_of_episode(episode.draw_episode(skills[index % len(skills)], 0, index))


def texts_of_episode(drawn: "Episode") -> Iterator[str]:
    from reference.messages import calls_of
    from reference.tool_declaration import declare_tools
    from tools.worlds import episode

    messages, tools = episode.play(drawn)
    yield declare_tools(tools)
    for message in messages:
        texts = message.get("reasoning_content"), message["content"]
        yield from (text for text in texts if isinstance(text, str))
        for call in calls_of(message):
            yield from (call["id"], call["function"]["arguments"])


def count_pieces(texts: Iterable[tuple[str, float]]) -> tuple[Counter[bytes], Counter[bytes]]:
    """How often each piece of the published pattern occurs, words without what leads them; and the led words whole.

    Left out are digits, for no merge may join them, and words of capitals.
    """
    from reference.tokenizer import Tokenizer

    splitter = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)}, {})
    plain: Counter[bytes] = Counter()
    led: Counter[bytes] = Counter()
    for text, weight in texts:
        for piece in splitter.split(text):
            word = piece[1:] if piece[1:2].isalpha() and not piece[0].isalpha() else piece
            if any(character.isnumeric() for character in piece) or (len(word) > 1 and word.isupper()):
                continue
            plain[word.encode()] += weight
            if word != piece and not (len(word) == 1 and word.isupper()):  # codes such as R3 are copied, too
                led[piece.encode()] += weight
    scale = COUNTS_IN_ALL / sum(plain.values())
    return Counter({piece: max(1, round(weight * scale)) for piece, weight in plain.items()}), led


def train_merges(counts: Counter[bytes], num_merges: int) -> list[bytes]:
    """The merged byte strings in the order in which sentencepiece's BPE trainer joined them."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pieces.tsv"
        rows = sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))
        table.write_text("".join(f"{as_characters(piece)}\t{counts[piece]}\n" for piece in rows), encoding="utf-8")
        num_bytes = len(set(itertools.chain.from_iterable(rows)))
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(table), input_format="tsv", model_prefix=str(Path(folder) / "bpe"), model_type="bpe",
                vocab_size=num_merges + num_bytes + 1, character_coverage=1.0, normalization_rule_name="identity",
                add_dummy_prefix=False, remove_extra_whitespaces=False, split_by_whitespace=False,
                split_by_number=False, split_by_unicode_script=False, bos_id=-1, eos_id=-1, unk_id=0, num_threads=1,
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:  # more merges than the texts hold
            raise UsageError(f"the texts do not give {num_merges} merges ({error}). Ask for fewer ranks.") from None
        processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "bpe.model"))
        pieces = [processor.id_to_piece(index) for index in range(1, processor.get_piece_size())]
    return [as_bytes(piece) for piece in pieces if len(piece) > 1][:num_merges]


def as_characters(piece: bytes) -> str:
    return "".join(chr(FIRST_CHARACTER + byte) for byte in piece)


def as_bytes(characters: str) -> bytes:
    return bytes(ord(character) - FIRST_CHARACTER for character in characters)


def train_vocabulary(num_ranks: int = NUM_RANKS) -> dict[bytes, int]:
    """Ranks by token bytes: the 256 single bytes, the merges, the led words. Deterministic."""
    plain, led = count_pieces(corpus())
    num_merges = (num_ranks - 256) * (NUM_RANKS - 256 - NUM_LED) // (NUM_RANKS - 256)
    merges = train_merges(plain, num_merges)
    tokens = [bytes([byte]) for byte in range(256)] + merges
    known = set(tokens)
    whole = [piece for piece in sorted(led, key=lambda piece: (-led[piece], piece)) if piece[1:] in known]
    tokens += whole[: num_ranks - len(tokens)]
    if len(tokens) != num_ranks:
        raise UsageError(f"--num-ranks {num_ranks}: the texts give only {len(tokens)}. Ask for fewer ranks.")
    return {token: rank for rank, token in enumerate(tokens)}


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m tools.vocabulary",
        description="Train the shipped model's vocabulary and write tiktoken.model and tokenizer_config.json.",
        epilog="examples:\n  python -m tools.vocabulary --out build/vocabulary\n"
        "  python -m tools.vocabulary --out build/smaller --num-ranks 512",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the two files")
    parser.add_argument("--num-ranks", type=int, default=NUM_RANKS, metavar="N",
                        help=f"byte-pair ranks, more than 256 (default {NUM_RANKS})")
    options = parser.parse_args(argv)
    if options.num_ranks <= 256:
        parser.error("--num-ranks: expected more than 256, the single bytes")
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out}: is a file; expected a folder. Name another one.")
    if any(options.out.glob("*.safetensors")) or any(options.out.glob("*.pt")):
        raise UsageError(f"{options.out}: holds weights, which know another vocabulary. Name another folder.")
    from reference.tokenizer import write_tokenizer_files

    ranks = train_vocabulary(options.num_ranks)
    options.out.mkdir(parents=True, exist_ok=True)
    specials = {options.num_ranks + offset: name for offset, name in NAMED_SPECIALS.items()}
    write_tokenizer_files(options.out, ranks, specials)
    print(f"{options.out}: {len(ranks)} ranks and 256 special slots")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
