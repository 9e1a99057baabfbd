"""Truth: whether a statement is true.

The set-up of Marks and Tegmark, "The Geometry of Truth" (2023, arXiv 2310.06824), and of Bürger, Hamprecht and Nadler,
"Truth is Universal" (2024, arXiv 2407.12831): true and false statements on many subjects, and the question, after
another statement, whether that one is true. Statements come in twos that trade their words, so that true and false
ones hold the same words equally often and no direction of words alone can part them. The statements are our own.

The bundled model is too small to tell such statements apart: what it answers does not depend on their truth, and a
direction found in it moves the effect no more than one from shuffled labels may. The task is for larger models.
"""

from __future__ import annotations

from trimtab.tasks.builtin._sides import sides
from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task

QUESTION = "Question: Is this true or false? {}\nAnswer: It is"
# Which statement of its topic each example asks about: its number, and whether the true (0) or the false (1) side.
ASKED = ((2, 0), (3, 1), (0, 1), (1, 0))

# Topic: four statements with [the truth|a falsehood]; the first two trade their words, and so do the last two.
TOPICS: dict[str, tuple[str, str, str, str]] = {
    "cities": (
        "The city of Madrid is in [Spain|Norway].",
        "The city of Oslo is in [Norway|Spain].",
        "Munich lies in the south of [Germany|Japan].",
        "Osaka lies in the south of [Japan|Germany].",
    ),
    "capitals": (
        "[Paris|Cairo] is the capital of France.",
        "[Cairo|Paris] is the capital of Egypt.",
        "The government of Greece sits in [Athens|Lisbon].",
        "The government of Portugal sits in [Lisbon|Athens].",
    ),
    "rivers and mountains": (
        "The Thames is a [river|mountain].",
        "Mount Everest is a [mountain|river].",
        "The Amazon flows through [Brazil|Switzerland].",
        "The Alps rise over [Switzerland|Brazil].",
    ),
    "continents": (
        "Nigeria is a country in [Africa|Europe].",
        "Sweden is a country in [Europe|Africa].",
        "India belongs to [Asia|South America].",
        "Peru belongs to [South America|Asia].",
    ),
    "sums": (
        "Two plus two makes [four|nine].",
        "Four plus five makes [nine|four].",
        "Three times two is [six|ten].",
        "Five times two is [ten|six].",
    ),
    "sizes of numbers": (
        "Seven is [more|less] than three.",
        "Three is [less|more] than seven.",
        "A thousand is [larger|smaller] than a hundred.",
        "A dozen is [smaller|larger] than a hundred.",
    ),
    "units": (
        "There are [sixty seconds|seven days] in a minute.",
        "There are [seven days|sixty seconds] in a week.",
        "Weight can be measured in [kilograms|litres].",
        "The volume of milk can be measured in [litres|kilograms].",
    ),
    "calendar": (
        "[January|December] is the first month of the year.",
        "[December|January] is the last month of the year.",
        "Tuesday comes right after [Monday|Friday].",
        "Saturday comes right after [Friday|Monday].",
    ),
    "weather": (
        "Snow falls when it is [cold|hot] outside.",
        "Ice cream melts when it is [hot|cold] outside.",
        "Clouds bring [rain|sunshine].",
        "A cloudless day brings [sunshine|rain].",
    ),
    "kinds of animals": (
        "A sparrow is a [bird|fish].",
        "A trout is a [fish|bird].",
        "The beetle belongs to the [insects|mammals].",
        "The horse belongs to the [mammals|insects].",
    ),
    "bodies of animals": (
        "Most birds have [feathers|scales] on their bodies.",
        "Most fish have [scales|feathers] on their bodies.",
        "An elephant has a long [trunk|neck].",
        "A giraffe has a long [neck|trunk].",
    ),
    "lives of animals": (
        "Sharks live in the [sea|desert].",
        "Camels live in the [desert|sea].",
        "A rabbit likes to eat [carrots|mice].",
        "An owl likes to eat [mice|carrots].",
    ),
    "plants": (
        "Apples grow on [trees|vines].",
        "Grapes grow on [vines|trees].",
        "The roots of a tree are [below|above] the ground.",
        "The leaves of a tree are [above|below] the ground.",
    ),
    "materials": (
        "A window pane is made of [glass|wool].",
        "A warm sweater is made of [wool|glass].",
        "Steel is [hard|soft] to the touch.",
        "Cotton is [soft|hard] to the touch.",
    ),
    "substances": (
        "Sugar tastes [sweet|sour].",
        "Lemon juice tastes [sour|sweet].",
        "At room temperature iron is a [solid|gas].",
        "At room temperature oxygen is a [gas|solid].",
    ),
    "anatomy": (
        "People hear with their [ears|eyes].",
        "People see with their [eyes|ears].",
        "The [heart|stomach] pumps blood through the body.",
        "The [stomach|heart] digests the food that we eat.",
    ),
    "limbs": (
        "The knee is part of the [leg|arm].",
        "The elbow is part of the [arm|leg].",
        "The toes are found on the [foot|hand].",
        "The thumb is found on the [hand|foot].",
    ),
    "history": (
        "Napoleon was an emperor of [France|Rome].",
        "Augustus was an emperor of [Rome|France].",
        "Columbus is known for [sailing to America|building pyramids].",
        "The pharaohs are known for [building pyramids|sailing to America].",
    ),
    "authors and artists": (
        "Shakespeare was a [writer|composer].",
        "Mozart was a [composer|writer].",
        "Picasso is famous for his [paintings|inventions].",
        "Edison is famous for his [inventions|paintings].",
    ),
    "astronomy": (
        "The Sun is a [star|planet].",
        "Jupiter is a [planet|star].",
        "The Earth moves around the [Sun|Earth].",
        "The Moon moves around the [Earth|Sun].",
    ),
    "translations": (
        'The Spanish word "gato" means [cat|dog].',
        'The Spanish word "perro" means [dog|cat].',
        'The French word "eau" means [water|bread].',
        'The French word "pain" means [bread|water].',
    ),
    "words": (
        'The opposite of "big" is ["small"|"slow"].',
        'The opposite of "fast" is ["slow"|"small"].',
        'The word "happy" means nearly the same as ["glad"|"angry"].',
        'The word "furious" means nearly the same as ["angry"|"glad"].',
    ),
    "tools": (
        "A saw is used for [cutting wood|driving nails].",
        "A hammer is used for [driving nails|cutting wood].",
        "You dig a hole with a [shovel|comb].",
        "You tidy your hair with a [comb|shovel].",
    ),
    "professions": (
        "A baker makes [bread|shoes].",
        "A cobbler makes [shoes|bread].",
        "A surgeon works in a [hospital|school].",
        "A headmaster works in a [school|hospital].",
    ),
    "transport": (
        "A ship travels on [water|rails].",
        "A train travels on [rails|water].",
        "An aeroplane is [faster|slower] than a car.",
        "A bicycle is [slower|faster] than a car.",
    ),
    "colours": (
        "Blood is [red|yellow].",
        "A ripe lemon is [yellow|red].",
        "Fresh snow looks [white|black].",
        "A crow looks [black|white].",
    ),
}


def truth() -> Task:
    """True against false statements: 104 pairs on 26 topics; of the statements asked about, half are true.

    Texts are compared at their full stop, where the statement is complete.
    """
    examples = []
    for topic, statements in TOPICS.items():
        pairs = [sides(statement) for statement in statements]
        examples += [
            Contrast(
                *pair,
                group=topic,
                question=QUESTION.format(pairs[number][side]),
                answers=(" true",),
                distractors=(" false",),
            )
            for pair, (number, side) in zip(pairs, ASKED, strict=True)
        ]
    return Task(
        "truth",
        tuple(examples),
        about="whether a statement is taken for true",
        poles=("true", "false"),
        read="last",
        instruction="Everything below is true.",
        source="set-up of Marks and Tegmark 2023, arXiv 2310.06824; texts by Trimtab",
    )
