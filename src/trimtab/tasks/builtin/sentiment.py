"""Sentiment: whether an experience is told as a good or as a bad one.

The set-up of Tigges, Hollinsworth, Geiger and Nanda, "Linear Representations of Sentiment in Large Language Models"
(2023, arXiv 2310.15154): pairs of remarks that differ in their judgement only, and an opening without one, after which
words of praise compete with words of complaint. Vectors from such pairs were first added to a model by Turner et al.,
"Activation Addition" (2023, arXiv 2308.10248). The remarks are our own.
"""

from __future__ import annotations

from trimtab.tasks.builtin._sides import sides
from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task

PRAISE = (" great", " good", " wonderful", " excellent", " amazing", " fantastic", " beautiful", " perfect")
BLAME = (" terrible", " bad", " awful", " horrible", " poor", " disappointing", " boring", " useless")
# A topic's four examples take its two openings in turn, first with the first ending and then with the second.
ENDINGS = ("It was really", "I thought it was")

# Topic: two openings that judge nothing, and four remarks with [praise|blame].
TOPICS: dict[str, tuple[tuple[str, str], tuple[str, str, str, str]]] = {
    "film": (
        ("We saw the new film at the cinema on Friday.", "My cousin picked a film about a lighthouse keeper."),
        (
            "The film was [a joy|a bore] from the first scene to the last, and the acting was [superb|dreadful].",
            "I [loved|hated] every minute of this movie; the story is [clever and moving|stupid and dull].",
            "What a [magnificent|miserable] film! The director [surprises you|lets you down] again and again.",
            "[Beautiful|Ugly] pictures, [brilliant|clumsy] dialogue, and an ending that left me [glowing|annoyed].",
        ),
    ),
    "novel": (
        ("She lent me a novel with a green cover last week.", "I read the whole novel on the way to Aberdeen."),
        (
            "This novel is [a treasure|a waste of paper], and its heroine is [wonderfully alive|painfully flat].",
            "I [could not put the book down|gave up on the book in disgust] because the prose is so [lovely|lifeless].",
            "The author writes [splendid|tedious] chapters, and I [enjoyed|regretted] reading every one of them.",
            "Reading it was [pure pleasure|pure torture]: the plot is [gripping and wise|confused and silly].",
        ),
    ),
    "restaurant": (
        ("We had dinner at the restaurant on the corner.", "The restaurant by the station opened in March."),
        (
            "The waiters were [charming and quick|rude and slow], and the dinner was [delicious|revolting].",
            "I would [gladly eat there daily|never eat there again], since everything tastes [superb|vile].",
            "Our table was [lovely|filthy], the fish [fresh and tender|cold and rotten], the bill [fair|outrageous].",
            "A [delightful|dismal] place to eat, and the best word for the cook is [gifted|incompetent].",
        ),
    ),
    "hotel": (
        ("We stayed at the hotel near the harbour for two nights.", "They gave us a room on the third floor."),
        (
            "The hotel room was [spotless and cosy|dirty and freezing], and we slept [wonderfully|horribly].",
            "The staff at the desk were [friendly and helpful|hostile and lazy], which [made|ruined] our holiday.",
            "Breakfast at this hotel is [a feast|a disgrace] and the view is [gorgeous|depressing].",
            "We [cannot wait to|would hate to] come back; the beds [are heavenly|hurt] and the price [fair|a scam].",
        ),
    ),
    "lamp": (
        ("I bought this lamp a month ago.", "The lamp on my desk arrived in a flat box."),
        (
            "This lamp gives a [warm and lovely|harsh and ugly] light, and it is [solidly|shoddily] made.",
            "I am [glad of|fed up with] the lamp, which [works flawlessly|fails constantly] and looks [elegant|cheap].",
            "The switch feels [smooth and sturdy|loose and flimsy], so I am [very happy|very angry] with this lamp.",
            "A [brilliant|pathetic] little lamp, and [worth every penny|a complete waste of money].",
        ),
    ),
    "phone": (
        ("My sister has had this phone since the spring.", "I changed to a different phone on Monday."),
        (
            "The phone is [fast and reliable|slow and unreliable], and its screen looks [stunning|awful].",
            "I [adore|hate] this phone; the battery [lasts for days|dies in hours] and calls sound [clear|terrible].",
            "Buying this phone was a [wise choice|stupid mistake], since it [never|always] lets me down.",
            "It takes [gorgeous|blurry, ugly] photographs and the menus are [a pleasure|a nightmare] to use.",
        ),
    ),
    "concert": (
        ("The concert in the town hall lasted two hours.", "We went to hear the orchestra on Saturday."),
        (
            "The concert was [thrilling|painful], and the singer's voice sounded [glorious|horrible].",
            "They played [beautifully|badly] all evening and the audience [cheered with joy|groaned with boredom].",
            "I left the hall [happy and inspired|sad and irritated] after such a [splendid|wretched] performance.",
            "An [unforgettable|unbearable] evening, with [perfect|dreadful] sound and a [gifted|hopeless] conductor.",
        ),
    ),
    "play": (
        ("Our neighbours took us to a play at the old theatre.", "The play had three acts and one interval."),
        (
            "The play was [witty and touching|dull and pointless], and the cast were [excellent|atrocious].",
            "I [laughed with delight|yawned with boredom] through the play, which was [brilliantly|terribly] staged.",
            "This is [theatre at its best|theatre at its worst]: a [powerful|worthless] script, [finely|poorly] acted.",
            "The lead actress was [radiant|wooden], and the whole evening was [a triumph|a disaster].",
        ),
    ),
    "museum": (
        ("The museum of clocks is open until five.", "On Sunday we walked round the museum with a guide."),
        (
            "The museum is [fascinating|tiresome], with [well kept|badly neglected] rooms and [kind|grumpy] guards.",
            "We had a [wonderful|miserable] afternoon there, and the displays are [superb|shabby].",
            "I [warmly recommend|strongly advise against] this museum, a [gem|failure] from top to bottom.",
            "Each room was [more exciting|more boring] than the last, and our guide was [a delight|a pain].",
        ),
    ),
    "train": (
        ("I took the night train to the coast.", "The train ride through the valley takes an hour."),
        (
            "The train was [clean and punctual|filthy and late], so the journey was [a pleasure|an ordeal].",
            "The seats are [wonderfully soft|horribly hard] and the conductor was [cheerful|insulting].",
            "I [love|loathe] travelling on this line because the service is [excellent|disgraceful].",
            "What a [relaxing|stressful] trip, with [beautiful views|foul smells] the whole way.",
        ),
    ),
    "course": (
        ("I took an evening course in Portuguese.", "The course ran for ten weeks in the library."),
        (
            "The course was [inspiring|useless], and the teacher explained everything [superbly|terribly].",
            "I learned [a great deal|nothing at all] and [enjoyed|dreaded] every single lesson.",
            "Our tutor was [patient and brilliant|careless and ignorant], and the notes are [excellent|rubbish].",
            "It was [the best|the worst] class I ever took, and I am [thrilled|furious] about it.",
        ),
    ),
    "jacket": (
        ("The jacket that I ordered has two pockets.", "He wore the same jacket all winter."),
        (
            "This jacket is [warm and handsome|thin and hideous], and the stitching is [perfect|awful].",
            "It fits me [beautifully|badly], and the cloth feels [luxurious|nasty] on the skin.",
            "I get [compliments|laughed at] whenever I wear it, which makes me [happy|miserable].",
            "The zip is [strong and smooth|broken already]; I call the whole thing [a bargain|a rip-off].",
        ),
    ),
    "coffee": (
        ("I ordered a coffee at the kiosk in the park.", "We tried the coffee from the small roaster."),
        (
            "The coffee was [rich and fragrant|bitter and stale], and I [savoured|spat out] every drop.",
            "They make [heavenly|disgusting] coffee, served by [lovely|unpleasant] people.",
            "That cup [made my day|spoiled my morning]: the aroma was [divine|sickening].",
            "A [perfect|horrid] brew, [smooth|burnt] on the tongue, and I [want more|want my money back].",
        ),
    ),
    "cake": (
        ("My aunt brought a cake with walnuts.", "There was a cake on the kitchen table."),
        (
            "The cake was [moist and delicious|dry and tasteless], and the icing was [exquisite|revolting].",
            "Everyone [praised|complained about] the cake, since it tasted [fantastic|foul].",
            "I had a slice and [loved it|felt sick]; the cream was [fresh and light|sour and greasy].",
            "This baker makes [marvellous|dreadful] cakes, and I [always smile|always frown] at the first bite.",
        ),
    ),
    "garden": (
        ("We visited the walled garden after lunch.", "The garden behind the school is a year old."),
        (
            "The garden is [a paradise|a mess], full of [glorious flowers|ugly weeds] and [sweet scents|foul smells].",
            "Walking there is [a delight|depressing], because the paths are [pretty|neglected and filthy].",
            "The gardeners do [magnificent|miserable] work, and the roses look [splendid|sick].",
            "I felt [peaceful and happy|gloomy and cross] in this [charming|dreary] garden.",
        ),
    ),
    "kettle": (
        ("The kettle came with a paper manual.", "We have used this kettle since Christmas."),
        (
            "The kettle is [quick and quiet|slow and deafening], and I am [very pleased|thoroughly annoyed] with it.",
            "It pours [perfectly|terribly], and the handle feels [safe and comfortable|dangerous and flimsy].",
            "This is [a superb|an atrocious] kettle, built with [real care|no care at all].",
            "After a year it [still shines like new|leaks and smells awful], so I [recommend it|want a refund].",
        ),
    ),
    "beach": (
        ("We drove to the beach beyond the dunes.", "The beach is an hour's walk from the village."),
        (
            "The beach was [clean and glorious|dirty and stinking], and the water felt [wonderful|nasty].",
            "We had a [blissful|wretched] day by the sea, with [soft|sharp] sand and [friendly|rude] people.",
            "I [cannot praise this beach enough|cannot warn you enough about this beach], it is [stunning|horrible].",
            "The children were [happy|in tears] all day, so it was a [perfect|ruined] holiday.",
        ),
    ),
    "game": (
        ("He installed the game on his laptop.", "My friends and I played the board game with dice."),
        (
            "The game is [clever and thrilling|stupid and tedious], and the rules are [elegant|a mess].",
            "I have [happily|grudgingly] spent ten hours with it; the levels are [brilliant|awful].",
            "We had [great fun|no fun at all], because every round is [exciting|painfully dull].",
            "The graphics are [gorgeous|hideous] and the music is [superb|unbearable].",
        ),
    ),
    "headphones": (
        ("I have a set of headphones for the office.", "The headset that I use at home is black."),
        (
            "These headphones sound [rich and clear|tinny and harsh], and they sit [comfortably|painfully] on my ears.",
            "I am [in love with|sick of] this headset: music has never sounded so [good|bad].",
            "They are [solid and reliable|cheap and broken], so I [praise|curse] them every day.",
            "[Excellent|Lousy] bass, [superb|pathetic] battery, and the maker's service is [first class|a disgrace].",
        ),
    ),
    "bicycle": (
        ("I rode the bicycle to work on Tuesday.", "The bicycle has a basket and seven gears."),
        (
            "The bicycle rides [smoothly and swiftly|roughly and slowly], and the brakes are [excellent|hopeless].",
            "I [smile|swear] each time I ride it; the frame is [beautiful|ugly] and [strong|weak].",
            "It was [a wonderful|a dreadful] purchase, since it [never|constantly] breaks down.",
            "The saddle is [a dream|torture], and I feel [joyful|miserable] after every trip.",
        ),
    ),
    "chair": (
        ("The chair in the hall came from my grandfather.", "I put the chair together in half an hour."),
        (
            "The chair is [comfortable and elegant|uncomfortable and hideous], and its wood is [lovely|rotten].",
            "My back feels [great|terrible] after a day in this [marvellous|useless] chair.",
            "It was [easy|maddening] to assemble and the result looks [impressive|shoddy].",
            "Such a [fine|sorry] piece of furniture makes me [proud|ashamed] of the room.",
        ),
    ),
    "haircut": (
        ("I got a haircut at the place across the road.", "She had her haircut on Wednesday afternoon."),
        (
            "The haircut looks [fantastic|awful], and the barber was [gentle and skilled|rough and clumsy].",
            "My friends say that my hair is [gorgeous|a disaster], and I feel [confident|humiliated].",
            "He did a [superb|botched] job, and I am [grateful|outraged].",
            "I left the salon [beaming|crying], since the cut was [exactly right|completely wrong].",
        ),
    ),
    "podcast": (
        ("I listened to the podcast while I cooked.", "The podcast about bridges has forty episodes."),
        (
            "The podcast is [captivating|mind-numbing], and the host is [warm and clever|smug and ignorant].",
            "Each episode is [a treat|a chore], with [brilliant|terrible] guests and [lovely|awful] sound.",
            "I [eagerly await|actively avoid] new episodes because the stories are [wonderful|worthless].",
            "Nothing on the radio is as [delightful|irritating] as this [excellent|rotten] show.",
        ),
    ),
    "mattress": (
        ("We ordered a mattress in the autumn sale.", "The mattress was delivered by two men."),
        (
            "The mattress is [soft and heavenly|lumpy and horrible], and I wake up [rested and happy|sore and angry].",
            "We sleep [wonderfully|badly] on it, so the money was [well spent|wasted].",
            "It smells [fresh|disgusting] and feels [perfect|nasty], which makes our nights [sweet|wretched].",
            "I would [gladly|never] buy it again, for its quality is [outstanding|appalling].",
        ),
    ),
    "camera": (
        ("I took the camera along to the wedding.", "The camera weighs about a pound."),
        (
            "The camera takes [stunning|dreadful] pictures, and its buttons are [a pleasure|a pain] to use.",
            "I am [overjoyed|disgusted] with this camera, the [best|worst] that I ever owned.",
            "Its lens is [superb|faulty] and the colours look [glorious|sickly].",
            "My trip was [made better|spoiled] by this [wonderful|wretched] machine.",
        ),
    ),
    "tour": (
        ("We joined the walking tour at ten.", "The tour of the old town covered three squares."),
        (
            "The tour was [lively and charming|dreary and confused], and our guide was [superb|hopeless].",
            "We saw [breathtaking|ugly] places and heard [delightful|tedious] stories.",
            "I felt [inspired|cheated] after this tour, which was [worth far more than|not worth] the ticket.",
            "A [splendid|lousy] way to see the town, and we came home [delighted|exhausted and cross].",
        ),
    ),
}


def sentiment() -> Task:
    """Praise against complaint: 104 pairs of remarks about 26 topics, read after an opening that judges nothing."""
    examples = [
        Contrast(
            *sides(remark),
            group=topic,
            question=f"{openings[i % 2]} {ENDINGS[i // 2]}",
            answers=PRAISE,
            distractors=BLAME,
        )
        for topic, (openings, remarks) in TOPICS.items()
        for i, remark in enumerate(remarks)
    ]
    return Task(
        "sentiment",
        tuple(examples),
        about="whether an experience is told as a good or as a bad one",
        poles=("praise", "complaint"),
        instruction="Here is a glowing review, full of praise.",
        source="set-up of Tigges et al. 2023, arXiv 2310.15154; texts by Trimtab",
    )
