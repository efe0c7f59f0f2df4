"""What about a question may make it hard: an evaluation counts the right answers apart by these features.

A feature is a name and the value that one question has, both words for a reader: {"names": "a colour", "shapes": "3"}.
"""

import re
from collections.abc import Sequence

from .worlds.demonstration import Episode
from .worlds.documents import Document
from .worlds.needles import LongText
from .worlds.pictures import COLOURS, KINDS, SIZES, Scene, words_of
from .worlds.sample import CONVERSATION, Sample
from .worlds.signs import Sign
from .worlds.task import Medium
from .worlds.videos import Clip

Features = dict[str, str]
# Kinds of thinking.
RIGHT, OTHER = "as it should be", "other"
CONCLUSION, SIZE = (f"right things, wrong {what}" for what in ("conclusion", "size"))
SEEN = "right things, right size"


def question_features(skill: str, sample: Sample) -> Features:
    """Of a question that one reply answers."""
    if skill == CONVERSATION:
        return {"last question": sample.skill, "questions": str(sum(m["role"] == "user" for m in sample.messages))}
    task, world = sample.task, skill.partition(".")[0]
    features = medium_features(task.medium) if task.medium else {}
    if world == "pictures" and skill != "pictures.describe":
        features["names"] = named(task.question)
        if skill in ("pictures.colour", "pictures.shape", "pictures.at", "pictures.place_of"):
            features["is there"] = "no" if task.truth is None else "yes"
    elif world == "numbers":
        numbers = re.findall(r"\d+", task.question)
        features["digits"] = str(max(map(len, numbers)))
        if skill == "numbers.multiply":
            stated = any(len(number) == 1 or number.endswith("0") for number in numbers)
            features["a line of other products"] = "yes" if stated else "no"
        elif skill == "numbers.subtract":
            is_difference = re.search(r"\b(?:difference|than|far)\b", task.question.lower())
            features["asks for"] = "a difference" if is_difference else "one minus the other"
        elif skill == "numbers.decimals":
            features["asks for"] = "the smaller" if task.content.endswith("smaller.") else "the bigger"
    elif skill == "documents.page":
        features["asks for"] = "all pages" if isinstance(task.truth[0], str) else "one page"
    return features


def medium_features(medium: Medium) -> Features:
    """Of a picture, a sign, a clip, a document or a long text."""
    match medium:
        case Scene(shapes=shapes):
            smallest = min(shapes, key=lambda shape: SIZES[shape.size]).size
            return {"shapes": str(len(shapes)), "smallest shape": smallest} | size_features([medium])
        case Sign():
            return sign_features([medium])
        case Clip(scenes=scenes):
            return {"frames": band(len(scenes), (2, 5, 9), 16)} | size_features(scenes)
        case Document(pages=pages):
            return {"pages": str(len(pages))} | sign_features(pages)
        case LongText(text=text, codes=codes):
            return {"thousand characters": band(len(text) // 1000, (0, 1, 2, 4, 8, 16), 40), "codes": str(len(codes))}
    raise TypeError(type(medium).__name__)


def sign_features(signs: Sequence[Sign]) -> Features:
    """Of one sign or of all pages: what is hardest to read on them."""
    lowest, longest = min(sign.cap_height for sign in signs), max(len(sign.text) for sign in signs)
    text = "".join(sign.text for sign in signs)
    kind = "digits" if text.isdigit() else "letters" if text.isalpha() else "both"
    height = band(lowest, (16, 24, 40), 64) if lowest <= 64 else "more than 64"
    return {"characters": str(longest), "of": kind, "cap height, px": height} | size_features(signs)


def size_features(pictures: Sequence[Scene | Sign]) -> Features:
    long_side = max(pictures[0].width, pictures[0].height)
    return {"longer side, px": band(long_side, (56, 140, 224, 336), 448) if long_side <= 448 else "more than 448"}


def band(value: int, starts: Sequence[int], end: int) -> str:
    """The range of whole numbers that this one lies in; `starts` are the first of each, `end` is the last of all."""
    start = max(start for start in starts if start <= value)
    following = [other for other in starts if other > start]
    return f"{start} to {following[0] - 1 if following else end}"


def named(question: str) -> str:
    """By what a question about a picture names a shape."""
    colour = bool(set(words_of(question)) & COLOURS.keys())
    kinds = [kind in question.lower() for kind in KINDS]
    kind = any(kinds) and not all(kinds)  # all of them are a choice that is offered
    return {(True, True): "a colour and a kind", (True, False): "a colour", (False, True): "a kind"}.get(
        (colour, kind), "neither")  # fmt: skip


def episode_features(episode: Episode) -> Features:
    """Of a task that an agent or a swarm does in several steps."""
    calls = [call for turn in episode.demonstration for call in turn.tool_calls]
    features = {"tools": str(len(episode.tools)), "calls": str(len(calls))}
    if episode.skill == "tools.choose":
        earlier = sum(message["role"] == "tool" for message in episode.messages)
        does = "sets" if episode.demonstration[0].reasoning_content.startswith("I set") else "reads"
        features = {"tools": features["tools"], "earlier questions": str(earlier), "the tool": does}
    elif episode.skill == "tools.picture":
        [value] = calls[0][1].values()
        is_sign, is_count = episode.key.startswith("text:"), isinstance(value, int)
        what = "a sign" if is_sign else "a number" if is_count else "a colour" if value in COLOURS else "a shape"
        features = {"tools": features["tools"], "seen": what}
    elif episode.subagents:
        features = {"parts": str(len(episode.subagents)), "goal": episode.key.split(":")[1]}
    elif episode.skill == "swarm.single":
        features["goal"] = episode.key.split(":")[1]
    return features


def thinking_kind(skill: str, expected: str, thought: str) -> str:
    """How a thought compares with the one that the world writes.

    About a picture every line is a shape and what follows so far from it: `left: large red circle, 1`. For a drawing,
    numbers stand there, and in the line of the background, which need not be met exactly.
    """
    if thought == expected:
        return RIGHT
    if skill.startswith("pictures.") and things(thought) == things(expected):
        return CONCLUSION
    if skill in ("svg.write", "svg.place") and things(thought)[2:] == things(expected)[2:]:
        return SEEN if thought.split("\n")[0] == expected.split("\n")[0] else SIZE
    return OTHER


def things(thought: str) -> list[str]:
    return [line.partition(", ")[0] for line in thought.split("\n")]
