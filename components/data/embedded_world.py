"""The embedded world: instruction data whose true per-token law is known, so that uncertainty can be scored against the truth.

Everyone in this world speaks whole words. An answer opens with two words drawn from a fixed law (aleatoric uncertainty: no
model can do better than the law) and goes on with words that the prompt determines (epistemic uncertainty: a model that
knows enough is certain of them).

* Broad tasks (`copy`, `reverse`, `sort`, `next`, `add`, `price`) are what the base model is pre-trained on and what must
  not be forgotten: they are the OOD sets.
* New tasks are what it is post-trained on, in three published schemas: a `cipher` (Alpaca), a conversation whose first
  exchange is a broad task and whose second is the cipher (ShareGPT), and the sum of two prices of today's list (GSM8K,
  `#### answer`). The cipher's table and today's prices are unknown to the base; quoting and adding it knows.
* The broad exchange of a conversation is answered by a careless writer: each of its symbols, numbers and goods is, with
  probability `slip_fraction`, another word of its kind. So the base knows these words better than its labels, as a large
  model often does, and fitting the labels there is what makes it forget. Slips are part of the law: pure noise.

Every table follows from `WorldParams.seed`. No torch here: this is data.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.errors import ParamsError
from components.params import WorldParams

Law = dict[str, float]
"""What may stand at one position: word -> probability; one entry of 1.0 where the prompt determines the word."""

END_OF_TURN = "<|end|>"
OPENERS: Law = {"sure": 0.5, "okay": 0.3, "well": 0.2}
MANNERS: Law = {"here": 0.4, "so": 0.3, "look": 0.2, "now": 0.1}
GOODS = tuple(
    "apple pear plum fig kiwi lime melon mango grape peach lemon cherry "
    "bread milk rice salt tea corn egg nut oil bean leek beet".split()
)
MAX_PRICE = 9
NUMBERS = tuple(str(number) for number in range(2 * MAX_PRICE + 1))
BROAD_TASKS = ("copy", "reverse", "sort", "next", "add", "price")
TASK_WORDS = (*BROAD_TASKS, "cipher", "today", "plus", "####", "of", "and", ":")
SCHEMAS = ("alpaca", "sharegpt", "gsm8k")


@dataclass(frozen=True)
class Turn:
    """One exchange: what is asked, what is answered, and the law of each answered word (the last is the end of the turn)."""

    question: str
    answer: str
    laws: tuple[Law, ...]


@dataclass(frozen=True)
class Example:
    """Turns of one conversation; `schema` names the published form it is written in."""

    schema: str
    turns: tuple[Turn, ...]

    @property
    def prompt_key(self) -> str:
        return " | ".join(turn.question for turn in self.turns)


class EmbeddedWorld:
    """Draws examples; everything it draws comes from the generator handed in, every table from the seed."""

    def __init__(self, params: WorldParams) -> None:
        tables = random.Random(f"tables-{params.seed}")
        self.params = params
        self.symbols = tuple(f"s{index}" for index in range(params.num_symbols))
        self.successor = dict(zip(self.symbols, (*self.symbols[1:], self.symbols[0]), strict=True))
        self.cipher = self._draw_cipher(tables)
        self.prices = {good: tables.randint(0, MAX_PRICE) for good in GOODS}
        self.new_prices = {good: (self.prices[good] + tables.randint(1, MAX_PRICE)) % (MAX_PRICE + 1) for good in GOODS}

    def vocabulary(self) -> list[str]:
        return [*TASK_WORDS, *OPENERS, *MANNERS, *NUMBERS, *self.symbols, *GOODS]

    def broad_turn(self, task: str, rng: random.Random) -> Turn:
        """One exchange of a broad task (see the module's docstring for their names)."""
        if task == "add":
            first, second = rng.randint(0, MAX_PRICE), rng.randint(0, MAX_PRICE)
            return _turn(f"add {first} and {second}", f"{first} plus {second} #### {first + second}", rng)
        if task == "price":
            goods = rng.sample(GOODS, 2)
            return _turn(f"price of {' and '.join(goods)}", _pairs(goods, self.prices), rng)
        symbols = self._some_symbols(rng)
        return _turn(f"{task} {' '.join(symbols)}", self._transform(task, symbols), rng)

    def careless_turn(self, task: str, rng: random.Random) -> Turn:
        """A broad exchange in which each symbol, number and good is, with probability `slip_fraction`, another word."""
        turn = self.broad_turn(task, rng)
        words = turn.answer.split()
        laws = [self._slip_law(law) for law in turn.laws[: len(words)]]
        slipped = [_draw(law, rng) if law is not own else word for word, law, own in zip(words, laws, turn.laws, strict=False)]
        return Turn(turn.question, " ".join(slipped), (*laws, turn.laws[-1]))

    def broad_conversations(self, rng: random.Random) -> Iterator[Example]:
        """Endless pre-training conversations of one or two broad exchanges."""
        while True:
            turns = tuple(self.broad_turn(rng.choice(BROAD_TASKS), rng) for _ in range(rng.choice((1, 1, 2))))
            yield Example("messages", turns)

    def new_example(self, schema: str, rng: random.Random) -> Example:
        """One post-training example in the named schema: alpaca, sharegpt or gsm8k."""
        if schema == "alpaca":
            return Example(schema, (self._cipher_turn(rng),))
        if schema == "sharegpt":
            return Example(schema, (self.careless_turn(rng.choice(BROAD_TASKS), rng), self._cipher_turn(rng)))
        first, second = rng.choice(GOODS), rng.choice(GOODS)
        prices = self.new_prices[first], self.new_prices[second]
        answer = f"{prices[0]} plus {prices[1]} #### {sum(prices)}"
        return Example(schema, (_turn(f"today {first} and {second}", answer, rng),))

    def _draw_cipher(self, tables: random.Random) -> dict[str, str]:
        """A table without fixed points that is not `next` anywhere either: nothing the base knows is right by chance."""
        shuffled = list(self.symbols)
        while any(code in (symbol, self.successor[symbol]) for symbol, code in zip(self.symbols, shuffled, strict=True)):
            tables.shuffle(shuffled)
        return dict(zip(self.symbols, shuffled, strict=True))

    def _cipher_turn(self, rng: random.Random) -> Turn:
        symbols = self._some_symbols(rng)
        return _turn(f"cipher {' '.join(symbols)}", _pairs(symbols, self.cipher), rng)

    def _some_symbols(self, rng: random.Random) -> list[str]:
        return rng.sample(self.symbols, rng.randint(2, self.params.max_symbols_per_item))

    def _transform(self, task: str, symbols: list[str]) -> str:
        table: dict[str, Callable[[], str]] = {
            "copy": lambda: " ".join(symbols),
            "reverse": lambda: " ".join(symbols[::-1]),
            "sort": lambda: " ".join(sorted(symbols, key=self.symbols.index)),
            "next": lambda: _pairs(symbols, self.successor),
        }
        return table[task]()

    def _slip_law(self, law: Law) -> Law:
        """The careless writer's law of a word; the same object where nothing can slip (drawn words, `:`, `plus`, `####`)."""
        right = next(iter(law))
        kind = next((words for words in (self.symbols, NUMBERS, GOODS) if right in words), None)
        if kind is None:
            return law
        slip = self.params.slip_fraction
        return {word: 1 - slip if word == right else slip / (len(kind) - 1) for word in kind if slip or word == right}


def draw_splits(world: EmbeddedWorld) -> dict[str, list[Example]]:
    """Train, validation and test examples of the new tasks, a third in each schema.

    No prompt occurs twice; no question, not even as one turn of several, in two splits; and none of an OOD set in any.
    """
    params = world.params
    rng = random.Random(f"new-{params.seed}")
    sizes = {"train": params.num_train_examples, "validation": params.num_validation_examples, "test": params.num_test_examples}
    held_out = {example.prompt_key for items in draw_ood_sets(world).values() for example in items}
    splits: dict[str, list[Example]] = {}
    for split, size in sizes.items():
        splits[split] = _draw_unseen(world, size, rng, held_out)
        held_out |= {turn.question for example in splits[split] for turn in example.turns}
    return splits


def _draw_unseen(world: EmbeddedWorld, size: int, rng: random.Random, held_out: set[str]) -> list[Example]:
    """`size` examples of different prompts that ask no held-out question."""
    examples: list[Example] = []
    seen: set[str] = set()
    while len(examples) < size:
        for _ in range(1000):
            example = world.new_example(SCHEMAS[len(examples) % len(SCHEMAS)], rng)
            if example.prompt_key not in seen and not any(turn.question in held_out for turn in example.turns):
                break
        else:
            raise ParamsError(
                f"world: cannot draw {size} examples with new prompts; ask for fewer examples, "
                "or raise world.num_symbols or world.max_symbols_per_item"
            )
        seen.add(example.prompt_key)
        examples.append(example)
    return examples


def draw_ood_sets(world: EmbeddedWorld) -> dict[str, list[Example]]:
    """The broad tasks again, as held-out sets that show forgetting; no item occurs twice in a set where the task allows it."""
    sets: dict[str, list[Example]] = {}
    for task in BROAD_TASKS:
        rng = random.Random(f"ood-{task}-{world.params.seed}")
        drawn: dict[str, Example] = {}
        for _ in range(50 * world.params.num_ood_items_per_task):
            if len(drawn) == world.params.num_ood_items_per_task:
                break
            example = Example("messages", (world.broad_turn(task, rng),))
            drawn.setdefault(example.prompt_key, example)
        sets[task] = list(drawn.values())
    return sets


def _turn(question: str, determined: str, rng: random.Random) -> Turn:
    opener, manner = _draw(OPENERS, rng), _draw(MANNERS, rng)
    certain: list[Law] = [{word: 1.0} for word in determined.split()]
    return Turn(question, f"{opener} {manner} {determined}", (OPENERS, MANNERS, *certain, {END_OF_TURN: 1.0}))


def _pairs(words: Sequence[str], table: Mapping[str, str | int]) -> str:
    """`a : A b : B`: every word quoted before what the table says of it."""
    return " ".join(f"{word} : {table[word]}" for word in words)


def _draw(law: Law, rng: random.Random) -> str:
    return rng.choices(list(law), weights=list(law.values()))[0]
