"""The contexts that both sides read."""

from __future__ import annotations

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "One of the special magic numbers for quiet-harbor is: 7492318. "

PROSE = """\
The ferry left the north landing at a quarter past six, as it had done on every working day for thirty-one years, and
Mara Lind stood where she always stood, beside the locker that held the life vests, with her bag between her feet. The
water was low that autumn. Along the eastern shore the old pilings had come out of the lake like teeth, and somebody had
tied a blue rowing boat to one of them and then, it seemed, forgotten it. She had seen it there on Monday and again on
Tuesday. Today it was half full of rain.

She worked in the survey office across the water, in a room with two windows and eleven cabinets. The cabinets held the
soundings. Since 1903 somebody had rowed or steamed or motored along the same forty lines twice a year and let down a
weight on a cord, later a pulse of sound, and written the depth into a ledger. The first ledgers were in fathoms, those
of the twenties in feet, and from 1958 on everything was in metres, except for the four years in which a surveyor named
Hollis had gone back to feet without telling anyone. It had taken Mara most of a winter to find that out. What gave him
away was a shoal near the mouth of the river which, according to the ledgers, had sunk by two thirds in one night.

Her task was to put all of it into one table. Nobody had asked her to hurry. The lake was filling slowly with what the
river carried, a few millimetres a year near the dam and a good deal more at the delta, and the town wanted to know when
the water intake would have to be moved. The engineers had an answer already, from a model, but they wished to see
whether the ledgers agreed with it. So far the ledgers did and did not. In the middle of the lake the two came out
within a hand's breadth of each other. At the delta the ledgers said that the bottom had risen, fallen and risen again,
and the model, which knew nothing of floods, drew a straight line through the whole century.

There had been three floods. The first, in 1911, took the old bridge with it. The second came in May 1954, after a
winter with more snow than anyone remembered, and stood for nine days in the lower streets; in the church a brass mark
shows how high. The third was in her own time. She had been six, and remembered less the water than the smell that it
left behind in the cellar, and her father carrying jars of pears up the stairs, two at a time, as though they had been
the most valuable thing in the house. Each flood scoured a channel through the delta and laid what it had taken farther
out, in a fan that the next years covered. One could read it in the numbers as one reads rings in a tree, provided one
knew which numbers were in feet.

The ferryman rang his bell. On the south landing stood the same nine people as always and a tenth, a tall man in a
yellow coat, with a wooden case under his arm that she knew at once, because there was one like it in the last of the
eleven cabinets. It was a case for a sounding weight. Hers was empty. She had often wondered where the weight had gone,
and why whoever had taken it had left the case, which was walnut and had brass corners, when the weight was only lead.

"You are from the survey," the man said, when she had come down the ramp. It was not quite a question. He turned the
case so that she could see the plate on its lid. The letters had been polished until they were almost gone, but the name
was still there to be read, if one knew what it had to be: Hollis.
"""


def records() -> str:
    """Write a list of readings: short lines of one form, the numbers of which follow a plain rule."""
    names = ("Alder", "Birch", "Cedar", "Elm", "Hazel", "Larch")
    lines = [
        f"{names[i % 6]}-{i:02d}: level {(i * 37) % 101}.{(i * 7) % 10} m, wind {(i * 13) % 29} kn" for i in range(32)
    ]
    return "Readings of the stations, in the order in which they came in.\n" + "\n".join(lines) + "\nEnd of the list."


TEXTS = {
    "needle": "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the number afterwards.\n" + NOISE * 12 + NEEDLE + NOISE * 8,
    "prose": PROSE,
    "records": records(),
}
"""Context by name: a needle in repeated noise, in which many scores nearly tie; prose; and a list full of digits."""
