"""The words of the captions, and what each of them stands for in a picture."""

# Name and code point. The order is the order in which a growing vocabulary takes them in. No name
# holds a colour word: "red apple on a white background" would come out on red.
SUBJECTS: tuple[tuple[str, int], ...] = (
    ("fox", 0x1F98A),
    ("owl", 0x1F989),
    ("cat", 0x1F431),
    ("dog", 0x1F436),
    ("panda", 0x1F43C),
    ("frog", 0x1F438),
    ("lion", 0x1F981),
    ("pig", 0x1F437),
    ("rabbit", 0x1F430),
    ("penguin", 0x1F427),
    ("turtle", 0x1F422),
    ("butterfly", 0x1F98B),
    ("octopus", 0x1F419),
    ("whale", 0x1F433),
    ("fish", 0x1F420),
    ("elephant", 0x1F418),
    ("snail", 0x1F40C),
    ("ladybug", 0x1F41E),
    ("crab", 0x1F980),
    ("duck", 0x1F986),
    ("tree", 0x1F333),
    ("cactus", 0x1F335),
    ("sunflower", 0x1F33B),
    ("tulip", 0x1F337),
    ("mushroom", 0x1F344),
    ("apple", 0x1F34E),
    ("banana", 0x1F34C),
    ("cherry", 0x1F352),
    ("watermelon", 0x1F349),
    ("strawberry", 0x1F353),
    ("pizza", 0x1F355),
    ("burger", 0x1F354),
    ("donut", 0x1F369),
    ("cake", 0x1F382),
    ("heart", 0x2764),
    ("star", 0x2B50),
    ("car", 0x1F697),
    ("bus", 0x1F68C),
    ("train", 0x1F682),
    ("rocket", 0x1F680),
    ("sailboat", 0x26F5),
    ("house", 0x1F3E0),
    ("tent", 0x26FA),
    ("castle", 0x1F3F0),
    ("robot", 0x1F916),
    ("ghost", 0x1F47B),
    ("balloon", 0x1F388),
    ("guitar", 0x1F3B8),
    ("umbrella", 0x2614),
    ("crown", 0x1F451),
    ("clock", 0x23F0),
    ("key", 0x1F511),
    ("snowman", 0x26C4),
    ("bicycle", 0x1F6B2),
    ("camera", 0x1F4F7),
    ("book", 0x1F4D5),
    ("trophy", 0x1F3C6),
    ("drum", 0x1F941),
    ("bell", 0x1F514),
    ("gem", 0x1F48E),
    ("unicorn", 0x1F984),
    ("bee", 0x1F41D),
    ("dolphin", 0x1F42C),
    ("tiger", 0x1F42F),
)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 219, 94),
    "green": (76, 175, 80),
    "teal": (38, 166, 154),
    "blue": (66, 133, 244),
    "navy": (26, 42, 108),
    "purple": (126, 87, 194),
    "pink": (244, 154, 194),
    "brown": (121, 85, 72),
    "black": (24, 24, 28),
    "gray": (158, 158, 158),
    "white": (250, 250, 250),
    "beige": (237, 220, 190),
}

# Scene to its phrase; `distill.demo.emoji.backgrounds` draws each of them.
SCENES: dict[str, str] = {
    "grass": "in a grassy field",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "at sea",
    "sunset": "at sunset",
}

# Size word to pixels on a canvas of 64.
SIZES: dict[str, int] = {"small": 24, "": 34, "large": 46}
PAIR_SIZE = 28

# Phrase to the place of the subject's centre, -1 (left, top) to 1 (right, bottom).
POSITIONS: dict[str, tuple[int, int]] = {
    "": (0, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}

# "A <relation> B": where A's centre is, seen from the middle; B is opposite.
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}


def with_article(words: str) -> str:
    """Return ``words`` with its indefinite article, as in "an owl"."""
    exceptions = words.startswith("unicorn")
    return f"an {words}" if words[0] in "aeiou" and not exceptions else f"a {words}"
