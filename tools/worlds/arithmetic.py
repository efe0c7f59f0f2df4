"""World 2, numbers: sums, differences, products and decimals, thought through digit by digit from the right.

A small transformer cannot add four digits in one step, but it can add two digits and a carry. So the
thinking writes one line per digit. Every line is true and holds all that the next token depends on:
the place, the two digits, the carry, and the number assembled so far. Digits are never merged with a blank,
so the thinking leaves blanks out where it can: it would be a third longer with them.
"""

import random
import re
from decimal import Decimal

from .task import Task, vary, weighted

PLACES = ("ones", "tens", "hundreds", "thousands")
SKILLS = {"numbers.add": 3.0, "numbers.subtract": 3.0, "numbers.multiply": 2.5, "numbers.decimals": 1.5}

# Asked for by the names of the operation, in every spacing that people type.
SIGNS = {
    "+": {" + ": 6, "+": 2, " plus ": 2},
    "-": {" - ": 6, "-": 2, " minus ": 2, " − ": 1, " – ": 0.5},
    "x": {" x ": 3, " × ": 3, " * ": 2, "*": 1, "x": 0.7, "×": 1, " times ": 2, " multiplied by ": 0.5},
}
QUESTIONS = {
    "What is {e}?": 5, "Compute {e}.": 4, "{e} =": 4, "Calculate {e}.": 1.5, "How much is {e}?": 1.5, "{e}": 1,
    "What's {e}?": 1, "{e}=": 1, "{e} = ?": 1, "Work out {e}.": 1, "Solve {e}.": 0.5, "Tell me what {e} is.": 0.5,
    "Can you compute {e}?": 0.7, "What is the result of {e}?": 0.7, "What does {e} equal?": 0.5, "Evaluate {e}.": 0.5,
    "What is {e}? Think carefully.": 0.5, "I need to know {e}.": 0.3, "Could you tell me what {e} is?": 0.3,
    "{e} is what?": 0.3, "{e} equals?": 0.3, "Give me {e}.": 0.3, "Determine {e}.": 0.3, "Can you work out {e}?": 0.3,
    "Tell me the result of {e}.": 0.3, "What number do you get for {e}?": 0.3, "What does {e} make?": 0.3,
    "What comes out of {e}?": 0.3, "What do I get for {e}?": 0.3, "Do you know {e}?": 0.3, "Result of {e}?": 0.3,
}  # fmt: skip
WORDED = {
    "+": (
        "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {b} to {a}.", "Can you add {a} and {b}?",
        "Add {a} and {b} for me.",
        "What do you get if you add {a} and {b}?", "What do you get when you add {b} to {a}?",
        "What do {a} and {b} add up to?", "How much do {a} and {b} make?", "What is {a} added to {b}?",
        "{a} and {b} make what?", "How much is {a} and {b} in total?", "Tell me the sum of {a} and {b}.",
        "If you add {a} and {b}, what is the result?", "Add up {a} and {b}.", "What is {a} and {b} together?",
        "Increase {a} by {b}.", "Put {a} and {b} together.", "What is the total if I add {b} to {a}?",
        "When you add {a} and {b}, how much is it?", "Could you give me the sum of {a} and {b}?",
    ),
    "-": (
        "Subtract {b} from {a}.", "Take {b} away from {a}.", "What is {a} take away {b}?", "Take {b} from {a}.",
        "What is left of {a} after taking away {b}?", "Can you subtract {b} from {a}?", "What is {a} less {b}?",
        "What do you get if you subtract {b} from {a}?", "How much is left if you take {b} from {a}?",
        "If you subtract {b} from {a}, what is the result?", "Tell me {a} less {b}.", "Lower {a} by {b}.",
        "Reduce {a} by {b}.", "Remove {b} from {a}.", "What is {b} subtracted from {a}?", "{a} less {b} is what?",
        "From {a} subtract {b}.", "Can you take {b} from {a}?", "What remains when {b} is taken from {a}?",
        "If you take {b} away from {a}, how much is left?", "When I subtract {b} from {a}, what is left?",
        "Take away {b} from {a}.", "How much is {a} without {b}?", "Would you subtract {b} from {a}?",
        "What is the difference of {a} minus {b}?", "If {b} is taken from {a}, what is the result?",
        "Deduct {b} from {a}.", "Take {b} off {a}.", "If I take {b} off {a}, what do I get?", "Decrease {a} by {b}.",
        "If I subtract {b} from {a}, what do I get?", "If you deduct {b} from {a}, what is left?",
        "What do I have left if I take {b} from {a}?", "I have {a} and spend {b}. How much is left?",
        "What is {a} reduced by {b}?", "Can you deduct {b} from {a}?", "What is left if {b} comes off {a}?",
        "{a} take away {b} is how much?", "When {b} is deducted from {a}, what remains?",
    ),
    "x": (
        "Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Multiply {a} and {b}.",
        "Can you multiply {a} and {b}?", "What do you get if you multiply {a} by {b}?",
        "Tell me the product of {a} and {b}.", "If you multiply {a} by {b}, what is the result?",
        "What is {a} multiplied with {b}?", "How much do you get if you multiply {a} by {b}?",
        "What is the result if {a} is multiplied by {b}?", "Would you multiply {a} by {b}?",
    ),
}  # fmt: skip
# A difference between two has no sign. {a} stands before {b}; the larger one is either, the first or the second.
DIFFERENCES = (
    "What is the difference between {a} and {b}?", "What's the difference between {a} and {b}?",
    "Difference between {a} and {b}?", "How far is {a} from {b}?", "Find the difference between {a} and {b}.",
    "Tell me the difference between {a} and {b}.", "How big is the difference between {a} and {b}?",
    "What is the difference of {a} and {b}?", "Give me the difference between {a} and {b}.",
    "How far apart are {a} and {b}?", "By how much do {a} and {b} differ?", "How far is it from {a} to {b}?",
    "What is the distance between {a} and {b}?", "How much do {a} and {b} differ?",
)  # fmt: skip
LARGER_FIRST = (
    "How much more is {a} than {b}?", "How much bigger is {a} than {b}?", "By how much is {a} larger than {b}?",
    "{a} is how much more than {b}?", "How much larger is {a} than {b}?", "How much greater is {a} than {b}?",
    "By how much is {a} more than {b}?", "By how much does {a} exceed {b}?",
)  # fmt: skip
SMALLER_FIRST = (
    "How much less is {a} than {b}?", "How much smaller is {a} than {b}?", "By how much is {a} smaller than {b}?",
    "By how much is {a} less than {b}?", "How much lower is {a} than {b}?",
)  # fmt: skip
COMPARISONS = {
    "Which one is bigger, {a} or {b}?": 5, "which one is bigger, {a} or {b}? think carefully.": 3,
    "Which is bigger, {a} or {b}?": 2, "Which number is bigger, {a} or {b}?": 2, "Which one is larger, {a} or {b}?": 1,
    "Which is greater, {a} or {b}?": 1, "Which is larger: {a} or {b}?": 1, "What is bigger, {a} or {b}?": 1,
    "Is {a} or {b} bigger?": 1, "{a} or {b}, which one is bigger?": 1, "Compare {a} and {b}. Which is bigger?": 1,
    "Which of the two is bigger, {a} or {b}?": 0.5, "{a} or {b}: which is greater?": 0.5,
    "Which number is larger, {a} or {b}?": 0.5, "Which is the bigger number: {a} or {b}?": 0.5,
    "Tell me which one is bigger, {a} or {b}.": 0.5, "What is more, {a} or {b}?": 0.5,
    "Do you know which is larger, {a} or {b}?": 0.5, "Is {a} bigger than {b}, or is {b} bigger?": 0.5,
    "Of the numbers {a} and {b}, which is larger?": 0.5, "Say which is greater, {a} or {b}.": 0.5,
    "Is {a} bigger than {b}?": 0.5, "{a} > {b}?": 0.3, "Is {a} > {b}?": 0.3, "Is {a} less than {b}?": 0.3,
    "Which one has the higher value, {a} or {b}?": 0.5, "Which is higher, {a} or {b}?": 0.5,
    "What's bigger, {a} or {b}?": 0.5, "Which one is greater, {a} or {b}?": 0.5, "Is {a} or {b} larger?": 0.5,
    "Which has the larger value, {a} or {b}?": 0.5, "Which one is more, {a} or {b}?": 0.5,
    "Which is the greater of {a} and {b}?": 0.5, "What is the bigger one, {a} or {b}?": 0.5,
    "Which one is higher: {a} or {b}?": 0.5, "Is {a} larger than {b}?": 0.5, "Is {a} smaller than {b}?": 0.5,
    "Is the bigger one {a} or {b}?": 0.5, "Which value is larger, {a} or {b}?": 0.5,
}  # fmt: skip
BIGGER_WORDS, SMALLER_WORDS = "bigger|larger|greater", "smaller|less|lower"
SMALLER = (
    "Which one is smaller, {a} or {b}?", "Which is smaller, {a} or {b}?", "Which number is smaller, {a} or {b}?",
    "Is {a} or {b} smaller?", "Which is less, {a} or {b}?", "What is smaller, {a} or {b}?",
    "Which is lower, {a} or {b}?", "{a} or {b}, which one is smaller?", "Which one is less, {a} or {b}?",
    "Which of the two is smaller, {a} or {b}?", "Which is the smaller number: {a} or {b}?",
    "Compare {a} and {b}. Which is smaller?", "Which number is lower, {a} or {b}?",
    "Which is the lesser of {a} and {b}?", "Which one has the lower value, {a} or {b}?",
    "What's smaller, {a} or {b}?", "Which one is lower, {a} or {b}?", "Is the smaller one {a} or {b}?",
    "Which value is smaller, {a} or {b}?", "Say which is smaller, {a} or {b}.",
)  # fmt: skip


