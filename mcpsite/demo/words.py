"""The vocabulary of the demo company: people of many places, products with prices, what customers write about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Country:
    """Where customers live; `share` is their relative number, `days` the time of a parcel, `shipping` its price."""

    code: str
    language: str
    share: int
    days: tuple[int, int]
    shipping: str
    cities: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """One article: price in euros, weight in kilograms."""

    category: str
    name: str
    price: str
    weight: str


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _country(code: str, language: str, share: int, days: tuple[int, int], shipping: str, *lists: str) -> Country:
    cities, first, last = map(_split, lists)
    return Country(code, language, share, days, shipping, cities, first, last)


COUNTRIES = (
    _country(
        "DE", "de", 24, (1, 3), "4.90",
        "Berlin, Hamburg, München, Köln, Leipzig, Dresden, Freiburg, Bremen",
        "Anna, Jonas, Leonie, Felix, Katharina, Moritz, Sabine, Thomas, Nele, Emre, Aylin, Heike, Matthias, Johanna",
        "Schneider, Vogel, Brandt, Krüger, Neumann, Hoffmann, Lehmann, Aydin, Richter, Böhm, Seidel, Franke, Winkler",
    ),
    _country(
        "FR", "fr", 10, (2, 4), "9.90",
        "Paris, Lyon, Nantes, Toulouse, Lille, Strasbourg",
        "Camille, Louis, Chloé, Antoine, Inès, Mathieu, Aïcha, Julien, Manon, Olivier, Noémie, Karim",
        "Lefèvre, Moreau, Girard, Rousseau, Benali, Fontaine, Chevalier, Marchand, Perrin, Diallo, Gauthier, Renaud",
    ),
    _country(
        "ES", "es", 7, (3, 5), "9.90",
        "Madrid, Barcelona, Valencia, Sevilla, Bilbao",
        "Lucía, Álvaro, Carmen, Javier, Marta, Sergio, Nuria, Iker, Elena, Pablo",
        "García, Romero, Navarro, Iglesias, Ortega, Etxeberria, Campos, Vidal, Serrano, Molina",
    ),
    _country(
        "IT", "it", 7, (3, 5), "9.90",
        "Milano, Torino, Bologna, Napoli, Palermo",
        "Giulia, Matteo, Francesca, Lorenzo, Chiara, Davide, Elisa, Marco, Paola, Stefano",
        "Ricci, Conti, Ferrari, Galli, Lombardi, Esposito, Marchetti, Rinaldi, Caruso, Bianchi",
    ),
    _country(
        "NL", "nl", 6, (1, 3), "7.90",
        "Amsterdam, Utrecht, Rotterdam, Groningen",
        "Sanne, Daan, Fleur, Bram, Lotte, Sem, Naima, Thijs, Marieke, Joost",
        "de Vries, Jansen, van Dijk, Bakker, Visser, Smit, El Idrissi, Mulder, de Boer, Kuipers",
    ),
    _country(
        "PL", "pl", 6, (2, 4), "8.90",
        "Warszawa, Kraków, Gdańsk, Wrocław, Poznań",
        "Agnieszka, Paweł, Magdalena, Tomasz, Zofia, Piotr, Karolina, Michał, Ewa, Łukasz",
        "Nowak, Kowalczyk, Woźniak, Mazur, Krawczyk, Dudek, Pawlak, Wójcik, Szewczyk, Lis",
    ),
    _country(
        "SE", "sv", 4, (2, 5), "9.90",
        "Stockholm, Göteborg, Malmö, Uppsala",
        "Elin, Oskar, Maja, Erik, Saga, Johan, Linnea, Anders, Freja, Amir",
        "Lindqvist, Johansson, Bergström, Åkesson, Nyström, Sjöberg, Holm, Hassan, Wallin, Ek",
    ),
    _country(
        "CZ", "cs", 3, (2, 4), "8.90",
        "Praha, Brno, Ostrava, Plzeň",
        "Tereza, Jakub, Lenka, Ondřej, Markéta, Vojtěch, Zuzana, Petr",
        "Krejčí, Martinů, Janů, Petrů, Pavlů, Kočí, Dolejší, Hořejší",
    ),
    _country(
        "GR", "el", 2, (4, 7), "11.90",
        "Athína, Thessaloníki, Pátra",
        "Eleni, Nikos, Maria, Giorgos, Sofia, Dimitris, Katerina, Yannis",
        "Georgiou, Vasileiou, Alexiou, Economou, Ioannou, Dimitriou, Athanasiou, Nikolaou",
    ),
    _country(
        "UA", "uk", 2, (5, 9), "14.90",
        "Kyiv, Lviv, Odesa, Kharkiv",
        "Oksana, Andriy, Iryna, Taras, Natalia, Bohdan, Yulia, Mykola",
        "Shevchenko, Kovalenko, Bondarenko, Tkachenko, Melnyk, Petrenko, Hrytsenko, Lysenko",
    ),
    _country(
        "GB", "en", 10, (3, 6), "12.90",
        "London, Manchester, Bristol, Leeds, Glasgow, Cardiff",
        "Olivia, Harry, Amelia, Callum, Priya, Owen, Fatima, George, Imogen, Kwame, Niamh, Rhys",
        "Taylor, Hughes, Patel, Campbell, Ahmed, Whitfield, Okafor, Davies, Murray, Clarke, Begum, Reid",
    ),
    _country(
        "US", "en", 9, (6, 11), "24.90",
        "New York, Chicago, Austin, Seattle, Portland, Denver, Atlanta",
        "Emily, Marcus, Sofia, Tyler, Grace, Darnell, Hannah, Luis, Mei, Caleb, Naomi, Diego",
        "Johnson, Ramirez, Nguyen, Sullivan, Washington, Cohen, Park, Anderson, Rivera, Brooks, Chen, Murphy",
    ),
    _country(
        "CA", "en", 3, (7, 12), "26.90",
        "Toronto, Montréal, Vancouver, Halifax",
        "Claire, Ethan, Simone, Liam, Harpreet, Noah, Geneviève, Winston",
        "Tremblay, MacDonald, Singh, Gagnon, Wong, Fraser, Bouchard, Campbell",
    ),
    _country(
        "IN", "en", 3, (8, 14), "24.90",
        "Bengaluru, Mumbai, Pune, Delhi, Chennai",
        "Ananya, Rohan, Kavya, Vikram, Meera, Aditya, Lakshmi, Imran, Sneha, Arun",
        "Iyer, Sharma, Reddy, Kulkarni, Nair, Banerjee, Khan, Desai, Menon, Gupta",
    ),
    _country(
        "JP", "ja", 2, (7, 11), "27.90",
        "Tokyo, Osaka, Kyoto, Sapporo",
        "Yuki, Haruto, Aoi, Kenji, Sakura, Daichi, Emi, Takumi",
        "Tanaka, Sato, Watanabe, Kobayashi, Mori, Fujita, Ishikawa, Hayashi",
    ),
    _country(
        "KR", "ko", 1, (7, 11), "27.90",
        "Seoul, Busan, Daegu",
        "Ji-woo, Min-jun, Seo-yeon, Hyun-woo, Eun-ji, Dong-hyun",
        "Kim, Lee, Park, Choi, Jung, Kang",
    ),
    _country(
        "BR", "pt", 2, (9, 16), "29.90",
        "São Paulo, Recife, Curitiba, Porto Alegre",
        "Beatriz, Rafael, Juliana, Thiago, Larissa, Gustavo, Camila, João",
        "Silva, Oliveira, Souza, Pereira, Almeida, Nascimento, Barbosa, Teixeira",
    ),
    _country(
        "NG", "en", 1, (9, 16), "31.90",
        "Lagos, Abuja, Ibadan",
        "Adaeze, Chinedu, Folake, Emeka, Zainab, Tunde",
        "Adeyemi, Okonkwo, Balogun, Eze, Bello, Nwosu",
    ),
    _country(
        "TR", "tr", 2, (5, 9), "15.90",
        "İstanbul, Ankara, İzmir",
        "Zeynep, Mehmet, Elif, Can, Ayşe, Burak, Selin, Kerem",
        "Demir, Kaya, Çelik, Şahin, Arslan, Doğan, Aksoy, Öztürk",
    ),
    _country(
        "MX", "es", 1, (9, 15), "29.90",
        "Ciudad de México, Guadalajara, Monterrey",
        "Ximena, Emiliano, Valeria, Santiago, Regina, Mateo",
        "Hernández, Cruz, Flores, Mendoza, Salazar, Ríos",
    ),
)  # fmt: skip

COMPANIES = _split(
    "Studio, Partners, Consulting, Workshop, Logistics, Design, Engineering, Bakery, Travel, Architects, Clinic, "
    "Films, Books, Hotel, School"
)

_CATALOGUE = """
Coffee
Nera espresso machine|389.00|9.8
Nera Mini espresso machine|249.00|6.1
Piko hand grinder|59.90|0.6
Volta burr grinder|149.00|3.2
Drift pour-over set|44.90|0.9
Drift paper filters, 100 pieces|6.90|0.2
Kessel gooseneck kettle|89.00|1.4
Tasso cup, set of 4|32.00|1.5
Crema milk frother|39.90|0.7
Nordlys coffee beans, 1 kg|21.90|1.0
Nera descaling kit|12.90|0.4
Kettle scale with timer|49.00|0.8
Lighting
Halo desk lamp|79.00|1.9
Halo floor lamp|159.00|6.4
Lumen bedside lamp|54.00|1.1
Glim string lights, 10 m|29.90|0.8
Arc reading light|34.90|0.3
Pine pendant lamp|119.00|2.7
Flux smart bulb E27|18.90|0.1
Flux smart bulb E14|17.90|0.1
Flux light strip, 3 m|46.00|0.5
Lantern No. 4, rechargeable|64.00|0.9
Motion night light, pair|24.90|0.3
Studio clamp lamp|69.00|1.6
Audio
Orbit wireless headphones|179.00|0.3
Orbit Pro wireless headphones|279.00|0.3
Pebble earbuds|99.00|0.1
Pebble Sport earbuds|119.00|0.1
Boulder portable speaker|139.00|1.2
Boulder Mini speaker|69.00|0.5
Shelf speakers, pair|329.00|8.6
Radio Emil|149.00|2.2
Record player No. 2|299.00|5.9
USB microphone Vox|109.00|0.9
Headphone stand, oak|36.00|0.7
Earbud tips, 3 sizes|9.90|0.1
Smart home
Thermo radiator valve|59.00|0.3
Thermo starter set|169.00|1.0
Hub One|89.00|0.4
Door sensor, pair|34.90|0.1
Leak sensor|29.90|0.1
Plug Watt, metering socket|24.90|0.2
Doorbell cam Iris|149.00|0.5
Indoor cam Iris Mini|69.00|0.3
Smoke alarm Ember|44.90|0.3
Air monitor Aura|119.00|0.4
Smart lock Latch|219.00|0.9
Remote button, set of 2|27.90|0.1
Bags
Commuter backpack 20 l|109.00|1.1
Commuter backpack 26 l|129.00|1.3
Weekender duffel 45 l|149.00|1.6
Roll-top backpack Tide|139.00|1.2
Messenger bag Courier|99.00|1.0
Cabin trolley Roam|189.00|3.1
Laptop sleeve 14 inch|39.00|0.3
Packing cubes, set of 3|34.00|0.4
Tote bag, canvas|24.00|0.3
Toiletry bag Fold|36.00|0.3
Rain cover|19.90|0.1
Key organiser|22.00|0.1
Camping
Ridge tent for 2|299.00|2.6
Ridge tent for 4|449.00|4.9
Ember gas stove|64.00|0.4
Cirrus sleeping pad|89.00|0.6
Cirrus sleeping bag, 3 seasons|169.00|1.3
Trail cook set|59.00|0.9
Folding chair Perch|74.00|1.8
Head torch Beam|44.00|0.1
Water filter Spring|49.90|0.3
Hammock Sway|69.00|0.8
Enamel mug|14.90|0.2
Tent pegs, 10 pieces|16.90|0.3
Cycling
City bike light set|49.00|0.2
Helmet Arco|89.00|0.4
Helmet Arco Kids|59.00|0.3
Folding lock 90 cm|79.00|1.3
Pannier pair Haul|139.00|2.1
Handlebar bag|54.00|0.5
Floor pump Puff|44.90|1.6
Multi-tool 14 in 1|27.90|0.2
Phone mount|32.00|0.2
Rain cape|69.00|0.5
Bell, brass|18.00|0.1
Tubeless repair kit|21.90|0.2
Kitchen
Cast-iron pan 28 cm|79.00|3.4
Chef's knife 20 cm|94.00|0.3
Knife sharpener|34.90|0.4
Stand blender Whirl|129.00|3.9
Hand blender Whirl|59.00|1.0
Dutch oven 5 l|139.00|5.6
Bread box, beech|54.00|2.3
Kitchen scale|29.90|0.6
Storage jars, set of 6|42.00|3.2
Cutting board, walnut|64.00|1.9
Carbon-steel wok|69.00|1.8
Tea towel, set of 3|19.90|0.3
Office
Standing desk Rise|549.00|38.0
Office chair Lean|389.00|17.5
Monitor arm|99.00|3.4
Laptop stand|49.00|0.9
Keyboard Quiet|89.00|0.8
Mouse Quiet|45.00|0.1
Desk mat, felt|34.00|0.5
Notebook, dotted, 3 pieces|18.90|0.6
Fountain pen|39.00|0.1
Cable tray|29.90|1.1
Webcam Clear|119.00|0.2
Docking station Port|169.00|0.6
Garden
Raised bed, larch|119.00|14.0
Watering can 8 l|39.00|1.1
Secateurs|34.90|0.3
Irrigation set Drip|64.00|1.4
Plant pot, set of 3|44.00|4.8
Bird feeder|29.90|0.9
Fire bowl 60 cm|129.00|9.7
Garden gloves|14.90|0.1
Compost bin|69.00|4.2
Solar path lights, 6 pieces|49.00|1.3
Hand trowel|17.90|0.3
Herb seeds, collection|12.90|0.1
"""


def _products() -> tuple[Product, ...]:
    found, category = [], ""
    for line in _CATALOGUE.strip().splitlines():
        if "|" not in line:
            category = line
            continue
        name, price, weight = line.split("|")
        found.append(Product(category, name, price, weight))
    return tuple(found)


PRODUCTS = _products()

# category → (what is wrong, what the customer writes, what helped)
DEFECTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Coffee": (
        ("leaks water", "Water collects under it after a few minutes.", "The seal was not seated; we sent a new one."),
        ("does not heat up", "It switches on, but the water stays cold.", "We exchanged it under warranty."),
        ("a part is missing", "The box held everything but the small parts on page 3.", "We sent the missing parts."),
    ),
    "Lighting": (
        ("flickers", "It flickers as soon as I dim it below half.", "The firmware of the dimmer had to be updated."),
        (
            "does not switch on",
            "I tried two sockets; it stays dark.",
            "The power supply was faulty; we sent a new one.",
        ),
    ),
    "Audio": (
        (
            "left side is silent",
            "After a week there is no sound on the left.",
            "A reset helped: hold both buttons for 10 s.",
        ),
        (
            "does not charge",
            "The charging light blinks red and the battery stays empty.",
            "We exchanged it under warranty.",
        ),
        ("connection breaks off", "The connection drops every few minutes on my phone.", "Firmware 2.3 solved it."),
    ),
    "Smart home": (
        (
            "cannot be paired",
            "The app searches for ever and does not find it.",
            "Wi-Fi had to be on 2.4 GHz for the pairing.",
        ),
        (
            "battery is empty after a week",
            "I changed the batteries twice this month.",
            "Firmware 1.8 mends the standby mode.",
        ),
        (
            "goes offline",
            "It goes offline every night at about two.",
            "The router restarted at night; a fixed address helped.",
        ),
    ),
    "Bags": (
        ("zip is broken", "The main zip split open on the second day.", "We exchanged it under warranty."),
        (
            "colour differs from the picture",
            "I ordered moss green, this is rather grey.",
            "Please send it back; the label is attached.",
        ),
    ),
    "Camping": (
        ("lets water in", "After one night of rain the inside was wet.", "We sent seam sealer and a guide."),
        ("a pole is bent", "One of the parts arrived bent and does not fit.", "We sent a spare part."),
    ),
    "Cycling": (
        ("does not fit", "It does not fit, although I measured as described.", "We exchanged it for the other size."),
        ("is loose after a week", "The clamp loosens on cobblestones.", "We sent the improved clamp."),
    ),
    "Kitchen": (
        (
            "arrived with a crack",
            "There is a hairline crack on the side.",
            "We sent a new one; the broken one need not come back.",
        ),
        (
            "rusts",
            "There is rust after the first wash.",
            "It must not go into the dishwasher; see our care guide.",
        ),
    ),
    "Office": (
        ("wobbles", "On the highest setting it wobbles.", "A cross bar was missing; we sent it."),
        ("makes noise", "It squeaks with every movement.", "A drop of oil at the hinge helped."),
    ),
    "Garden": (
        ("is broken", "One of the parts was broken when I opened the box.", "We sent a spare part."),
        ("instructions are missing", "There were no instructions in the box.", "We sent the instructions as a PDF."),
    ),
}

GREETINGS = {
    "de": "Guten Tag", "fr": "Bonjour", "es": "Hola", "it": "Buongiorno", "nl": "Goedemiddag", "pl": "Dzień dobry",
    "sv": "Hej", "cs": "Dobrý den", "el": "Kaliméra", "uk": "Dobryi den", "en": "Hello", "ja": "Konnichiwa",
    "ko": "Annyeonghaseyo", "pt": "Olá", "tr": "Merhaba",
}  # fmt: skip

AGENTS = ("Maria Santos", "Ben Fischer", "Aisha Rahman", "Tomás Herrera", "Grace Obi", "Linh Tran")

# What does not hang on an order: subject, question, answer.
QUESTIONS = (
    ("Is the {product} available again soon?", "It has been sold out for a while. When do you expect it?",
     "The next delivery is planned for the end of the month. I have put you on the list."),
    ("Question before buying: {product}", "Is it suitable for daily use, and how long is the warranty?",
     "Yes, it is made for that, and the warranty is three years."),
    ("I cannot log in to my account", "The page says that my password is wrong, but I am sure of it.",
     "I have sent you a link to set a new password; it is valid for an hour."),
    ("Please change my e-mail address", "I have a new address and would like to use it for my account.",
     "I have sent a confirmation to both addresses. After a click it is changed."),
    ("Unsubscribe from the newsletter", "I get it twice a week and cannot find the link.",
     "You are off the list. It can take a day until the last one has gone out."),
    ("Discount for schools?", "We would like to order twenty pieces of {product}. Is there a discount?",
     "From ten pieces on we give 12 %. I have sent you an offer."),
)  # fmt: skip

CARRIERS = ("DHL", "DPD", "GLS", "UPS")


@dataclass(frozen=True, slots=True)
class Topic:
    """How a ticket about an order goes: the customer's words, the desk's question and its answer, the way it ends."""

    subject: str
    opening: str
    question: str
    answer: str
    solution: str
    priorities: tuple[str, ...]


TOPICS = {
    "cancel": Topic(
        "Please cancel order {number}",
        "I ordered {product} by mistake. Please cancel the order, it has not been shipped yet.",
        "Shall we cancel the whole order or only this article?",
        "The whole order, please.",
        "The order is cancelled, and the money is on its way back to you.",
        ("urgent", "high", "high"),
    ),
    "when": Topic(
        "When will order {number} be shipped?",
        "I have ordered {product} and have no tracking number yet. Is everything all right?",
        "It is being packed. Would you rather wait, or take another colour that we can send today?",
        "I can wait, thank you.",
        "It leaves our warehouse with the next collection. You get the tracking number by e-mail.",
        ("normal", "low"),
    ),
    "address": Topic(
        "Change of address for order {number}",
        "I have moved. Can you still send {product} to my new address in {city}?",
        "Of course. Please send us the street and the postal code.",
        "I have put both into my account just now.",
        "The new address is on the label.",
        ("high", "normal"),
    ),
    "where": Topic(
        "Where is order {number}?",
        "The tracking of {carrier} ({tracking}) has not changed for two days. Where is {product}?",
        "I have asked {carrier}. Could you confirm that the address in {city} is right?",
        "Yes, the address is right.",
        "{carrier} has found the parcel: {whereabouts}.",
        ("normal", "normal", "high"),
    ),
    "late": Topic(
        "Order {number} is late",
        "{product} should have arrived days ago. {carrier} says only that {tracking} is delayed.",
        "I am sorry. We have opened an inquiry at {carrier}. Shall we send it again meanwhile?",
        "Please wait for the inquiry first.",
        "The inquiry is closed: {whereabouts}.",
        ("urgent", "high"),
    ),
    "defect": Topic(
        "{product} {problem}",
        "I bought {product} with order {number}. {symptom}",
        "I am sorry to hear that. Could you send us a photo and tell us since when?",
        "The photo is attached. It began a few days ago.",
        "{remedy}",
        ("normal", "normal", "high"),
    ),
    "damaged": Topic(
        "{product} arrived damaged",
        "The parcel of order {number} was dented, and {product} has a scratch.",
        "Could you send us a photo of the parcel? {carrier} needs it for the claim.",
        "Here are two photos.",
        "We send a new one and settle the claim with {carrier}.",
        ("urgent", "high", "high", "normal"),
    ),
    "return": Topic(
        "I would like to send {product} back",
        "{product} of order {number} is not what I expected. How do I send it back?",
        "No problem. Is it unused and in its box?",
        "Yes, it is as good as new.",
        "I have sent you the label. The money comes back as soon as the parcel is here.",
        ("low", "normal"),
    ),
    "invoice": Topic(
        "Invoice for order {number}",
        "I need an invoice with our company's name and VAT number for {product}.",
        "Gladly. Which VAT number shall be on it?",
        "It is in my account, I have just added it.",
        "The invoice is in your account, and I have sent a copy by e-mail.",
        ("low", "low", "normal"),
    ),
    "pickup": Topic(
        "Can a friend collect order {number}?",
        "I am away this week. May somebody else collect {product} in your shop?",
        "Yes, with a copy of your ID. What is the name?",
        "My neighbour comes; I have sent the name by e-mail.",
        "It is noted. The shop hands it over against the order number.",
        ("low", "normal"),
    ),
}
