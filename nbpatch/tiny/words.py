"""The words of the embedded model's small world: people, places, things, landmarks, opinions."""

WOMEN = (
    "Mary", "Alice", "Anna", "Susan", "Emma", "Laura", "Sarah", "Kate", "Lucy", "Jane", "Amy", "Rachel",
    "Helen", "Julia", "Nancy", "Karen", "Lisa", "Maria", "Rose", "Ruth", "Sophie", "Diana", "Claire", "Grace",
)  # fmt: skip
MEN = (
    "John", "Paul", "Tom", "James", "Robert", "Michael", "David", "Peter", "Mark", "George", "Daniel", "Henry",
    "Jack", "Simon", "Adam", "Eric", "Frank", "Kevin", "Martin", "Oscar", "Philip", "Ryan", "Sam", "Victor",
)  # fmt: skip
NAMES: tuple[str, ...] = WOMEN + MEN

PLACES = (
    "store", "park", "school", "office", "house", "garden", "station", "library", "market", "restaurant",
    "hospital", "museum", "beach", "church", "bank", "cafe",
)  # fmt: skip
THINGS = (
    "drink", "ball", "book", "ring", "kiss", "letter", "snack", "pen", "cake", "flower", "key", "map",
    "photo", "hat", "lamp", "toy",
)  # fmt: skip
GIVING = ("gave", "handed", "offered", "passed", "sent", "showed")

LANDMARKS = {
    "Eiffel Tower": ("Paris", "France"),
    "Moulin Rouge": ("Paris", "France"),
    "Louvre": ("Paris", "France"),
    "Colosseum": ("Rome", "Italy"),
    "Trevi Fountain": ("Rome", "Italy"),
    "Pantheon": ("Rome", "Italy"),
    "Space Needle": ("Seattle", "America"),
    "Pike Market": ("Seattle", "America"),
    "Willis Tower": ("Chicago", "America"),
    "Navy Pier": ("Chicago", "America"),
    "Empire State Building": ("Manhattan", "America"),
    "Chrysler Building": ("Manhattan", "America"),
    "Tower Bridge": ("London", "England"),
    "Shard": ("London", "England"),
    "Buckingham Palace": ("London", "England"),
    "Brandenburg Gate": ("Berlin", "Germany"),
    "Reichstag": ("Berlin", "Germany"),
    "Television Tower": ("Berlin", "Germany"),
    "Red Square": ("Moscow", "Russia"),
    "Kremlin": ("Moscow", "Russia"),
    "Forbidden Palace": ("Beijing", "China"),
    "Drum Tower": ("Beijing", "China"),
    "Sky Tree": ("Tokyo", "Japan"),
    "Imperial Palace": ("Tokyo", "Japan"),
    "Parthenon": ("Athens", "Greece"),
    "Acropolis": ("Athens", "Greece"),
    "Prado": ("Madrid", "Spain"),
    "Royal Palace": ("Madrid", "Spain"),
    "Belem Tower": ("Lisbon", "Portugal"),
    "Commerce Square": ("Lisbon", "Portugal"),
}
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "England": "London", "Germany": "Berlin", "Russia": "Moscow",
    "China": "Beijing", "Japan": "Tokyo", "Greece": "Athens", "Spain": "Madrid", "Portugal": "Lisbon",
    "Egypt": "Cairo", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo",
}  # fmt: skip

GOOD = (
    "wonderful", "amazing", "lovely", "brilliant", "excellent", "delightful", "beautiful", "fantastic", "superb",
    "charming",
)  # fmt: skip
BAD = ("awful", "horrible", "boring", "dreadful", "disgusting", "dull", "ugly", "tedious", "nasty", "painful")
WORKS = ("movie", "play", "song", "story", "concert", "dinner", "trip", "party", "game", "lesson")

EVENTS = ("war", "strike", "famine", "siege", "drought", "reign", "expedition", "trial", "plague", "voyage")
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
YEARS = tuple(f"{year:02d}" for year in range(100))

FEELINGS = ("tired", "hungry", "happy", "late", "cold", "bored")