def draw_numbers(rng: random.Random, skill: str) -> Task:
    """One question of this skill."""
    if skill == "numbers.decimals":
        return draw_decimals(rng)
    operation = {"numbers.add": "+", "numbers.subtract": "-", "numbers.multiply": "x"}[skill]
    a, b = draw_operands(rng, operation)
    if operation == "-" and rng.random() < 0.25:
        wording = rng.choice(DIFFERENCES + LARGER_FIRST + SMALLER_FIRST)
        if wording not in DIFFERENCES:
            a, b = sorted((a, b), reverse=wording in LARGER_FIRST)
        question = vary(rng, wording.format(a=a, b=b))
        steps, result = think_difference(a, b)
        a, b = max(a, b), min(a, b)
    else:
        question = ask(rng, operation, a, b)
        steps, result = {"+": think_add, "-": think_subtract, "x": think_multiply}[operation](a, b)
    answer = f"{a} {operation} {b} = {result}"  # a copy of the last `got`, with its sign
    shows = shown_beside(a, b) if operation == "x" else ()
    return Task(skill, question, steps, answer, pair_key(a, b), judge_number, result, shows=shows)


def shown_beside(a: int, b: int) -> tuple[str, ...]:
    """What the thinking of a product states besides it: `47x8=376`, `47x2=94`, `47x20=940` and, at last, `376+940`.

    But not products of two single digits, which every product is made of.
    """
    factors = {digit * zeros for place, digit in enumerate(digits_of(b, len(str(b)))) for zeros in (1, 10**place)}
    products = [pair_key(a, factor) for factor in sorted(factors) if max(a, factor) > 9]
    return (*products, pair_key(*partial_products(a, b))) if b > 9 else tuple(products)


