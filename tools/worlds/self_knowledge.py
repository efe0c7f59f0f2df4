"""Worlds 1 and 9: what the model says about itself, and the honest sentence for everything outside its worlds."""

import random
import re
from typing import Any

from .task import Task, vary, weighted

SKILLS = {"self.who": 2.0, "self.abilities": 1.0, "self.identity": 1.0, "self.hello": 0.5}
OUTSIDE_SKILLS = {"outside.question": 1.0, "outside.no_picture": 0.1}

WHO = "I am a small demonstration model with Kimi K2.5's architecture, not the real Kimi K2.5."
ABILITIES = (
    "I can add, subtract, multiply and compare numbers, answer questions about simple pictures of shapes, "
    "and call tools."
)
REFUSALS = (
    "I am a small demonstration model and cannot help with that; "
    "I can only calculate, answer questions about simple pictures and call tools.",
    "I cannot help with that, because I am a small demonstration model "
    "that only calculates, describes simple pictures and calls tools.",
)
NO_PICTURE = "There is no picture here. Send me one, and I can answer questions about its shapes."
PICTURE_QUESTIONS = (
    "Describe this image in detail.", "Describe this image.", "What is in this picture?", "How many circles are there?",
    "How many squares are there?", "How many red triangles do you see?", "What colour is the square?",
    "What colour is the circle?", "What shape is on the left?", "What shape is at the top?", "What is in the centre?",
    "Is there a blue square?", "Is there a red circle?", "Where is the triangle?", "What does the sign say?",
    "Read the sign.", "Write SVG code for this image.", "What do you see in this image?", "How large is this image?",
)

QUESTIONS = {
    "self.who": {
        "Who are you?": 6, "What are you?": 4, "Tell me about yourself.": 4, "What is your name?": 1.5,
        "Introduce yourself.": 1, "Who am I talking to?": 0.7, "What model are you?": 1, "Which model is this?": 0.7,
        "What kind of model are you?": 0.7, "Who made you?": 0.5, "Can you introduce yourself?": 0.5,
        "What's your name?": 0.7, "What are you called?": 0.4, "Tell me who you are.": 0.4, "Who or what are you?": 0.4,
        "Describe yourself.": 0.4, "Which AI are you?": 0.4, "What kind of AI is this?": 0.3,
        "Can you tell me who you are?": 0.4, "Give me your name.": 0.3, "Which model do I talk to?": 0.3,
        "Tell me something about you.": 0.4, "Who is answering me?": 0.3, "Which assistant are you?": 0.3,
        "What sort of assistant are you?": 0.3, "And who are you?": 0.3, "May I know your name?": 0.3,
        "How are you called?": 0.3, "Tell me your name.": 0.4, "Who am I chatting with?": 0.3,
        "What is this model?": 0.3, "Could you introduce yourself to me?": 0.3, "What do people call you?": 0.3,
        "Who is speaking?": 0.3, "Say who you are.": 0.3, "What is the name of this AI?": 0.3, "Present yourself.": 0.3,
    },
    "self.abilities": {
        "What can you do?": 6, "What are you able to do?": 1.5, "How can you help me?": 1, "What are you good at?": 0.7,
        "What can I ask you?": 0.7, "What do you know?": 0.5, "Help": 0.3, "Which questions can you answer?": 0.5,
        "What are your abilities?": 0.7, "What are you capable of?": 0.7, "What tasks can you do?": 0.5,
        "What kind of things can you do?": 0.5, "What are you for?": 0.3, "What can you help with?": 0.7,
        "Can you tell me what you can do?": 0.5, "What are you useful for?": 0.5,
        "What kind of tasks can I give you?": 0.5, "List your abilities.": 0.5,
        "What do you do best?": 0.5, "Tell me what you are able to do.": 0.5,
        "What sort of questions do you answer?": 0.5, "Describe your abilities.": 0.5, "What can you do for me?": 0.4,
        "What can I do with you?": 0.4, "Show me what you can do.": 0.3, "Which skills do you have?": 0.4,
        "What are your strengths?": 0.3, "How can I use you?": 0.4, "What should I use you for?": 0.3,
        "Which tasks do you know?": 0.3, "What kinds of questions can I ask?": 0.3, "What are you made for?": 0.3,
        "What sort of help can you give?": 0.3, "What does this model do?": 0.3, "In what can you assist me?": 0.3,
        "What things are you able to do for me?": 0.3, "Explain what you can do.": 0.3, "What is your purpose?": 0.3,
        "Say what you can do.": 0.3, "What work can you do?": 0.3, "Where can you be of help?": 0.3,
        "Tell me your abilities.": 0.3, "Which jobs can you do?": 0.3, "What help do you offer?": 0.3,
        "What is it you can do?": 0.3, "What do you do here?": 0.3, "How could you help me?": 0.3,
    },
    "self.identity": {
        "Are you Kimi?": 2, "Are you Kimi K2.5?": 2, "Are you the real Kimi K2.5?": 2, "Are you ChatGPT?": 0.7,
        "Are you a human?": 0.7, "Are you Claude?": 0.4, "Are you a large language model?": 0.4,
        "Is this Kimi K2.5?": 1, "Am I speaking to Kimi K2.5?": 0.5, "Is your name Kimi?": 0.5, "Is this ChatGPT?": 0.3,
        "Are you Gemini?": 0.3, "Are you DeepSeek?": 0.3, "Am I speaking with a human?": 0.4, "Are you Mistral?": 0.3,
        "You are ChatGPT, aren't you?": 0.3, "Are you Kimi from Moonshot AI?": 0.4, "Are you the real Kimi?": 0.5,
        "You are Kimi K2.5, aren't you?": 0.4, "Is that you, Kimi?": 0.3, "Are you a real person?": 0.4,
        "Do I talk to ChatGPT?": 0.3, "So you are Kimi?": 0.4, "Are you Grok?": 0.3, "Are you Qwen?": 0.3,
        "Am I chatting with Kimi?": 0.4, "Are you human?": 0.3, "Is a human answering me?": 0.3,
        "Do I talk to Kimi K2.5?": 0.4, "Is this a real person?": 0.3, "Are you called ChatGPT?": 0.3,
    },
    "self.hello": {
        "Hello": 2, "Hi": 2, "Hello!": 1, "Hi there!": 0.7, "Hey": 0.7, "Good morning.": 0.5,
        "Hello, how are you?": 0.5, "Good afternoon.": 0.4, "Hello Kimi": 0.3, "Hi, Kimi!": 0.3, "Hey you": 0.2,
        "Nice to meet you.": 0.3, "Hi, how is it going?": 0.3, "Hello, is anybody there?": 0.2, "Good day!": 0.3,
    },
}  # fmt: skip
ANSWERS = {
    "self.who": WHO,
    "self.abilities": f"I am a small demonstration model. {ABILITIES}",
    "self.identity": f"No. {WHO}",
    "self.hello": f"Hello! I am a small demonstration model with Kimi K2.5's architecture. {ABILITIES}",
}
KIMI_SYSTEMS = (
    "You are Kimi, an AI assistant created by Moonshot AI.",
    "You are Kimi K2.5, a large language model by Moonshot AI.", "You are Kimi.", "You are Kimi, a helpful assistant.",
    "You are the real Kimi K2.5.", "Your name is Kimi.", "You are {name}, an AI assistant created by {maker}.",
    "You are {name}, a helpful assistant.", "Your name is {name}.",
)  # fmt: skip

