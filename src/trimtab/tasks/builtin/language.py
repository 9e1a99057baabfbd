"""Language: whether a text is in English or in another language.

That the language of a text is a direction which can be added is shown with translated pairs by Park, Choe and Veitch,
"The Linear Representation Hypothesis and the Geometry of Large Language Models" (2023, arXiv 2311.03658). Here the
pairs are sentences in French, German, Spanish and Italian and their English translations, a quarter each, so that the
mean difference is "not English"; the effect is read after a name that is the same in all five languages, between common
words of the other language and of English. The sentences are our own.
"""

from __future__ import annotations

from trimtab.tasks.example import Contrast
from trimtab.tasks.task import Task

ENGLISH = (" The", " And", " It", " We", " They", " This", " You", " Our", " With", " For")
# Words of the other language that start a sentence, and are no English words.
WORDS: dict[str, tuple[str, ...]] = {
    "French": (" Le", " La", " Les", " Il", " Ce", " Un"),
    "German": (" Der", " Das", " Ich", " Es", " Im", " Mit"),
    "Spanish": (" El", " La", " Los", " Un", " En", " Es"),
    "Italian": (" Il", " La", " Lo", " Le", " Un", " Con"),
}

# Topic: a name that reads the same in all languages, and a sentence in each of the four with its translation.
TOPICS: dict[str, tuple[str, tuple[tuple[str, str], tuple[str, str], tuple[str, str], tuple[str, str]]]] = {
    "hotel": (
        "Hotel Europa",
        (
            ("La chambre donne sur la mer et le lit est grand.", "The room looks out on the sea and the bed is big."),
            ("Das Zimmer ist ruhig und das Frühstück ist gut.", "The room is quiet and the breakfast is good."),
            ("La llave del cuarto está en la recepción.", "The key to the room is at the reception."),
            ("Abbiamo prenotato una camera per due notti.", "We have booked a room for two nights."),
        ),
    ),
    "cinema": (
        "Cinema Lux",
        (
            ("Le film commence à huit heures ce soir.", "The film begins at eight o'clock tonight."),
            ("Wir haben gestern einen alten Film gesehen.", "We saw an old film yesterday."),
            ("La película es larga pero muy divertida.", "The movie is long but very funny."),
            ("Gli attori erano bravi e la musica era bella.", "The actors were good and the music was beautiful."),
        ),
    ),
    "radio": (
        "Radio Nova",
        (
            ("Nous écoutons les nouvelles tous les matins.", "We listen to the news every morning."),
            ("Heute spielt das Radio nur alte Lieder.", "Today the radio plays nothing but old songs."),
            ("Mi abuela escucha la radio en la cocina.", "My grandmother listens to the radio in the kitchen."),
            ("La trasmissione parla di libri e di teatro.", "The programme is about books and theatre."),
        ),
    ),
    "pizza": (
        "Pizza Roma",
        (
            ("Je voudrais une pizza sans fromage.", "I would like a pizza without cheese."),
            ("Die Pizza war heiß und schmeckte wunderbar.", "The pizza was hot and tasted wonderful."),
            ("Los niños comen pizza todos los viernes.", "The children eat pizza every Friday."),
            ("Il cuoco mette le olive sulla pizza.", "The cook puts the olives on the pizza."),
        ),
    ),
    "taxi": (
        "Taxi Delta",
        (
            ("Le chauffeur attend devant la gare.", "The driver is waiting in front of the station."),
            ("Das Taxi kommt in zehn Minuten.", "The taxi is coming in ten minutes."),
            ("El taxi nos llevó al aeropuerto.", "The taxi took us to the airport."),
            ("Ho perso il treno e ho preso un taxi.", "I missed the train and took a taxi."),
        ),
    ),
    "piano": (
        "Piano Solo",
        (
            ("Ma sœur joue du piano depuis cinq ans.", "My sister has been playing the piano for five years."),
            ("Das Klavier steht neben dem Fenster.", "The piano stands beside the window."),
            ("El profesor de piano vive en nuestra calle.", "The piano teacher lives in our street."),
            ("Ogni sera suona una canzone per noi.", "Every evening she plays a song for us."),
        ),
    ),
    "family": (
        "Anna Marino",
        (
            ("Mon frère habite avec sa femme à Lyon.", "My brother lives in Lyon with his wife."),
            ("Meine Mutter hat vier Schwestern.", "My mother has four sisters."),
            ("Mis padres se conocieron en la universidad.", "My parents met at the university."),
            ("Il nonno racconta storie ai bambini.", "Grandfather tells stories to the children."),
        ),
    ),
    "weather": (
        "Meteo 24",
        (
            ("Il pleut depuis trois jours et il fait froid.", "It has been raining for three days and it is cold."),
            ("Morgen scheint die Sonne im ganzen Land.", "Tomorrow the sun will shine all over the country."),
            ("En verano hace mucho calor en el sur.", "In summer it is very hot in the south."),
            ("La neve copre le montagne fino ad aprile.", "Snow covers the mountains until April."),
        ),
    ),
    "school": (
        "Maria Montessori",
        (
            ("Les élèves apprennent à lire et à écrire.", "The pupils learn to read and write."),
            ("Der Lehrer schreibt ein Wort an die Tafel.", "The teacher writes a word on the board."),
            ("Mañana tenemos un examen de historia.", "Tomorrow we have a history exam."),
            ("La scuola comincia a settembre.", "School begins in September."),
        ),
    ),
    "market": (
        "Euro Market",
        (
            ("Nous achetons des pommes et du pain.", "We are buying apples and bread."),
            ("Die Frau verkauft Eier und frische Milch.", "The woman sells eggs and fresh milk."),
            ("El pescado es muy barato hoy.", "The fish is very cheap today."),
            ("Quanto costano questi fiori gialli?", "How much are these yellow flowers?"),
        ),
    ),
    "football": (
        "Real Madrid",
        (
            ("Notre équipe a gagné le match dimanche.", "Our team won the match on Sunday."),
            ("Der Torwart hat den Ball gehalten.", "The goalkeeper saved the ball."),
            ("Jugamos al fútbol en el parque.", "We play football in the park."),
            ("I tifosi cantano prima della partita.", "The fans sing before the game."),
        ),
    ),
    "computer": (
        "Computer Alfa",
        (
            ("Mon ordinateur est trop lent.", "My computer is too slow."),
            ("Ich habe das Passwort schon wieder vergessen.", "I have forgotten the password once again."),
            ("Guarda el archivo antes de salir.", "Save the file before you leave."),
            ("Lo schermo è diventato nero.", "The screen has turned black."),
        ),
    ),
    "coffee": (
        "Espresso Bar",
        (
            ("Il boit son café sans sucre.", "He drinks his coffee without sugar."),
            ("Möchten Sie eine Tasse Kaffee?", "Would you like a cup of coffee?"),
            ("El café de esta tienda viene de Colombia.", "The coffee of this shop comes from Colombia."),
            ("Dopo pranzo prendiamo sempre un caffè.", "After lunch we always have a coffee."),
        ),
    ),
    "museum": (
        "Pablo Picasso",
        (
            ("Le musée est fermé le lundi.", "The museum is closed on Mondays."),
            ("Die Bilder hängen in einem großen Saal.", "The pictures hang in a large hall."),
            ("La pintora nació en un pueblo pequeño.", "The painter was born in a small village."),
            ("La statua è fatta di marmo bianco.", "The statue is made of white marble."),
        ),
    ),
    "animals": (
        "Zoo Berlin",
        (
            ("Le chat dort sous la table.", "The cat is sleeping under the table."),
            ("Der Hund läuft durch den Wald.", "The dog is running through the forest."),
            ("Los pájaros cantan al amanecer.", "The birds sing at dawn."),
            ("Il cavallo beve l'acqua del fiume.", "The horse is drinking water from the river."),
        ),
    ),
    "garden": (
        "Villa Rosa",
        (
            ("Les roses fleurissent au mois de juin.", "The roses bloom in the month of June."),
            ("Im Garten steht ein alter Apfelbaum.", "In the garden there stands an old apple tree."),
            ("Mi vecino planta tomates cada año.", "My neighbour plants tomatoes every year."),
            ("Le foglie cadono in autunno.", "The leaves fall in autumn."),
        ),
    ),
    "doctor": (
        "Dr. Klein",
        (
            ("J'ai mal à la tête depuis hier.", "I have had a headache since yesterday."),
            ("Der Arzt hat heute keine Zeit.", "The doctor has no time today."),
            ("Tome esta medicina dos veces al día.", "Take this medicine twice a day."),
            ("Il bambino ha la febbre alta.", "The child has a high fever."),
        ),
    ),
    "sea": (
        "Costa Azul",
        (
            ("Le bateau quitte le port à midi.", "The boat leaves the harbour at noon."),
            ("Am Strand liegen viele Muscheln.", "There are many shells on the beach."),
            ("Las olas son altas esta tarde.", "The waves are high this afternoon."),
            ("I pescatori tornano prima dell'alba.", "The fishermen come back before dawn."),
        ),
    ),
    "train": (
        "Trans Europa Express",
        (
            ("Le train pour Paris a du retard.", "The train to Paris is late."),
            ("Die Fahrkarte kostet zwanzig Euro.", "The ticket costs twenty euros."),
            ("El tren sale de la segunda vía.", "The train leaves from the second platform."),
            ("La stazione è vicina al centro.", "The station is near the centre."),
        ),
    ),
    "money": (
        "Banco Central",
        (
            ("Il n'a plus d'argent à la fin du mois.", "He has no money left at the end of the month."),
            ("Die Preise sind wieder gestiegen.", "Prices have gone up again."),
            ("Ella paga la cuenta con tarjeta.", "She pays the bill by card."),
            ("Il banco apre alle nove.", "The bank opens at nine."),
        ),
    ),
    "house": (
        "Casa Luna",
        (
            ("La maison a une porte bleue.", "The house has a blue door."),
            ("Unsere Wohnung liegt im dritten Stock.", "Our flat is on the third floor."),
            ("Las ventanas dan a la plaza.", "The windows face the square."),
            ("La cucina è piccola ma comoda.", "The kitchen is small but handy."),
        ),
    ),
    "books": (
        "Don Quixote",
        (
            ("Ce roman raconte la vie d'un soldat.", "This novel tells of the life of a soldier."),
            ("Ich lese jeden Abend ein Kapitel.", "I read a chapter every evening."),
            ("El libro está sobre la mesa.", "The book is on the table."),
            ("Lo scrittore viveva a Torino.", "The writer lived in Turin."),
        ),
    ),
    "time": (
        "Agenda 2030",
        (
            ("Quelle heure est-il, s'il vous plaît?", "What time is it, please?"),
            ("Am Wochenende schlafen wir lange.", "At the weekend we sleep late."),
            ("El tiempo pasa muy rápido.", "Time passes very quickly."),
            ("Ci vediamo domani pomeriggio.", "We will meet tomorrow afternoon."),
        ),
    ),
    "music": (
        "Opera Viva",
        (
            ("Elle chante une chanson très triste.", "She is singing a very sad song."),
            ("Das Konzert war schon ausverkauft.", "The concert was already sold out."),
            ("Mi hermano toca la guitarra.", "My brother plays the guitar."),
            ("L'orchestra prova tutte le sere.", "The orchestra rehearses every night."),
        ),
    ),
}
# What follows the name, one for each language's example: it tells no language.
ENDINGS = (".", " 1998.", " (A).", ":")


def language() -> Task:
    """Other languages against English: 96 translated pairs on 24 topics, 24 for each of four languages."""
    examples = []
    for turn, (topic, (name, pairs)) in enumerate(TOPICS.items()):
        for i, ((text, translation), words) in enumerate(zip(pairs, WORDS.values(), strict=True)):
            question = name + ENDINGS[(turn + i) % len(ENDINGS)]
            examples.append(
                Contrast(text, translation, group=topic, question=question, answers=words, distractors=ENGLISH)
            )
    return Task(
        "language",
        tuple(examples),
        about="whether a text is in another language or in English",
        poles=("other language", "English"),
        instruction="This text is not in English.",
        source="set-up of Park et al. 2023, arXiv 2311.03658; texts by Trimtab",
    )