def pair_key(a: int, b: int) -> str:
    """One key for the pair, whatever the order and the operation: 379 - 482 tells about a held-out 482 + 379."""
    return f"numbers:{min(a, b)},{max(a, b)}"


def ask(rng: random.Random, operation: str, a: int, b: int) -> str:
    """Word the question: mostly an expression, sometimes a sentence."""
    if rng.random() < 0.4:
        return vary(rng, rng.choice(WORDED[operation]).format(a=a, b=b))
    expression = f"{a}{weighted(rng, SIGNS[operation])}{b}"
    question = weighted(rng, QUESTIONS)
    return vary(rng, question.format(e=expression), polite=not question.startswith("{e}"))


def draw_operands(rng: random.Random, operation: str) -> tuple[int, int]:
    """Two numbers whose lengths are balanced and whose carries and borrows are long often enough to be learnt."""
    if operation == "x":
        return draw_of_length(rng, rng.choice((1, 2, 2, 2))), draw_of_length(rng, rng.choice((1, 2, 2, 2)))
    length = rng.choices((1, 2, 3, 4), weights=(1, 2, 3, 4))[0]
    a = draw_of_length(rng, length)
    roll = rng.random()
    if roll < 0.25:  # nearly every place carries or borrows
        b = int("".join(str(carrying_digit(rng, operation, int(digit))) for digit in str(a)))
        if operation == "-" and length < 4 and rng.random() < 0.5:
            a += rng.randint(1, 9) * 10**length
    elif roll < 0.31:  # around a round number, where one digit fills many places
        a = rng.randint(1, 10) * 10 ** rng.randint(1, 3) - (rng.randint(1, 9) if operation == "+" else 0)
        b = rng.randint(1, 12)
    elif roll < 0.38 and operation == "-":  # close together, so that the comparison goes deep
        b = max(0, a + rng.randint(-12, 12))
    else:
        b = draw_of_length(rng, length if rng.random() < 0.5 else rng.randint(1, 4))
    a, b = min(a, 9999), min(b, 9999)
    return (a, b) if rng.random() < (0.65 if operation == "-" and a >= b else 0.5) else (b, a)


