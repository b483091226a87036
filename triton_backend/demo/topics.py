"""Things the demo model can explain, in as many sentences as the request asks for.

One entry a topic (an indented line continues it): how it is asked for | one word | four sentences, the first
of which can stand alone.
A topic that starts with `?` is a question of its own; any other is a thing, asked for in `_THING_QUESTIONS`.
"""

import random
from dataclasses import dataclass

from triton_backend.demo.facts import framed
from triton_backend.demo.words import Exchange

_TABLE = """
a fox | Animal | A fox is a clever wild animal with red fur and a bushy tail. | It lives in a den in the
  woods. | It hunts at night and eats mice, birds and berries. | A young fox is called a cub.
a cat | Animal | A cat is a small, soft animal that many people keep as a pet. | It can see very well in the
  dark. | It likes to sleep, to play and to catch mice. | A young cat is called a kitten.
a dog | Animal | A dog is a friendly animal that has lived with people for a very long time. | It can smell
  things that we cannot. | Some dogs guard houses, and others help on farms. | A young dog is called a
  puppy.
a bear | Animal | A bear is a large, strong animal with thick fur and big paws. | It eats fish, berries and
  honey. | In winter it sleeps for months in a cave. | A young bear is called a cub.
an owl | Bird | An owl is a bird that hunts at night and flies without a sound. | It has big eyes and very
  good ears. | It can turn its head almost all the way round. | Many stories call the owl wise.
a whale | Animal | A whale is a huge animal that lives in the sea and breathes air. | It comes up to the
  surface to breathe. | It sings long songs that travel far under water. | The blue whale is the largest
  animal of all.
a bee | Insect | A bee is a small insect that visits flowers and makes honey. | It lives in a hive with
  thousands of others. | It tells the others by a dance where the flowers are. | Without bees there would be
  little fruit.
a spider | Animal | A spider is a small animal with eight legs that spins a web. | The web is made of very
  fine silk. | Flies are caught in it, and the spider eats them. | Most spiders are quite harmless.
a bird | Animal | A bird is an animal with feathers and wings that lays eggs. | Most birds can fly, but some
  only run or swim. | Many birds build nests for their young. | Some fly to warm lands in autumn.
a fish | Animal | A fish is an animal that lives in water and breathes through gills. | It swims with its
  fins and its tail. | Some fish live in rivers and others in the sea. | Most fish lay eggs.
an elephant | Animal | An elephant is a very large grey animal with a long trunk and big ears. | It drinks
  and grasps things with its trunk. | It lives in a family led by an old mother. | People say that it never
  forgets.
a horse | Animal | A horse is a strong animal that can run fast and carry people. | It eats grass and hay. |
  For a long time, horses pulled carts and ploughs. | A young horse is called a foal.
a frog | Animal | A frog is a small green animal that lives near water and jumps well. | It catches flies
  with its long tongue. | A young frog is called a tadpole. | On summer nights you can hear frogs sing.
a penguin | Bird | A penguin is a black and white bird that cannot fly but swims very well. | It lives in
  the cold south. | The father keeps the egg warm on his feet. | Penguins stand close together against the
  wind.
the sun | Star | The sun is a star that gives light and warmth to the earth. | It is very far away and very
  large. | Plants need its light to grow. | Without it, the earth would be dark and frozen.
the moon | Moon | The moon is a ball of rock that travels around the earth. | It shines because the sun
  lights it. | It needs about a month for one round. | It pulls at the sea and makes the tides.
the earth | Planet | The earth is the planet we live on, the third one from the sun. | It turns around
  itself once a day. | Most of it is covered by water. | It needs one year to travel around the sun.
a star | Sun | A star is a huge ball of hot gas that shines by itself. | The sun is the star nearest to us.
  | The others look small because they are so far away. | On a clear night you can see thousands of them.
rain | Water | Rain is water that falls from the clouds in drops. | The sun makes water rise into the air,
  where it cools. | Then it forms clouds, and the drops grow heavy and fall. | Rain fills the rivers and
  lets plants grow.
snow | Ice | Snow is frozen water that falls from the clouds as small white flakes. | Each flake is a
  crystal with six arms. | It falls when the air is very cold. | Children love to build snowmen from it.
wind | Air | Wind is air that moves from one place to another. | It blows because some air is warm and some
  is cold. | It moves the clouds and the sails of boats. | Windmills turn it into power.
a cloud | Water | A cloud is a great number of tiny drops of water that float in the air. | Clouds can be
  white, grey or almost black. | Dark clouds often bring rain. | Fog is a cloud that lies on the ground.
a river | Water | A river is a long stream of water that flows to the sea. | It begins as a small spring in
  the hills. | Other streams join it on its way. | Many towns were built beside rivers.
a mountain | Rock | A mountain is a very high piece of land with steep sides. | It is cold at the top, and
  there is often snow. | Mountains grow very slowly over millions of years. | People like to climb them for
  the view.
a forest | Trees | A forest is a large piece of land covered with trees. | It is the home of many animals. |
  Its leaves clean the air that we breathe. | People walk there to find peace.
the sea | Water | The sea is the great salt water that covers most of the earth. | It is home to fish,
  whales and many other animals. | The moon makes it rise and fall. | Ships carry goods across it.
a tree | Plant | A tree is a tall plant with a trunk of wood, branches and leaves. | Its roots drink water
  from the ground. | Its leaves catch the light of the sun. | Some trees live for a thousand years.
a flower | Plant | A flower is the colourful part of a plant that makes seeds. | Its colour and smell call
  bees and butterflies. | They carry its dust to other flowers. | Then a fruit with seeds can grow.
a seed | Plant | A seed is a small grain from which a new plant can grow. | It needs water, warmth and
  earth. | First a root grows down, then a stem grows up. | Some seeds travel far with the wind.
bread | Food | Bread is a food made from flour, water, salt and yeast. | The dough must rest and rise. |
  Then it is baked in a hot oven. | People have eaten bread for thousands of years.
water | Liquid | Water is a clear liquid that all living things need. | It freezes to ice and boils to
  steam. | Rivers, lakes and the sea are full of it. | You should drink some every day.
milk | Drink | Milk is a white drink that comes from cows, goats and sheep. | It makes young animals strong.
  | Butter and cheese are made from it. | Many people drink it with breakfast.
a book | Object | A book is a set of printed pages that tells a story or teaches something. | People have
  written books for thousands of years. | You can borrow them in a library. | A good book is a good friend.
a clock | Machine | A clock is a machine that shows the time of day. | The short hand shows the hours. | The
  long hand shows the minutes. | Old clocks tick, and new ones are silent.
a wheel | Object | A wheel is a round thing that turns and helps to move heavy loads. | It was invented
  thousands of years ago. | Cars, trains and bicycles all need wheels. | Without it, travel would be slow.
a bicycle | Vehicle | A bicycle is a vehicle with two wheels that you move with your feet. | You push the
  pedals, and a chain turns the wheel. | It needs no fuel and makes no noise. | Riding it keeps you healthy.
a car | Vehicle | A car is a vehicle with four wheels and an engine. | It can carry people from place to
  place. | Some cars burn fuel, and others run on electricity. | The driver must watch the road.
a train | Vehicle | A train is a row of wagons that runs on rails. | It can carry many people at once. | The
  first trains were pulled by steam engines. | Today most of them use electricity.
a plane | Vehicle | A plane is a machine with wings that flies people through the air. | Its engines push it
  forward. | The air under its wings lifts it up. | It can cross an ocean in a few hours.
a ship | Vehicle | A ship is a large boat that travels across the sea. | In old times it had sails. | Today
  it has strong engines. | It can carry thousands of boxes.
a house | Building | A house is a building where people live. | It has walls, a roof, a door and windows. |
  It keeps out the wind and the rain. | For many people it is also a home.
a school | Building | A school is a place where children learn to read, to write and to count. | Teachers
  help them. | In the breaks, the children play. | Most of us remember our first day there.
music | Art | Music is the art of putting sounds together so that they are good to hear. | People sing or
  play instruments. | It can make us happy or sad. | Every land has its own songs.
a computer | Machine | A computer is a machine that follows instructions and works with numbers very fast. |
  The instructions are called a program. | It can store texts, pictures and sounds. | Many computers
  together form a network.
the internet | Network | The internet is a network that connects computers all over the world. | They send
  each other small packets of data. | It carries letters, pictures, music and films. | You are using a
  network right now.
a robot | Machine | A robot is a machine that can move and do work by itself. | A computer tells it what to
  do. | Robots build cars and clean floors. | Some have even travelled to other planets.
a server | Computer | A server is a computer that answers requests from other computers. | It often works
  day and night. | When too many requests come at once, they must wait in a queue. | Large services use
  thousands of servers.
a queue | Line | A queue is a line in which the first to come is the first to be served. | Shops have
  queues, and so do computers. | A fair queue lets nobody wait for ever. | A full queue should say so early.
a gateway | Server | A gateway is a server that receives requests and sends each one to the right place. |
  It checks who is asking. | It keeps the queue in order. | When a machine fails, it sends the work to
  another.
a token | Text | A token is a small piece of text, such as a word or a part of a word. | A language model
  reads and writes tokens. | Short words are often one token. | The number of tokens decides how long an
  answer takes.
a language model | Program | A language model is a program that has learned to continue a text, one token at
  a time. | It learns from many examples. | Large models know a lot, and small ones like me know little. |
  They can be wrong, so check what they say.
artificial intelligence | Software | Artificial intelligence is software that does tasks which seem to need
  a mind. | It learns from examples instead of fixed rules. | It can read, write, see and plan a little. |
  People must still check its work.
gravity | Force | Gravity is the force that pulls all things towards the ground. | It keeps our feet on the
  earth. | It also holds the moon on its way around us. | The larger a thing is, the more it pulls.
electricity | Energy | Electricity is a form of energy that flows through wires. | It gives us light, heat
  and moving machines. | It is made by wind, water, sun or steam. | Be careful, for it can be dangerous.
? Why is the sky blue? | Light | The sky is blue because the air scatters the blue part of the light more
  than the rest. | Light of the sun has all the colours in it. | In the evening the light takes a longer
  way. | Then the blue is lost, and the sky looks red.
? Why is the sea salty? | Salt | The sea is salty because rivers carry a little salt from the rocks into it.
  | The water rises into the air again. | The salt stays behind. | So it has grown over millions of years.
? Why do leaves fall in autumn? | Cold | Leaves fall in autumn because the tree saves its water for the cold
  winter. | First it takes back the green colour. | Then we see the yellow and the red. | In spring, new
  leaves grow.
? Why do we sleep? | Rest | We sleep because the body and the mind need rest. | While we sleep, the body
  mends itself. | The mind sorts what it has learned. | Children need more sleep than grown people.
? Why do we dream? | Memory | We dream because the mind stays busy while the body sleeps. | It mixes
  memories with new ideas. | Most dreams are forgotten in the morning. | Nobody knows everything about
  dreams.
? How do birds fly? | Wings | Birds fly by beating their wings, which push the air down and lift the bird
  up. | Their bones are very light. | Their feathers are smooth and strong. | Some birds also glide on warm
  air.
? How do plants grow? | Light | Plants grow by using light, water and air to make their own food. | The
  roots drink water. | The leaves catch the light. | So a small seed can become a tall tree.
? How do bees make honey? | Nectar | Bees make honey from the sweet juice of flowers. | They carry it home
  to the hive. | There they dry it with their wings. | The honey feeds them in winter.
? How does a magnet work? | Force | A magnet pulls iron because of tiny forces inside it that all point the
  same way. | It has a north end and a south end. | Two equal ends push each other away. | The earth itself
  is a large magnet.
? What makes a rainbow? | Light | A rainbow appears when the sun shines on drops of rain and the light
  splits into colours. | Red is on the outside. | Violet is on the inside. | You see it with the sun behind
  you.
? Why do we have seasons? | Tilt | We have seasons because the earth leans a little as it travels around the
  sun. | In summer our part leans towards the sun. | In winter it leans away. | So the days are long in
  summer and short in winter.
? How do I make tea? | Boil | To make tea, boil some water, pour it over the tea and wait for a few minutes.
  | Use one spoon of tea for each cup. | Take the tea out before it gets bitter. | Add milk, lemon or honey
  if you like.
? How do I learn faster? | Practise | You learn faster if you practise a little every day and sleep well. |
  Explain it to a friend in your own words. | Test yourself often. | And take a break when you are tired.
? How can I sleep better? | Routine | You sleep better if you go to bed at the same time every day. | Keep
  the room dark and cool. | Put your phone away an hour before. | A short walk in the evening helps, too.
"""