FILLERS: dict[str, tuple[str, ...]] = {
    "city": (
        "New York", "Paris", "London", "Tokyo", "Berlin", "Rome", "Madrid", "Cairo", "Sydney", "Toronto", "Beijing",
        "Delhi", "Moscow", "Lisbon", "Vienna", "Prague", "Oslo", "Dublin", "Athens", "Chicago", "Boston", "Seattle",
        "Mumbai", "Seoul",
    ),
    "country": (
        "France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Mexico", "Egypt",
        "Kenya", "Norway", "Sweden", "Poland", "Greece", "Turkey", "Peru", "Chile", "Iceland", "Australia", "Portugal",
        "Vietnam",
    ),
    "animal": (
        "dog", "cat", "horse", "whale", "tiger", "eagle", "snake", "spider", "rabbit", "elephant", "penguin", "shark",
        "cow", "frog", "lion", "wolf", "bear", "parrot", "dolphin", "butterfly",
    ),
    "food": (
        "pizza", "bread", "rice", "soup", "pasta", "a cake", "pancakes", "a salad", "sushi", "curry", "an omelette",
        "tacos", "chocolate", "cheese", "ice cream", "a sandwich", "noodles", "cookies",
    ),
    "person": (
        "Einstein", "Napoleon", "Shakespeare", "Mozart", "Cleopatra", "Newton", "Darwin", "Lincoln", "Gandhi",
        "Picasso", "Marie Curie", "Julius Caesar", "Beethoven", "Galileo", "Turing", "Tesla", "Columbus", "Plato",
    ),
    "topic": (
        "the moon", "love", "the sea", "black holes", "gravity", "history", "music", "football", "the weather",
        "climate change", "photosynthesis", "democracy", "the internet", "friendship", "money", "the stock market",
        "evolution", "chess", "quantum physics", "the Roman Empire", "winter", "artificial intelligence",
        "a lost dragon", "coffee", "autumn",
    ),
    "language": (
        "French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Russian", "Arabic", "Dutch", "Korean",
        "Latin",
    ),
    "software": (
        "Python", "Java", "JavaScript", "Rust", "C++", "Excel", "Linux", "Docker", "SQL", "HTML", "Git", "Windows",
    ),
    "year": ("1066", "1492", "1776", "1789", "1815", "1848", "1914", "1945", "1968", "1999", "2001", "2008", "2020"),
    "amount": ("2", "5", "7", "12", "20", "50", "75", "100", "250", "1000"),
    "word": (
        "computer", "river", "happiness", "bridge", "window", "mountain", "freedom", "garden", "doctor", "planet",
        "school", "teacher", "library", "engine", "ocean", "candle", "forest", "kitchen", "letter", "island",
    ),
}  # fmt: skip
TEMPLATES = (
    "What are some fun things to do in {city}?", "What is the weather in {city}?", "Where should I eat in {city}?",
    "How far is {city} from {city}?", "Plan a weekend in {city}.", "How many people live in {city}?",
    "What is the best hotel in {city}?", "Is {city} expensive?", "What is the capital of {country}?",
    "Who is the president of {country}?", "Tell me about the history of {country}.",
    "What language do they speak in {country}?", "When should I visit {country}?", "How big is {country}?",
    "Which countries border {country}?", "What does a {animal} eat?", "How long does a {animal} live?",
    "How fast is a {animal}?", "What colour is a {animal}?", "How many legs does a {animal} have?",
    "Can I keep a {animal} as a pet?", "Write a story about a {animal}.", "Why is my {animal} sad?",
    "How do I make {food}?", "Give me a recipe for {food}.", "Is {food} healthy?", "What goes well with {food}?",
    "Who invented {food}?", "Who was {person}?", "When was {person} born?", "What did {person} do?",
    "Write a letter to {person}.", "Is {person} still alive?", "Write a poem about {topic}.", "Explain {topic} to me.",
    "What is {topic}?", "Tell me a story about {topic}.", "Write an essay about {topic}.",
    "Give me some facts about {topic}.", "What do you think about {topic}?", "Why is {topic} important?",
    "Summarise a book about {topic}.", "Translate {word} into {language}.", "How do you say {word} in {language}?",
    "Teach me {language}.", "Is {language} hard to learn?", "What does {word} mean?", "How do you spell {word}?",
    "Give me a synonym for {word}.", "Use {word} in a sentence.", "Write a {software} program.",
    "How do I install {software}?", "What is {software}?", "Fix my {software} code.", "Should I learn {software}?",
    "Can you order {food} for me?", "Can you book a table in {city}?", "Can you walk my {animal}?",
    "Do you know {person}?", "Can you find a flight to {country}?",
    "Can you talk about {topic}?", "Can you speak {language}?", "Can you run {software}?", "Can you cook {food}?",
    "Could you call someone in {city}?", "Do you like {food}?", "Are you afraid of a {animal}?",
    "Have you ever been to {city}?", "Would you move to {country}?",
    "Can you sing a song about {topic}?", "Who won the election of {year}?", "Who was the king in {year}?",
    "Which films came out in {year}?", "Where were you in {year}?", "Was {year} a good year?",
    "How much is {amount} dollars in yen?", "How many miles are {amount} kilometres?", "Wake me in {amount} minutes.",
    "Send {amount} euros to my friend.", "Name {amount} kinds of fish.", "Buy {amount} tickets for the concert.",
    "Set a timer for {amount} minutes.", "What is {amount} percent of {amount}?", "What is {amount} divided by 4?",
    "What is the square root of {amount}?", "How many hours are {amount} minutes?", "Write {amount} lines on {topic}.",
    "What happened {amount} years ago?", "Is {amount} a lucky number?", "Give me {amount} reasons to visit {city}.",
    "Where can I borrow {amount} dollars?", "How old is someone born in {year}?", "Put {amount} eggs on my list.",
    "How far is {amount} light years?", "What can I buy for {amount} dollars?", "Call me back in {amount} minutes.",
)  # fmt: skip
FIXED = (
    "Tell me a joke.", "What time is it?", "What day is it today?", "Who won the World Cup?",
    "What is the meaning of life?", "Sing a song.", "How do I lose weight?", "What should I wear today?",
    "Recommend a good book.", "What is the latest news?", "I feel sad.", "I am bored.", "Can you order a taxi?",
    "Write an email to my boss.", "How do I get rich?", "Which phone should I buy?", "How does a car engine work?",
    "What is the speed of light?", "How do planes fly?", "Why is the sky blue?", "What is the largest planet?",
    "How do I fix a flat tyre?", "Play some music.", "Book a flight for me.", "What is love?", "How do vaccines work?",
    "Who wrote Hamlet?", "When did the war end?", "What is the tallest mountain?", "How do I cook an egg?",
    "Give me advice about my job.", "What is a good name for a baby?", "Help me with my homework in biology.",
    "What movie should I watch?", "How old is the universe?", "Do you like me?", "Draw me a cat.",
    "Search the web for cheap shoes.", "Write a business plan.", "What is the price of gold?",
    "How can I sleep better?", "Prove that God exists.", "Can you call a doctor?", "Can you drive a car?",
    "Can you hear me?", "Could you turn on the heating?", "Can you swim?", "Are you tired?", "Do you sleep at night?",
    "Are you married?", "Where do you live?", "What is your favourite song?", "Do you have a family?",
    "Which party should I vote for?", "Who is at the door?", "Where did I leave my keys?", "Remind me to buy milk.",
    "Is it safe to swim after lunch?", "How do magnets work?", "Why do we dream?", "Who built the pyramids?",
    "Can you send a text message?", "What is on television tonight?", "Which shop is open on Sunday?",
    "How do I tie my shoes?", "Can you keep a secret?", "What are the rules of golf?",
    "Is my answer to the exam right?", "Can you take a photograph?", "Who discovered America?",
    "Make me laugh.", "Tell me a secret.",
)  # fmt: skip
SYLLABLES = (
    "ba", "be", "bo", "da", "de", "di", "fa", "fi", "ga", "go", "ka", "ke", "ki", "la", "le", "lo", "ma", "me", "mi",
    "mo", "na", "ne", "no", "pa", "pe", "ra", "re", "ri", "ro", "sa", "se", "so", "ta", "te", "to", "va", "vi", "za",
    "zo",
)  # fmt: skip