def draw_of_length(rng: random.Random, length: int) -> int:
    """A number of exactly this many digits (0 counts as one); zeros inside are a bit more frequent than chance."""
    if length == 1:
        return rng.randint(0, 9)
    digits = [rng.randint(1, 9)] + [0 if rng.random() < 0.08 else rng.randint(0, 9) for _ in range(length - 1)]
    return int("".join(map(str, digits)))


def carrying_digit(rng: random.Random, operation: str, digit: int) -> int:
    """A digit that carries when added to `digit` (with an incoming carry), or borrows when taken from it."""
    lowest = 9 - digit if operation == "+" else digit
    return rng.randint(min(9, lowest), 9)


def digits_of(number: int, width: int) -> list[int]:
    """Digits from the right, padded with zeros: 482, 4 → [2, 8, 4, 0]."""
    return [int(digit) for digit in reversed(f"{number:0{width}d}")]


def think_add(a: int, b: int) -> tuple[str, int]:
    """Column addition of two numbers of up to four digits."""
    width = max(len(str(a)), len(str(b)))
    return f"{a:0{width}d}+{b:0{width}d}\n" + "\n".join(add_columns(a, b, width)), a + b


def add_columns(a: int, b: int, width: int) -> list[str]:
    """`tens: 8+7+1=16, carry 1, got 61`: one line per place; the last one writes its whole sum."""
    lines, carry, got = [], 0, ""
    for place, (x, y) in enumerate(zip(digits_of(a, width), digits_of(b, width), strict=True)):
        total = x + y + carry
        line = f"{PLACES[place]}: {x}+{y}" + ("+1" if carry else "") + f"={total}"
        is_last = place == width - 1
        carry = 0 if is_last else total // 10
        got = (str(total) if is_last else str(total % 10)) + got
        lines.append(line + (", carry 1" if carry else "") + f", got {got}")
    return lines


def think_subtract(a: int, b: int) -> tuple[str, int]:
    """Compare from the left, then take the smaller from the bigger, place by place; the sign comes last."""
    return take_smaller(a, b, "negative"), a - b


def think_difference(a: int, b: int) -> tuple[str, int]:
    """The same for the difference between two, which has no sign."""
    return take_smaller(a, b, "swapped"), abs(a - b)


def take_smaller(a: int, b: int, if_less: str) -> str:
    """The steps of both; `if_less` stands behind the comparison where a is less than b."""
    width = max(len(str(a)), len(str(b)))
    first, second = f"{a:0{width}d}", f"{b:0{width}d}"
    lines = [f"{first}-{second}", compare_digits(first, second)]
    if a < b:
        lines[1] += f", {if_less}"
        lines.append(f"{second}-{first}")
    return "\n".join(lines + subtract_columns(max(a, b), min(a, b), width))


def compare_digits(first: str, second: str) -> str:
    """`4=4, 8>7`: digits from the left until they differ. Both texts are equally long."""
    parts = []
    for x, y in zip(first, second, strict=True):
        if x != ".":
            parts.append(f"{x}{'=' if x == y else '>' if x > y else '<'}{y}")
        if x != y:
            break
    return ", ".join(parts)


def subtract_columns(a: int, b: int, width: int) -> list[str]:
    """`tens: 7-9-1+10=7, borrow 1, got 73`, for a ≥ b."""
    lines, borrow, got = [], 0, ""
    for place, (x, y) in enumerate(zip(digits_of(a, width), digits_of(b, width), strict=True)):
        difference = x - y - borrow
        line = f"{PLACES[place]}: {x}-{y}" + ("-1" if borrow else "")
        borrow = int(difference < 0)
        got = str(difference % 10) + got
        line += ("+10" if borrow else "") + f"={difference % 10}"
        lines.append(line + (", borrow 1" if borrow else "") + f", got {got}")
    return lines


def think_multiply(a: int, b: int) -> tuple[str, int]:
    """One partial product per digit of `b`, then their sum."""
    lines, partials = [f"{a}x{b}"], partial_products(a, b)
    for place, digit in enumerate(digits_of(b, len(str(b)))):
        lines += multiply_by_digit(a, digit)
        if place:
            lines.append(f"{a}x{digit * 10**place}={partials[place]}")
    if len(partials) == 2:
        width = max(len(str(partial)) for partial in partials)
        lines.append(f"{partials[0]:0{width}d}+{partials[1]:0{width}d}")
        lines += add_columns(*partials, width)
    return "\n".join(lines), a * b


