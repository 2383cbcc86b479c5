"""The words of the captions, and what each of them stands for in a picture."""

# Name and code point, in the order in which a growing vocabulary takes them in. No name holds a
# colour word: "red apple on a white background" would come out on red.
_NAMED = """
fox 🦊 owl 🦉 cat 🐱 dog 🐶 panda 🐼 frog 🐸 lion 🦁 pig 🐷 rabbit 🐰 penguin 🐧 turtle 🐢
butterfly 🦋 octopus 🐙 whale 🐳 fish 🐠 elephant 🐘 snail 🐌 ladybug 🐞 crab 🦀 duck 🦆 tree 🌳
cactus 🌵 sunflower 🌻 tulip 🌷 mushroom 🍄 apple 🍎 banana 🍌 cherry 🍒 watermelon 🍉
strawberry 🍓 pizza 🍕 burger 🍔 donut 🍩 cake 🎂 heart ❤ star ⭐ car 🚗 bus 🚌 train 🚂 rocket 🚀
sailboat ⛵ house 🏠 tent ⛺ castle 🏰 robot 🤖 ghost 👻 balloon 🎈 guitar 🎸 umbrella ☔ crown 👑
clock ⏰ key 🔑 snowman ⛄ bicycle 🚲 camera 📷 book 📕 trophy 🏆 drum 🥁 bell 🔔 gem 💎 unicorn 🦄
bee 🐝 dolphin 🐬 tiger 🐯
"""
_WORDS = _NAMED.split()
SUBJECTS = tuple((name, ord(glyph)) for name, glyph in zip(_WORDS[::2], _WORDS[1::2], strict=True))

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
SCENES = {
    "grass": "in a grassy field",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "at sea",
    "sunset": "at sunset",
}

# Size word to pixels on a canvas of 64.
SIZES = {"small": 24, "": 34, "large": 46}
PAIR_SIZE = 28

# Phrase to the place of the subject's centre, -1 (left, top) to 1 (right, bottom).
POSITIONS = {
    "": (0, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}

# "A <relation> B": where A's centre is, seen from the middle; B is opposite.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def with_article(words: str) -> str:
    """Return ``words`` with its indefinite article, as in "an owl"."""
    exceptions = words.startswith("unicorn")
    return f"an {words}" if words[0] in "aeiou" and not exceptions else f"a {words}"