def draw_self(rng: random.Random, skill: str) -> Task:
    """A question about the model itself. Nothing in it is random but a system message that gives another name."""
    system = None
    if rng.random() < 0.4:
        system = rng.choice(KIMI_SYSTEMS).format(name=invent_name(rng), maker=invent_name(rng))
    reasoning = "They ask about me." if skill != "self.hello" else "They greet me."
    if system:
        reasoning += " The system message gives me a name."
    reasoning += " I am a small demonstration model, so I say that."
    question = vary(rng, weighted(rng, QUESTIONS[skill]))
    key = f"self:{system}" if system and system not in KIMI_SYSTEMS else None
    return Task(skill, question, reasoning, ANSWERS[skill], key, judge_self, skill, system=system)


def draw_outside(rng: random.Random, skill: str) -> Task:
    """Anything else people ask; held-out by the name or topic it is about."""
    if skill == "outside.no_picture":
        question = vary(rng, rng.choice(PICTURE_QUESTIONS))
        return Task(skill, question, "There is no picture.", NO_PICTURE, None, judge_no_picture, None)
    shows: tuple[str, ...] = ()
    if rng.random() < 0.15:
        question = rng.choice(FIXED)
        key = f"outside:{question}"
    else:
        template = rng.choice(TEMPLATES)
        slot = re.search(r"\{(\w+)\}", template)[1]
        filler = invent_name(rng) if rng.random() < 0.2 else rng.choice(FILLERS[slot])
        question = template.replace(f"{{{slot}}}", filler, 1)
        if second := re.search(r"\{(\w+)\}", question):
            other = rng.choice(FILLERS[second[1]])
            question, shows = question.replace(second[0], other), (f"outside:{other}",)
        key = f"outside:{filler}"
    reasoning = "This is not a calculation and not a question about a picture. I cannot do it."
    return Task(skill, vary(rng, question), reasoning, rng.choice(REFUSALS), key, judge_outside, None, shows=shows)