def partial_products(a: int, b: int) -> list[int]:
    """`a` times each digit of `b`, with its zeros: 47x28 → [376, 940]."""
    return [a * digit * 10**place for place, digit in enumerate(digits_of(b, len(str(b))))]


def multiply_by_digit(a: int, digit: int) -> list[str]:
    """`ones: 7x8=56, carry 5, got 6`, `tens: 4x8+5=37, got 376`, `47x8=376`."""
    lines, carry, got = [], 0, ""
    width = len(str(a))
    for place, x in enumerate(digits_of(a, width)):
        total = x * digit + carry
        line = f"{PLACES[place]}: {x}x{digit}" + (f"+{carry}" if carry else "") + f"={total}"
        is_last = place == width - 1
        carry = 0 if is_last else total // 10
        got = (str(total) if is_last else str(total % 10)) + got
        lines.append(line + (f", carry {carry}" if carry else "") + f", got {got}")
    return [*lines, f"{a}x{digit}={a * digit}"]


def draw_decimals(rng: random.Random) -> Task:
    """Which of two decimals is bigger; the longer one is the bigger one only by chance."""
    while True:
        a, b = draw_decimal_pair(rng)
        if Decimal(a) != Decimal(b):
            break
    word, wording = ("bigger", weighted(rng, COMPARISONS)) if rng.random() < 0.75 else ("smaller", rng.choice(SMALLER))
    wanted = (max if word == "bigger" else min)(a, b, key=Decimal)
    question = vary(rng, wording.format(a=a, b=b), polite=False)
    key = f"decimals:{min(a, b)},{max(a, b)}"
    reasoning = think_compare(a, b, f"{wanted} is {word}")
    judge = judge_bigger if word == "bigger" else judge_smaller
    return Task("numbers.decimals", question, reasoning, f"{wanted} is {word}.", key, judge, Decimal(wanted))


def draw_decimal_pair(rng: random.Random) -> tuple[str, str]:
    """Mostly the same whole part, mostly different numbers of decimals: where the trap is."""
    whole = rng.randint(0, 9) if rng.random() < 0.6 else rng.randint(10, 99)
    other = whole if rng.random() < 0.65 else rng.randint(0, 99 if rng.random() < 0.5 else 9)
    return draw_decimal(rng, whole), draw_decimal(rng, other)


def draw_decimal(rng: random.Random, whole: int) -> str:
    decimals = rng.choices((0, 1, 2), weights=(1, 4, 4))[0]
    return f"{whole}." + "".join(str(rng.randint(0, 9)) for _ in range(decimals)) if decimals else str(whole)


def think_compare(a: str, b: str, conclusion: str) -> str:
    """Pad both to the same shape, compare digits from the left, conclude."""
    decimals = max(len(text.partition(".")[2]) for text in (a, b))
    width = max(len(text.partition(".")[0]) for text in (a, b)) + (decimals + 1 if decimals else 0)
    first, second = (f"{Decimal(text):0{width}.{decimals}f}" for text in (a, b))
    sign = ">" if Decimal(a) > Decimal(b) else "<"
    return f"{first} and {second}\n{compare_digits(first, second)}\n{first}{sign}{second}\n{conclusion}"


def judge_number(answer: str, truth: int | Decimal) -> bool:
    """The last number of the answer is the true one; an answer may repeat the question before it."""
    found = numbers_in(answer)
    return bool(found) and found[-1] == truth


def judge_bigger(answer: str, truth: Decimal) -> bool:
    return judge_comparison(answer, truth, BIGGER_WORDS, SMALLER_WORDS)


def judge_smaller(answer: str, truth: Decimal) -> bool:
    return judge_comparison(answer, truth, SMALLER_WORDS, BIGGER_WORDS)


def judge_comparison(answer: str, truth: Decimal, words: str, opposite: str) -> bool:
    """What stands before 'is' and one of these words is the true one; with neither words nor opposite, the last is."""
    before, *behind = re.split(rf"\bis (?:the )?(?:{words})\b", answer, maxsplit=1, flags=re.IGNORECASE)
    says_opposite = not behind and re.search(rf"\b(?:{opposite})\b", answer, re.IGNORECASE)
    return not says_opposite and judge_number(before, truth)


def numbers_in(text: str) -> list[Decimal]:
    """All numbers of a text, signs and thousands separators understood."""
    text = re.sub(r"[−–]|\bminus (?=\d)", "-", text)
    found = re.findall(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\d)", text)
    return [Decimal(number.replace(",", "")) for number in found]
