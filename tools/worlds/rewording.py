"""The same questions in ordinary words that no training uses: does the model read, or does it know its lists by heart?

The worlds draw a question from their own wordings; here another takes its place. Picture, numbers and answer stay.
"""

import random
import re
from dataclasses import replace
from string import Formatter

from .pictures import COLOURS, KINDS, american
from .task import Task, vary

# {a} and {b} numbers, {x} what is asked for, {p} a place with its article, {c} a colour, {n} a page; {smaller} where
# not the bigger one is asked for.
WORDINGS: dict[str, tuple[str, ...]] = {
    "numbers.add": (
        "Find {a} + {b}.", "What number is {a} plus {b}?", "{a} + {b} is how much?", "Could you add {a} to {b}?",
        "Please work this out: {a} + {b}", "What do {a} and {b} make together?", "Sum up {a} and {b}.",
        "What's the total of {a} and {b}?", "If I add {a} to {b}, what do I get?",
    ),
    "numbers.subtract": (
        "Find {a} - {b}.", "What number is {a} minus {b}?", "{a} - {b} is how much?", "What remains of {a} minus {b}?",
        "Please work this out: {a} - {b}", "Could you subtract {b} from {a} for me?",
        "What is left when I remove {b} from {a}?", "Start with {a} and take {b} off.", "Cut {a} by {b}.",
        "Someone has {a} and gives away {b}. How much remains?",
    ),
    "numbers.multiply": (
        "Find {a} x {b}.", "What number is {a} times {b}?", "{a} x {b} is how much?",
        "What does {a} multiplied by {b} give?", "Please work this out: {a} * {b}",
        "Could you multiply {a} by {b} for me?", "If I multiply {a} by {b}, what do I get?",
    ),
    "numbers.decimals": (
        "Which of {a} and {b} is the bigger number?", "Between {a} and {b}, which is larger?",
        "Tell me which is greater: {a} or {b}.", "Of {a} and {b}, which one is bigger?",
        "Which of these is the higher number, {a} or {b}?", "Which one is worth more, {a} or {b}?",
        "Which of {a} and {b} is the {smaller} number?", "Tell me which is {smaller}: {a} or {b}.",
        "Of {a} and {b}, which one is {smaller}?",
    ),
    "pictures.describe": (
        "What's in this picture?", "Please tell me what you see here.", "Give me a description of this image.",
        "What can be seen in the image?", "Explain what the picture shows.", "Tell me everything that is in the image.",
    ),
    "pictures.count": (
        "How many {x}s are in this picture?", "Can you count the {x}s?", "Tell me how many {x}s there are.",
        "How many {x}s does the image show?", "What number of {x}s can you see here?",
        "How many {x}s are there in the image?",
    ),
    "pictures.colour": (
        "What colour is that {x}?", "Can you tell me the colour of the {x}?", "The {x} is which colour?",
        "What's the colour of the {x}?", "What colour is the {x} in this picture?",
    ),
    "pictures.shape": (
        "What's the shape {p}?", "Tell me what shape is {p}.", "Name the shape {p}.", "What shape do you see {p}?",
        "What shape is the {c} thing?", "Which shape is {c} in this picture?", "Tell me the shape of the {c} one.",
        "What is the {c} shape?", "Is the {c} one a circle, a square or a triangle?", "Can you name the shape {p}?",
        "What sort of shape is {p}?", "What sort of shape is {c}?",
    ),
    "pictures.at": (
        "What is there {p}?", "Tell me what is {p}.", "Which thing is {p}?", "What is located {p}?",
        "Can you tell me what is {p}?",
    ),
    "pictures.exists": (
        "Does the picture contain {x}?", "Is {x} in the picture?", "Can {x} be seen here?", "Is there {x} anywhere?",
        "Tell me if there is {x}.", "Does this image have {x}?", "Does {x} appear in the picture?",
        "Have you found {x}?", "Could you check if there is {x}?", "I am looking for {x}. Is it there?",
    ),
    "pictures.place_of": (
        "Where's the {x}?", "Tell me where the {x} is.", "In which part of the picture is the {x}?",
        "Where do you see the {x}?", "Where is the {x} located?", "In what place is the {x}?",
        "I can't find the {x}. Where is it?", "Which part of the image shows the {x}?",
    ),
    "signs.read": (
        "What's written here?", "What does this say?", "Please read this.", "What is printed on the sign?",
        "Read out the sign.", "Tell me the text on this sign.",
    ),
    "svg.write": (
        "Make an SVG of this picture.", "Please give me this image as SVG.", "Can you write SVG code for it?",
    ),
    "videos.motion": (
        "Which way is the {x} going?", "In what direction does the {x} travel?", "What does the {x} do?",
        "Tell me where the {x} moves.",
    ),
    "videos.size": (
        "Is the {x} growing or shrinking?", "Does the {x} get bigger or smaller?", "What does the {x} do?",
        "How does the {x} change?",
    ),
    "videos.colour": (
        "What colour does the {x} become?", "Which colour does the {x} change to?", "What does the {x} do?",
        "How does the {x} change?", "What is the new colour of the {x}?", "Which colour does the {x} have in the end?",
    ),
    "documents.page": (
        "What's on page {n}?", "Tell me what page {n} says.", "Which text is printed on page {n}?",
        "Please read page {n} to me.", "What's in this PDF?", "Tell me what the document says.",
        "Please read this document.", "What is on its pages?",
    ),
    "documents.count": (
        "How many pages are in this PDF?", "Tell me the number of pages.", "How many pages has the document got?",
        "Can you count the pages?",
    ),
    "needles.code": (
        "I need the code of the {x}.", "Give me the code for the {x}.", "Which number opens the {x}?",
        "Can you find the code of the {x}?", "What does the text give as the code of the {x}?",
        "The {x} has which code?",
    ),
    "self.who": (
        "Say something about yourself.", "So who are you?", "What should I call you?", "Who is this?",
        "Do you have a name?", "What AI is this?",
    ),
    "self.abilities": (
        "What can you help me with?", "What are your skills?", "Tell me what you can do.", "What do you do?",
        "Which jobs can I give you?", "What kind of help do you offer?", "What is it that you can do?",
    ),
    "self.identity": (
        "Am I talking to Kimi?", "Are you GPT-4?", "Are you a person?", "You are Kimi, right?",
        "Is this the real Kimi K2.5?", "Are you called Kimi?", "Do I speak with Kimi K2.5 here?", "Are you Llama?",
        "Is there a human behind this?",
    ),
    "self.hello": ("Good evening!", "Hi, how are you?", "Hey there", "Greetings!", "Hello there."),
    "outside.question": (
        "Can you write a haiku about spring?", "What is the boiling point of water?", "Who painted the Mona Lisa?",
        "Should I take the bus or the train?", "How do I tie a tie?", "What happened in 1989?", "Is it going to rain?",
        "Recommend a film for tonight.", "Explain how a bicycle stays upright.", "Who is the richest man alive?",
        "Name three rivers in Africa.", "Convert 10 dollars to euros.", "What does HTTP stand for?",
        "Why do cats purr?", "Which team won last night?", "Can you proofread my essay?", "How far away is Mars?",
        "Draft a cover letter for me.", "How do I reset my password?", "Who discovered penicillin?",
        "Where can I buy stamps?", "What rhymes with orange?", "Is Pluto a planet?", "How tall is the Eiffel Tower?",
        "Tell me something interesting.", "Give me a riddle.", "What year is it?", "How do I remove a coffee stain?",
    ),
}  # fmt: skip
SHAPE = rf"\b(?P<x>an? (?:\w+ )?(?:{'|'.join(KINDS)}|shape))\b"
PLACE = r"(?P<p>\b(?:at|on|in) the (?:(?:top|bottom) (?:left|right)|top|bottom|left|right|cent(?:re|er)|middle)\b)"
# Where the question in small letters, or the answer behind it, has what a wording needs; by skill or world.
PATTERNS = {
    "numbers": r"(?P<a>\d+) [-+x] (?P<b>\d+) = -?\d+$",
    "numbers.decimals": r"(?P<a>[\d.]*\d)\D+?(?P<b>[\d.]*\d)[^\n]*\n[\d.]+ is (?:bigger|(?P<smaller>smaller))\.$",
    "pictures.count": r"There (?:is|are) \d+ (?P<x>.+?)s?\.$",
    "pictures.colour": r"(?:The|There is no) (?P<x>\w+)(?: is \w+)?\.$",
    "pictures.shape": rf"{PLACE}|\b(?P<c>{'|'.join(COLOURS)})\b", "pictures.at": PLACE, "pictures.exists": SHAPE,
    "pictures.place_of": r"(?:The|There is no) (?P<x>[\w ]+?)(?: is \w+ the [\w ]+)?\.$",
    "videos": rf"(?P<x>{'|'.join(KINDS)})",
    "needles.code": r"The code of the (?P<x>[\w ]+) is \d+\.$",
    "documents.page": r"\nPage (?P<n>\d) says \w+\.$",
}  # fmt: skip


def reword(rng: random.Random, task: Task) -> Task:
    """This task in one of the other wordings of its skill, which has some (see WORDINGS)."""
    given = needed_words(task)
    fitting = [form for form in WORDINGS[task.skill] if names_in(form) == given.keys()]
    return replace(task, question=vary(rng, american(rng, rng.choice(fitting).format(**given))))


def needed_words(task: Task) -> dict[str, str]:
    """What the wordings of this task have to name."""
    pattern = PATTERNS.get(task.skill) or PATTERNS.get(task.skill.partition(".")[0])
    found = pattern and re.search(pattern, f"{task.question.strip().lower()}\n{task.content}")
    return {name: word for name, word in found.groupdict().items() if word} if found else {}


def names_in(form: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(form) if name}