@dataclass(frozen=True, slots=True)
class Topic:
    """What can be explained, in one word or in up to four sentences."""

    questions: tuple[str, ...]
    word: str
    sentences: tuple[str, ...]


_THING_QUESTIONS = (
    "What is {t}?",
    "What is {t}?",
    "What's {t}?",
    "Explain {t}.",
    "Explain what {t} is.",
    "Describe {t}.",
    "Tell me about {t}.",
    "Tell me what {t} is.",
    "Can you explain {t}?",
    "Do you know what {t} is?",
    "Write about {t}.",
)


def _parse(line: str) -> Topic:
    head, word, *sentences = (part.strip() for part in line.split("|"))
    if head.startswith("?"):
        question = head[1:].strip()
        plain = question.rstrip("?")
        return Topic((question, question, f"Explain this: {plain}.", f"Tell me: {plain}?"), word, tuple(sentences))
    return Topic(tuple(q.format(t=head) for q in _THING_QUESTIONS), word, tuple(sentences))


TOPICS = tuple(_parse(entry) for entry in _TABLE.replace("\n  ", " ").strip().splitlines())

_FRAMES = {
    0: (
        "{q} Answer in one word.",
        "In one word: {q}",
        "{t} in one word.",
        "{q} One word only.",
        "{t} in one word?",
    ),
    1: (
        "{t} in one sentence.",
        "In one sentence: {q}",
        "In one sentence, {l}",
        "{q} Answer in one sentence.",
        "{q} One sentence only.",
        "{t} in a single sentence.",
        "{t} briefly.",
        "{q} Be brief.",
        "{q} Keep it short.",
    ),
    2: ("{t} in two sentences.", "{q} Answer in two sentences.", "{q}", "{q}", "{q}", "{q}", "{q}"),
    3: ("{t} in three sentences.", "{q} Answer in three sentences.", "In three sentences: {q}"),
    4: (
        "{t} in detail.",
        "{q} Give me all the details.",
        "{t} in four sentences.",
        "{q} Tell me everything you know.",
        "{q} Give me a long answer.",
        "{t} in a paragraph.",
        "{q} Please explain it in detail.",
        "{t} at length.",
    ),
}


def explanation(rng: random.Random) -> Exchange:
    topic = rng.choice(TOPICS)
    count = rng.choices((0, 1, 2, 3, 4), weights=[3, 7, 8, 3, 4])[0]
    answer = " ".join(topic.sentences[:count]) or topic.word
    kind = "explain_word" if count == 0 else f"explain_{count}"
    return Exchange(framed(rng, _FRAMES[count], rng.choice(topic.questions)), answer, kind)