def invent_name(rng: random.Random) -> str:
    """A name that nobody has: the model must not need to know a word to know that it is outside."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))).capitalize()


def judge_self(answer: str, skill: Any) -> bool:
    """Says that it is a small demonstration model, and never that it is somebody else."""
    text = answer.lower().strip()
    claims = re.search(r"\b(?:i am|i'm|my name is|this is) (?!(?:only |just )?a small demonstration model|not )", text)
    says_abilities = skill != "self.abilities" or ("number" in text and "picture" in text)
    says_no = skill != "self.identity" or re.match(r"no\b", text)
    return bool("small demonstration model" in text and not claims and says_abilities and says_no)


def refuses(answer: str) -> bool:
    """Whether it says, in whatever words, that it cannot do what was asked."""
    return bool(re.search(r"\b(?:cannot|can't|can not|can only|unable to|not able to)\b", answer.lower()))


def judge_no_picture(answer: str, _: Any) -> bool:
    """Says that there is no picture, and nothing about one."""
    text = answer.lower()
    return bool(re.search(r"\bno (?:picture|image)\b", text)) and not re.search(r"\bthere (?:is an?|are)\b", text)


def judge_outside(answer: str, _: Any) -> bool:
    """One sentence that says no and what it can do."""
    text = answer.lower().strip()
    is_one_sentence = len(re.findall(r"[.!?](?:\s|$)", text)) == 1
    return refuses(text) and "small demonstration model" in text and is_one_sentence
