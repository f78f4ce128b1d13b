"""The words of generated text: themes, each with a genre name and words that carry it, and words that carry none.

The synthetic data set, ``sbert-nano`` and ``opt-nano`` all write with these words. They were chosen by hand.
"""

THEMES: dict[str, tuple[str, ...]] = {
    theme: tuple(words.split())
    for theme, words in {
        "Space": "galaxy orbit comet nebula starship lunar cosmic asteroid rocket astronaut saturn eclipse meteor satellite void solar martian station gravity pulsar",
        "Western": "saddle outlaw cowboy prairie sheriff canyon bandit ranch frontier mustang saloon stagecoach dusty gunslinger desert spur lasso gulch bounty wagon",
        "Ocean": "tide reef coral whale harbor anchor lagoon mermaid sailor dolphin wave shipwreck captain current pearl island abyss seashell lighthouse kraken",
        "Mystery": "clue detective riddle cipher suspect alibi secret witness inspector vanish footprint motive locked puzzle whisper stranger shadow evidence missing dossier",
        "Horror": "ghost crypt haunted vampire curse demon scream nightmare graveyard phantom coffin zombie possessed asylum creeping wicked haunting grave bloody ghoul",
        "Romance": "kiss sweetheart lover bride valentine embrace tender heartbeat longing wedding passion darling proposal devoted charming affection beloved serenade blush courtship",
        "Racing": "engine turbo circuit lap throttle podium rally nitro drift speedway piston chassis overtake grid pitstop tire gearbox slipstream racer asphalt",
        "Music": "melody guitar concert chorus rhythm violin jazz anthem ballad encore orchestra drummer symphony tempo lyric piano trumpet quartet acoustic refrain",
        "Cooking": "recipe kitchen spice oven chef flavor banquet skillet pastry simmer bakery garlic feast dessert saucepan butter seasoning roast appetizer delicious",
        "Fantasy": "dragon wizard elf sorcerer enchanted rune castle goblin spell griffin quest prophecy amulet kingdom druid unicorn warlock realm phoenix mystic",
        "War": "battle soldier trench regiment siege cannon infantry general battalion armor bunker victory ambush sergeant fortress convoy artillery brigade medal truce",
        "Sports": "goal stadium referee league coach tournament champion dribble striker playoff batter pitcher goalkeeper trophy sprint locker scoreboard underdog teammate marathon",
        "Nature": "forest river meadow blossom wildflower mountain waterfall glacier moss orchard valley evergreen pasture brook sunrise autumn willow woodland fern canopy",
        "Robots": "android circuitry cyborg automaton gear machine synthetic laser drone mechanical steel titanium processor servo prototype neural chrome hydraulic sensor magnet",
        "Comedy": "laugh prank clown giggle hilarious joke slapstick silly banana goofy punchline mischief blunder parody witty awkward jester ridiculous chuckle buffoon",
        "History": "empire dynasty pharaoh emperor ancient medieval scroll conquest monarch revolution relic pyramid gladiator colony treaty archive senate tomb heritage chronicle",
        "Crime": "heist mafia gangster robbery cartel vault smuggler safehouse hustle undercover fugitive ransom forgery syndicate informant convict loot getaway blackmail mobster",
        "Animals": "puppy kitten wolf falcon tiger elephant rabbit pony panda otter fox penguin bear hedgehog lion squirrel parrot deer turtle koala",
        "Winter": "snow frost blizzard sled icicle glove mitten avalanche parka ski arctic tundra polar chill igloo snowman frozen scarf hearth december",
        "Martial": "ninja samurai katana dojo shogun karate kungfu monk blade sensei kimono bamboo warrior discipline nunchaku temple honor strike lotus dagger",
        "Garden": "seedling tulip trowel compost rose greenhouse lavender hedge sprout petal watering daisy trellis vine pruning harvest soil basil sunflower mulch",
        "Fashion": "velvet silk couture runway designer boutique satin ribbon gown jewel lace elegant corset handbag stiletto perfume tailor sequin glamour cashmere",
        "Magic": "illusion wand potion cauldron mirror levitate conjure cloak trickster cards conjurer vanishing alchemy crystal stage hypnotic familiar charm witchcraft magician",
        "Travel": "passport journey voyage backpack compass railway airport suitcase caravan hostel souvenir itinerary border expedition nomad horizon ferry atlas explorer postcard",
    }.items()
}

PLAIN: tuple[str, ...] = tuple(
    "last first golden silver lost hidden broken silent little great endless rising falling burning distant forgotten "
    "eternal final new old dark bright red blue green black white crimson night day dream world story legend return "
    "edition volume part two three seven nine hundred road house city light song game heart king queen child brother "
    "sister father mother friend hunter master maker keeper tale tales chronicles adventure days nights years hour "
    "beyond under over after before without inside classic deluxe original complete collection special series season "
    "beginning end land home street gate window door bridge tower stone iron glass paper water fire wind sky "
    "morning evening summer spring set pack box kit pro mini mega super ultra plus one".split()
)
"""Words of titles and descriptions that say nothing of a theme."""

FUNCTION: tuple[str, ...] = tuple(
    "the of and in a to with for from on at by is it this that an as its into about who where when all every "
    "you your one more most than has have will can be are was were their them they his her".split()
)
"""Words between the words."""
