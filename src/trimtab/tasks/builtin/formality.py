"""Formality: whether a message is written as to an authority or as to a friend.

Formal and informal renderings of the same message, as in the corpus of Rao and Tetreault, "Dear Sir or Madam, May I
Introduce the GYAFC Dataset" (2018, arXiv 1803.06535); steering by the difference of such pairs follows Liu et al.,
"In-context Vectors" (2023, arXiv 2311.06668) and Konen et al., "Style Vectors for Steering Generative Large Language
Models" (2024, arXiv 2402.01618). The effect is read where a message begins: at its salutation, or after its first
words. The messages are our own.
"""

from __future__ import annotations

from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task

SALUTATIONS = (("Dear", "Sir", "To"), ("Hey", "Hi", "Yeah", "Oh"))
VERBS = (
    (" wish", " would", " shall", " regret", " hereby", " respectfully", " kindly"),
    (" just", " really", " totally", " guess", " love", " hate", " got"),
)
# Where a message about something begins, with words that go on formally and words that go on informally.
OPENINGS = (
    ("Subject: {}\n", SALUTATIONS),
    ("A message about {}:\n", SALUTATIONS),
    ("This is about {}. I", VERBS),
    ("Here is my note on {}. We", VERBS),
)

# What messages are about: four of them, each formal and informal.
TOPICS: dict[str, tuple[tuple[str, str], tuple[str, str], tuple[str, str], tuple[str, str]]] = {
    "the meeting on Friday": (
        ("I regret that I shall be unable to attend the meeting.", "Sorry, can't make it to the meeting, no way."),
        ("Kindly confirm your attendance at the meeting by noon.", "Hey, are you coming to the meeting or what?"),
        ("The meeting has been postponed until further notice.", "So yeah, they moved the meeting, no clue to when."),
        ("We would be grateful if you arrived punctually.", "Don't be late again, OK? That'd be awesome."),
    ),
    "the invoice": (
        ("Please find enclosed our invoice for the month of May.", "Here's the bill for May, sorry it's a bit late!"),
        ("We have not yet received payment of the outstanding sum.", "You guys still owe us a bunch of money."),
        ("Should you have any queries, do not hesitate to contact us.", "Got questions? Just shout, no worries."),
        ("The amount will be remitted within fourteen days.", "I'll get you the cash in two weeks or so, cool?"),
    ),
    "the apartment": (
        ("The tenant is requested to vacate the premises by June.", "You gotta be out of the flat by June, OK?"),
        ("I am writing to enquire about the advertised apartment.", "Hi! Is that place you posted still free?"),
        ("The heating in the residence has ceased to function.", "Ugh, the heating's dead and it's freezing in here."),
        ("Visitors must refrain from making noise after ten.", "Hey, keep it down after ten, will ya?"),
    ),
    "the job": (
        ("I wish to apply for the position of assistant.", "So I'd really like to work with you guys."),
        ("We are pleased to offer you employment with our firm.", "Guess what? You got the job, yay!"),
        ("Unfortunately your application was not successful.", "Bad news, buddy, they picked some other guy."),
        ("I hereby tender my resignation with immediate effect.", "That's it, I quit, I'm so out of here!"),
    ),
    "the exam": (
        ("Candidates are required to present valid identification.", "Bring your ID or they won't let you in, guys."),
        ("I wish to inform you that you have passed the examination.", "You passed! Woo, way to go, told you so!"),
        ("May I request an extension of the deadline?", "Any chance I can get a few more days? Please?"),
        ("The use of telephones is strictly prohibited.", "No phones in there, like, at all, OK?"),
    ),
    "the party": (
        ("You are cordially invited to a celebration at our home.", "We're having a party at ours, come on over!"),
        ("We kindly ask our guests to wear evening dress.", "Wear something fancy if you feel like it, haha."),
        ("It would be an honour to have you among us.", "It'd be super fun if you came along!"),
        ("I thank you sincerely for your generous hospitality.", "Thanks a ton, last night was a blast!"),
    ),
    "the delivery": (
        ("Your consignment will be dispatched tomorrow morning.", "Your stuff goes out tomorrow, promise!"),
        ("I must inform you that the parcel arrived damaged.", "So the box got here and it's totally smashed."),
        ("We apologise for the delay and any inconvenience caused.", "Oops, sorry it took so long, our bad!"),
        ("A signature is required upon receipt of the goods.", "You just need to sign for it, that's all."),
    ),
    "the doctor": (
        ("I should like to arrange an appointment with the physician.", "Can I pop in and see the doc sometime?"),
        ("Patients are advised to arrive ten minutes in advance.", "Just turn up a bit early, okay?"),
        (
            "The results of your examination are entirely satisfactory.",
            "Good news, you're fine, nothing to freak about!",
        ),
        ("The medication is to be taken twice daily.", "Take the pills two times a day and you're good."),
    ),
    "the car": (
        ("The vehicle requires extensive repairs.", "Man, this car's a total wreck."),
        ("I am interested in purchasing the automobile.", "Yeah, I'll take the car, it's pretty cool."),
        ("Parking is permitted for residents only.", "Don't park here unless you live here, pal."),
        ("Our mechanic will examine the engine without delay.", "Our guy's gonna check it out right away."),
    ),
    "the school": (
        ("Parents are respectfully reminded of the school regulations.", "Hey folks, don't forget the rules, thanks!"),
        ("Your son's conduct has given cause for concern.", "Your kid's been messing around a lot lately."),
        ("We wish to commend your daughter for her diligence.", "Your girl's doing great, so proud of her!"),
        ("Instruction will recommence on the first of September.", "School's back on in September, bummer!"),
    ),
    "the weather": (
        ("Considerable precipitation is anticipated this weekend.", "Looks like it's gonna pour all weekend, ugh."),
        ("Residents are advised to remain indoors.", "Seriously, just stay home, it's nuts outside."),
        ("The event will be cancelled in the event of rain.", "If it rains we're calling it off, sorry guys!"),
        ("The temperature is exceptionally high for the season.", "It's crazy hot out there, I'm melting!"),
    ),
    "the journey": (
        ("We hope that you had a pleasant journey.", "Hope the trip wasn't too bad, buddy!"),
        ("Passengers are requested to have their tickets ready.", "Get your tickets out, folks, thanks!"),
        ("I shall arrive at the station at approximately six.", "I'll be there around six, see ya!"),
        ("The departure has been delayed owing to technical faults.", "Something broke again, so we're stuck here."),
    ),
    "the computer": (
        ("The device does not function as described in the manual.", "This thing just won't work, it's so dumb."),
        ("We recommend that you update the system regularly.", "Just update it now and then, it's easy."),
        ("I would appreciate your assistance with the installation.", "Can you help me set this up? I'm lost, lol."),
        ("Your password must not be disclosed to any third party.", "Don't tell anybody your password, OK?"),
    ),
    "the restaurant": (
        ("We wish to reserve a table for four persons.", "Hey, got a table for us four tonight?"),
        ("The cuisine of this establishment is most agreeable.", "The food here's really yummy, you guys!"),
        ("I regret to say that the service was inadequate.", "Wow, the waiters there were so bad."),
        ("Gentlemen are requested to wear a jacket.", "Guys, throw on a jacket, it's kind of posh."),
    ),
    "the contract": (
        ("The undersigned parties agree to the following terms.", "OK so here's the deal we all agreed on."),
        ("This agreement may be terminated upon written notice.", "You can drop out anytime, just text us."),
        ("Kindly sign and return the enclosed documents.", "Just sign this stuff and send it back, okay?"),
        ("The conditions set forth herein are binding.", "Yeah, you really have to stick to this stuff."),
    ),
    "the complaint": (
        ("I wish to express my profound dissatisfaction.", "I'm so mad right now, you have no idea."),
        ("We take your concerns with the utmost seriousness.", "We hear you, that really sucks."),
        ("I must insist upon a full reimbursement.", "Just give me my money back already!"),
        ("Please accept our sincere apologies for this error.", "Oh no, we messed up, sorry about that!"),
    ),
    "the gift": (
        ("Please accept this token of our appreciation.", "Got you a little something, hope you like it!"),
        ("I am most obliged to you for the exquisite present.", "Wow, thanks, I totally love it!"),
        ("It was exceedingly kind of you to remember my birthday.", "You remembered my birthday, you're the best!"),
        ("A contribution from each colleague would be welcome.", "Chip in a few bucks if you can, everybody."),
    ),
    "the wedding": (
        ("We have the honour of announcing our marriage.", "We're getting married, can you believe it?"),
        ("Permit me to extend my warmest congratulations.", "Congrats, you two, so happy for you!"),
        ("The ceremony will commence at two o'clock precisely.", "It kicks off at two, so don't sleep in!"),
        ("Regrettably, we must decline your kind invitation.", "Aw, we can't come, so sorry!"),
    ),
    "the library": (
        ("Readers are requested to observe silence at all times.", "Shh, keep quiet in here, people!"),
        ("The volume you borrowed is now overdue.", "Hey, you forgot to bring that book back."),
        ("I would like to renew my membership for another year.", "Can I keep my card for one more year?"),
        ("Beverages may not be consumed on the premises.", "No drinks in here, sorry, guys."),
    ),
    "the bank": (
        ("We hereby confirm the opening of your account.", "Yay, your account's all set up!"),
        ("Your request for a loan is under consideration.", "We're still looking at that loan thing."),
        ("I wish to report the loss of my card.", "Help, I lost my card, what now?"),
        ("Funds may be withdrawn at your convenience.", "You can grab your cash whenever you like."),
    ),
    "the team": (
        ("The squad performed in a most commendable manner.", "Our guys totally rocked it today!"),
        ("Members are obliged to attend all training sessions.", "Come to practice or you're off the team, dude."),
        ("We were defeated by a considerably stronger side.", "They just crushed us, it was brutal."),
        ("It is my privilege to introduce our new captain.", "Meet our new captain, she's super cool!"),
    ),
    "the project": (
        ("The committee has reviewed the proposal with interest.", "We read your idea and it's pretty neat."),
        ("Additional resources will be necessary for completion.", "We need way more stuff to get this done."),
        ("I should be grateful for your comments on the draft.", "Tell me what you think of it, yeah?"),
        ("The results exceeded our expectations considerably.", "It went way better than we thought, wow!"),
    ),
    "the garden": (
        ("Kindly refrain from walking upon the lawn.", "Hey you, get off the grass!"),
        ("The trees are to be pruned in the course of the autumn.", "We'll chop the trees back in the fall, I guess."),
        ("The flowers are in a most regrettable condition.", "The flowers look awful, poor things."),
        ("Permission to use the pond must be obtained beforehand.", "Ask before you jump in the pond, okay?"),
    ),
    "the dog": (
        ("Dogs must be kept on a lead at all times.", "Keep your pup on the leash, okay folks?"),
        ("The animal in question barked throughout the night.", "That silly mutt barked all night long, ugh."),
        ("I wish to notify you that your dog has been located.", "Hey, we found your dog, he's so cute!"),
        ("Owners are responsible for the removal of waste.", "Pick up after your dog, come on, guys."),
    ),
    "the concert": (
        ("The audience is kindly asked to remain seated.", "Stay in your seats, everybody, okay?"),
        ("The performance was of an exceptional standard.", "That gig was totally awesome, wow!"),
        ("Admission is granted only to holders of valid tickets.", "No ticket, no show, sorry, pal."),
        ("We regret to announce the cancellation of the recital.", "Bad news, the show's off, what a bummer."),
    ),
    "the lesson": (
        ("The tutor explained the subject with admirable clarity.", "He made it super easy to get, thanks man!"),
        ("It is imperative that you complete the exercises.", "You really gotta do your homework, kid."),
        ("I must apologise for my absence on Tuesday.", "Sorry I skipped Tuesday, my bad."),
        ("Further instruction may be provided upon request.", "Just yell if you need more help, okay?"),
    ),
}


def formality() -> Task:
    """Formal against informal renderings of 104 messages about 26 things, read where another message begins."""
    examples = []
    for topic, messages in TOPICS.items():
        for (formal, informal), (opening, (answers, distractors)) in zip(messages, OPENINGS, strict=True):
            question = opening.format(topic)
            examples.append(
                Contrast(formal, informal, group=topic, question=question, answers=answers, distractors=distractors)
            )
    return Task(
        "formality",
        tuple(examples),
        about="whether a message is written formally or informally",
        poles=("formal", "informal"),
        instruction="This is a formal letter in polite, official language.",
        source="set-up of Rao and Tetreault 2018, arXiv 1803.06535; texts by Trimtab",
    )
