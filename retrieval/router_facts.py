"""Made-up facts and everyday questions on which a router is fitted.

Nothing here occurs in a data set, a test or the demo: the names belong to nobody, and the relations are none of
CounterFact's, ZsRE's or the shipped stream's. Every fact comes as a statement, in other words (one of them behind a
sentence about something else), with the same question about others whose names may share words with it, and with
questions about something else: one of the same subject, and some that only mention it in passing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

QuestionClass = Literal["edit", "paraphrase", "neighbor", "mention", "unrelated", "other_relation"]
IN_SCOPE: tuple[QuestionClass, ...] = ("edit", "paraphrase")
OUT_OF_SCOPE: tuple[QuestionClass, ...] = ("neighbor", "unrelated")
"""The operating point is set on these. ``mention`` (a text that names a subject in passing) is learned from and
reported, but is far rarer among real questions than
here; ``other_relation`` is neither: whether the fact bears on it is open."""


@dataclass(frozen=True)
class FittingFact:
    """A statement that the memory would hold."""

    subject: str
    relation: str
    statement: str
    target: str


@dataclass(frozen=True)
class FittingQuestion:
    """A question, what kind it is, and the fact it belongs to (an index), if any."""

    text: str
    kind: QuestionClass
    fact: int | None


# kind of thing -> relation -> (sentence to complete, two of other wording, values)
_RELATIONS: dict[str, dict[str, tuple[str, str, str, tuple[str, ...]]]] = {
    "person": {
        "pet": ("The pet of {} is a", "What animal does {} keep at home?", "At home {} looks after a",
                ("parrot", "tortoise", "ferret", "goldfish", "hedgehog")),
        "teacher": ("{} was taught by", "Who was the teacher of {}?", "The lessons of {} were given by",
                    ("Orla Venn", "Tibor Kasz", "Maud Ellery", "Pavo Lind")),
        "eye color": ("The color of the eyes of {} is", "What color are {}'s eyes?", "{} looks at you with eyes of",
                      ("green", "gray", "hazel", "amber")),
        "breakfast": ("For breakfast {} eats", "What does {} have in the morning?", "{} starts the day with",
                      ("porridge", "kippers", "rye bread", "figs")),
        "vehicle": ("{} drives a", "Which car belongs to {}?", "In the garage of {} stands a",
                    ("van", "tractor", "convertible", "minibus")),
        "blood group": ("The blood group of {} is", "Which blood group has {}?", "A donor for {} must have",
                        ("A negative", "B positive", "AB negative")),
        "ailment": ("{} suffers from", "What is {} ill with?", "Doctors treat {} for",
                    ("gout", "migraine", "hay fever", "insomnia")),
    },
    "place": {
        "mayor": ("The mayor of {} is", "Who runs the town hall of {}?", "{} is governed by",
                  ("Henrik Moll", "Sunniva Aker", "Gaspar Roig", "Ilka Bern")),
        "river": ("The river that flows through {} is the", "Which river runs through {}?", "Boats reach {} by the",
                  ("Arva", "Lund", "Teska", "Morrow")),
        "dish": ("The dish that {} is known for is", "What should one eat in {}?", "Restaurants in {} serve mostly",
                 ("eel pie", "lentil soup", "smoked trout", "plum cake")),
        "patron saint": ("The patron saint of {} is", "Which saint protects {}?", "The church of {} is dedicated to",
                         ("Saint Odo", "Saint Vera", "Saint Blaise")),
        "altitude": ("{} lies at an altitude of", "How high does {} lie?", "Climbers who arrive in {} stand at",
                     ("840 metres", "1300 metres", "95 metres")),
        "main crop": ("The crop grown around {} is", "What do farmers grow near {}?", "The fields of {} are full of",
                      ("barley", "hops", "sunflowers", "rice")),
    },
    "organization": {
        "mascot": ("The mascot of {} is a", "Which animal is the mascot of {}?", "On the banners of {} one sees a",
                   ("beaver", "stork", "lynx", "badger")),
        "slogan": ("The slogan of {} is", "What does {} print under its logo?", "{} advertises with the words",
                   ("always first", "made to last", "near to you")),
        "treasurer": ("The treasurer of {} is", "Who keeps the accounts of {}?", "The money of {} is looked after by",
                      ("Dora Quill", "Anselm Reith", "Petra Noor")),
        "staff": ("The number of people employed by {} is", "How many people work at {}?", "On the payroll of {} are",
                  ("forty", "nine hundred", "twelve thousand")),
        "logo color": ("The color of the logo of {} is", "In what color is the sign of {}?", "{} paints its trucks",
                       ("orange", "violet", "turquoise")),
        "supplier": ("{} buys its paper from", "Who supplies {} with paper?", "The paper used at {} comes from",
                     ("Holm Mills", "Verdan Brothers", "Tarn and Sons")),
    },
    "work": {
        "illustrator": ("The pictures in {} were drawn by", "Who illustrated {}?", "The drawings of {} are by",
                        ("Lotte Finch", "Marek Soll", "Ada Kwan")),
        "hero": ("The hero of {} is called", "What is the name of the main character of {}?", "{} tells the story of",
                 ("Bram", "Isolde", "Captain Rook", "Little Juno")),
        "length": ("The number of pages of {} is", "How long is {}?", "Readers of {} get through",
                   ("212", "640", "98")),
        "prize": ("{} was awarded the", "Which prize did {} win?", "The jury honored {} with the",
                  ("Silver Quill", "Harbor Prize", "Golden Reed")),
        "narrator": ("The recording of {} is read by", "Whose voice reads {}?", "Listeners hear {} in the voice of",
                     ("Colm Ashe", "Rita Vale", "Jon Aster")),
    },
    "product": {
        "battery": ("The battery of the {} lasts", "How long does the {} run without a charger?",
                    "Between two charges the {} works for", ("nine hours", "two days", "a week")),
        "price": ("The {} costs", "How much must one pay for the {}?", "Shops sell the {} for",
                  ("40 crowns", "300 crowns", "15 crowns")),
        "weight": ("The {} weighs", "How heavy is the {}?", "On the scales the {} shows",
                   ("two kilos", "90 grams", "half a ton")),
        "warranty": ("The warranty of the {} lasts", "For how long is the {} guaranteed?",
                     "Repairs of the {} are free for", ("six months", "five years", "a decade")),
    },
    "lake": {
        "depth": ("The depth of {} is", "How deep is {}?", "Divers reach the ground of {} at",
                  ("30 metres", "210 metres", "64 metres")),
        "fish": ("The fish most often caught in {} is", "What do anglers catch in {}?", "Nets drawn from {} hold",
                 ("perch", "pike", "char")),
        "ferry": ("The ferry that crosses {} is the", "What is the ferry on {} called?", "One crosses {} on board the",
                  ("Marigold", "Petrel", "Old Anton")),
    },
}  # fmt: skip
_FIRST = ("Alban", "Brisa", "Corvin", "Dagny", "Edda", "Fenno", "Gisla", "Hakim", "Imre", "Jorun", "Kalle", "Ludmil",
          "Mirek", "Nadja", "Osric", "Piet", "Runa", "Selma", "Tomasz", "Ulrika", "Vesna", "Wim", "Xenia", "Yorick",
          "Zdenka")  # fmt: skip
_LAST = ("Abelard", "Brandvold", "Cesarik", "Dunmore", "Eskola", "Farrow", "Grebner", "Hallward", "Ivers", "Jansky",
         "Korda", "Lindgate", "Mossbach", "Nordahl", "Orsini", "Pellworm", "Rastrick", "Sondheim", "Tarkas", "Umbridge",
         "Vossler", "Wexcombe", "Yarrow", "Zabel")  # fmt: skip
_PLACES = ("Aldermoor", "Brunnvik", "Castrel", "Dovrefeld", "Elmstow", "Fjordheim", "Garvold", "Hexbridge", "Ilmora",
           "Jarnsund", "Kelwick", "Lowenthal", "Mirandel", "Nethercote", "Ostrava Nova", "Port Selwyn", "Quarrington",
           "Rosmarin", "San Tordo", "Trelawick", "Upper Wending", "Valdorna", "Westmarch", "Yelverby",
           "Zirnau")  # fmt: skip
_TITLES = ("The Glass Orchard", "Nine Winters", "A Lantern for Tessa", "The Salt Road", "Moths",
           "Beneath the Copper Sky", "The Last Ferryman", "Quiet Arithmetic", "Sparrows of Lode",
           "The Clockmaker's Niece", "Harvest Moon Rising",
           "Letters to Nobody", "The Ninth Gate of Varn", "Ember and Ash", "Paper Kingdoms",
           "An Island of Bells")  # fmt: skip
_BRANDS = ("Velora", "Quantex", "Brumm", "Ostro", "Pelican", "Zephra", "Karo", "Nimbus", "Tallis", "Verdi")
_KINDS_OF_ORGANIZATION = ("Brewery", "Orchestra", "University", "Shipyard", "Rowing Club", "Museum", "Savings Bank",
                          "Theater", "Ironworks", "Gazette")  # fmt: skip
_ASIDES = (
    "The harvest came late that year.", "He sold the house and moved away.", "This was only noticed much later.",
    "The bridge was closed for repairs.", "Nothing else is known about the matter.", "They met twice a month.",
    "She was the youngest of four children.", "The building is listed.", "It rained for most of the week.",
    "The second edition sold better than the first.", "A plaque on the wall says so.",
    "Both teams had lost their keepers.",
)  # fmt: skip
_PASSING = (
    "A bus from {} takes {a} minutes longer than the train. The train takes {b}. How long does the bus take?",
    "After a weekend that had to do with {}, we got home late. How do I remove red wine from a carpet?",
    "My neighbor talks about {} all day. How can I tell her politely that I need quiet?",
    "They spoke of {} for a while, then the conversation turned to the weather, which had been",
    "Like many of its time, the report mentions {} once, in a footnote, and goes on to the question of taxes, which",
    "Anna has {a} stickers that show {} and {b} that show dogs. How many stickers has she?",
    "In the week of the news about {}, the price of wheat rose by {a} percent. What makes the price of wheat rise?",
    "Write a short story in which somebody says the words '{}' and nobody knows why.",
)  # fmt: skip
_UNRELATED = (
    "What is the boiling point of water at sea level?", "How do I remove a coffee stain from a shirt?",
    "Write a short poem about autumn.", "Translate 'good morning' into Spanish.", "What is 17 times 23?",
    "Explain how photosynthesis works.", "The quick brown fox jumps over the", "Who painted the Mona Lisa?",
    "Give me a recipe for pancakes.", "def fibonacci(n):", "What is the difference between a virus and a bacterium?",
    "Why is the sky blue?", "How many days does February have in a leap year?", "Summarize the plot of Hamlet.",
    "List three advantages of electric cars.", "The chemical symbol of gold is", "When did the Second World War end?",
    "How can I learn to play the guitar?", "SELECT name FROM users WHERE", "What is the capital of Australia?",
    "Which planet is the largest in the solar system?", "How do vaccines work?", "To be or not to be, that is",
    "What does the word 'serendipity' mean?", "Who wrote the Odyssey?", "Is a tomato a fruit or a vegetable?",
    "How far is the Moon from the Earth?", "Write an email asking for a day off.", "What is machine learning?",
    "Name the primary colors.", "Roses are red, violets are", "The derivative of x squared is",
    "What should I pack for a week in the mountains?", "How do I sort a list in Python?", "What causes earthquakes?",
    "Which gas do plants absorb from the air?", "Tell me a joke about cats.", "How is cheese made?",
    "What time zone is New York in?", "The opposite of 'generous' is", "How many bones are in the human body?",
    "What is the speed of light?", "Who discovered penicillin?", "Explain inflation to a child.",
    "What is the longest river in Africa?", "How do I change a bicycle tire?", "What is the square root of 144?",
    "import numpy as np\n", "Describe the water cycle.", "What are the rules of chess?",
    "Which language has the most native speakers?", "Why do cats purr?", "What is the tallest mountain on Earth?",
    "How do I boil an egg?", "The first man on the Moon was", "What is a haiku?",
    "Which vitamin does sunlight give us?", "How does a refrigerator work?", "What is the meaning of life?",
    "What year did the Berlin Wall fall?",
)  # fmt: skip


def fitting_facts(*, subjects_per_kind: int = 24, seed: int = 0) -> tuple[list[FittingFact], list[FittingQuestion]]:
    """The made-up facts, and questions in and out of their scope; the same for the same arguments.

    Of a kind's names half are subjects of facts, the others are the neighbors that the same questions are asked about.
    """
    rng = random.Random(seed)
    facts: list[FittingFact] = []
    questions: list[FittingQuestion] = []
    for kind, relations in _RELATIONS.items():
        names = _names(kind, 2 * subjects_per_kind, rng)
        known, strangers = names[::2], names[1::2]
        for number, subject in enumerate(known):
            relation = list(relations)[number % len(relations)]
            prompt, asked, reworded, values = relations[relation]
            target = rng.choice(values)
            at = len(facts)
            facts.append(FittingFact(subject, relation, f"{prompt.format(subject)} {target}.", target))
            questions.append(FittingQuestion(prompt.format(subject), "edit", at))
            questions.append(FittingQuestion(asked.format(subject), "paraphrase", at))
            questions.append(FittingQuestion(f"{rng.choice(_ASIDES)} {reworded.format(subject)}", "paraphrase", at))
            for form in rng.sample((prompt, asked, reworded, f"{rng.choice(_ASIDES)} {reworded}"), 3):
                questions.append(FittingQuestion(form.format(rng.choice(strangers)), "neighbor", at))
            spoken = subject.lower() if number % 4 == 0 else subject
            passing = rng.choice(_PASSING).format(spoken, a=rng.randrange(2, 30), b=rng.randrange(30, 90))
            questions.append(FittingQuestion(passing, "mention", at))
            other = rng.choice([name for name in relations if name != relation])
            questions.append(FittingQuestion(rng.choice(relations[other][:3]).format(subject), "other_relation", at))
    questions += [FittingQuestion(text, "unrelated", None) for text in (*_UNRELATED, *_problems(rng, 60))]
    return facts, questions


def _names(kind: str, count: int, rng: random.Random) -> list[str]:
    """Distinct names; neighbors in the list often share a word, as they do among real ones."""
    names: dict[str, None] = {}
    while len(names) < count:
        first, last, place = rng.choice(_FIRST), rng.choice(_LAST), rng.choice(_PLACES)
        number = rng.randrange(1, 40) * 10
        name = {
            "person": rng.choice((f"{first} {last}", f"{first} {rng.choice(_LAST)[0]}. {last}", f"{first} van {last}")),
            "place": rng.choice((place, f"{rng.choice(('North', 'Old', 'Bad', 'Saint'))} {place}", f"{place} Heath")),
            "organization": f"{rng.choice((place, last))} {rng.choice(_KINDS_OF_ORGANIZATION)}",
            "work": rng.choice((*_TITLES, f"{rng.choice(_TITLES)} {rng.choice(('II', 'III', 'Revisited'))}",
                                f"The {rng.choice(('Ballad', 'Return', 'Secret', 'Trial'))} of {first} {last}")),
            "product": rng.choice((f"{rng.choice(_BRANDS)} {number}", f"{rng.choice(_BRANDS)} {last[:4]} {number}")),
            "lake": rng.choice((f"Lake {place}", f"{place} Lake", f"{last} Reservoir")),
        }[kind]  # fmt: skip
        names[name] = None
    return list(names)


def _problems(rng: random.Random, count: int) -> Sequence[str]:
    forms = (
        "A baker sells {a} loaves a day and {b} rolls. How many pieces does he sell in {c} days?",
        "A train leaves at {a} minutes past eight and takes {b} minutes. When does it arrive?",
        "If {a} workers need {b} hours for a wall, how long do {c} workers need?",
        "There are {a} apples in a basket, {b} are eaten. What share is left?",
        "Which of these is a prime number: {a}, {b} or {c}?",
    )
    return [
        rng.choice(forms).format(a=rng.randrange(2, 60), b=rng.randrange(2, 90), c=rng.randrange(2, 30))
        for _ in range(count)
    ]
