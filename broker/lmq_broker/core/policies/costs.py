"""What a job costs its user: a rate card for each model, and a guess of how long an answer will be.

Cost is engine time in milliseconds: of `n` streams that an engine serves at once each takes 1/n of its time, so that a
large model and a small one, prompts and answers, embeddings and chats are comparable. Before an engine was measured a
card of plausible rates stands in, which is the same as weighted tokens.
"""

from bisect import bisect_right
from itertools import accumulate, repeat

import msgspec

from lmq_broker.core.policies.lengths import UNMEASURED, Shape
from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS, Rates, TaskDefaults
from lmq_broker.core.state import Job

PROMPT_MS = 0.67
OUTPUT_MS = 8.0
"""Of a model nobody has measured: 1,500 prompt tokens/s, 125 output tokens/s in total, a common card at home."""
EMBEDDING_PROMPT_MS = 0.1
FIXED_MS = 1.0
"""Of any job: nothing is free, or a flood of empty jobs would be."""
OUTPUT_TOKENS = 256
"""Guess for the first answer of a kind; the mean of a public replay of chats (27 users of an arena)."""
BYTES_PER_TOKEN = 4
HISTORY_WEIGHT = 0.9
"""Of the past when an answer's length is learnt: some ten answers count."""
SHRINK = 4.0
"""Answers of one user that weigh as much as what all users had."""
HISTORIES = 50_000
CARD_EVERY_MS = 3_600_000
"""A card is changed at most this often, and never for what has been dispatched."""
CARD_SAMPLES = 20.0
"""Jobs from which a first card is made."""
_FIT_WEIGHT = 0.99
_TASK = TaskDefaults()
_FEW = 32
"""Values after which quantiles are worked out anew; each time until there are as many."""
_EDGES = tuple(accumulate(repeat(1.2, 100), lambda edge, growth: edge * growth, initial=1.0))
"""By multiplication, which is the same on every machine; powers and logarithms are not, in the last bit."""


EMBEDDING_RATES = Rates(EMBEDDING_PROMPT_MS, 0.0)
OWN_RATES = Rates(0.0, 1.0)
"""Of own tasks: they cost the time for which they hold a slot, which is kept where others have their tokens."""
LLM_RATES = Rates(PROMPT_MS, OUTPUT_MS)


class Length(msgspec.Struct):
    """A decayed mean of answer lengths."""

    mean: float
    weight: float = 0.0

    def learn(self, tokens: float) -> None:
        """Take in one more answer."""
        self.weight = self.weight * HISTORY_WEIGHT + 1.0
        self.mean += (tokens - self.mean) / self.weight


class Fit(msgspec.Struct):
    """Engine time over (prompt tokens, output tokens) of one model at one endpoint: least squares with a decay."""

    prompt_prompt: float = 0.0
    prompt_output: float = 0.0
    output_output: float = 0.0
    prompt_time: float = 0.0
    output_time: float = 0.0
    samples: float = 0.0

    def learn(self, prompt: float, output: float, engine_ms: float) -> None:
        """Take in what one job took."""
        kept = _FIT_WEIGHT
        self.prompt_prompt = self.prompt_prompt * kept + prompt * prompt
        self.prompt_output = self.prompt_output * kept + prompt * output
        self.output_output = self.output_output * kept + output * output
        self.prompt_time = self.prompt_time * kept + prompt * engine_ms
        self.output_time = self.output_time * kept + output * engine_ms
        self.samples = self.samples * kept + 1.0

    def rates(self) -> Rates | None:
        """Return the rates, none of them negative; None if they cannot be told yet."""
        if self.samples < CARD_SAMPLES * 0.9:
            return None
        pp, po, oo = self.prompt_prompt, self.prompt_output, self.output_output
        determinant = pp * oo - po * po
        if determinant > 1e-6 * pp * oo:
            prompt_ms = (self.prompt_time * oo - self.output_time * po) / determinant
            output_ms = (self.output_time * pp - self.prompt_time * po) / determinant
            if prompt_ms >= 0 and output_ms >= 0:
                return Rates(prompt_ms, output_ms)
        # Prompts and answers grow together, or one rate would be negative: the one that explains more stands alone.
        if oo > 0 and self.output_time * self.output_time * pp >= self.prompt_time * self.prompt_time * oo:
            return Rates(0.0, self.output_time / oo)
        return Rates(self.prompt_time / pp, 0.0) if pp > 0 else None


class Costs:
    """Predicts what jobs cost, and learns from what they took."""

    def __init__(self, given: dict[str, Rates], tasks: dict[str, TaskDefaults]) -> None:
        self._given = given
        self._tasks = tasks
        self._cards: dict[str, tuple[Rates, int]] = {}
        """Model -> (learnt rates, monotonic time from which they may be changed)."""
        self._fits: dict[tuple[str, str], Fit] = {}
        """(model, endpoint) -> measured."""
        self._of_user: dict[tuple[str, str, str, int], Length] = {}
        self._of_all: dict[tuple[str, str], Length] = {}
        self._shapes: dict[tuple[str, str], Shape] = {}

    def rates(self, task_type: str, model: str) -> Rates:
        """Return the rates by which a job is charged that is dispatched now."""
        if task_type not in ENGINE_TASKS:
            return OWN_RATES
        given = self._given.get(model)
        if given is not None:
            return given
        found = self._cards.get(model)
        if found is not None:
            return found[0]
        return EMBEDDING_RATES if task_type in EMBEDDING_TASKS else LLM_RATES

    def predict(self, job: Job, model: str) -> float:
        """Return what a job will cost, in milliseconds of engine time."""
        rates = self.rates(job.task_type, model)
        cost = prompt_cost(prompt_tokens(job), rates)
        if rates.output_ms and job.task_type not in EMBEDDING_TASKS:
            cost += self.output_tokens(job, model) * rates.output_ms
        return cost

    def tokens(self, job: Job, model: str) -> float:
        """Return what a job is predicted to take of a context, prompt and answer."""
        if job.task_type in EMBEDDING_TASKS:
            return float(prompt_tokens(job))
        return prompt_tokens(job) + self.output_tokens(job, model)

    def output_tokens(self, job: Job, model: str) -> float:
        """Return how long an answer will be: no longer than its submitter said."""
        mean = self.mean_tokens(job, model)
        return (
            min(mean, float(job.output_tokens))
            if job.output_tokens and job.task_type in ENGINE_TASKS
            else mean
        )

    def mean_tokens(self, job: Job, model: str) -> float:
        """Return how long answers are: what this user had for such jobs, drawn to what all had."""
        all_had = self._of_all.get((job.task_type, model))
        mean = all_had.mean if all_had is not None else self._first_guess(job)
        mine = self._of_user.get(_length_key(job, model))
        if mine is not None:
            mean = (mine.mean * mine.weight + mean * SHRINK) / (mine.weight + SHRINK)
        return mean

    def _first_guess(self, job: Job) -> float:
        if job.task_type in ENGINE_TASKS:
            return float(OUTPUT_TOKENS)
        return float(self._tasks.get(job.task_type, _TASK).expected_ms)

    def rates_at(self, task_type: str, model: str, endpoint: str) -> Rates:
        """Return what one endpoint takes, as measured; where it was not, what jobs are charged."""
        if task_type not in ENGINE_TASKS:
            return OWN_RATES
        fit = self._fits.get((model, endpoint))
        found = fit.rates() if fit is not None else None
        return self.rates(task_type, model) if found is None else found

    def needs(self, job: Job, model: str, rates: Rates) -> tuple[float, float, float, Shape]:
        """Return what of an engine's time a prompt takes, and each token; how many, at least 1; and their shape."""
        prompt_ms = prompt_cost(prompt_tokens(job), rates)
        if not rates.output_ms or job.task_type in EMBEDDING_TASKS:
            return prompt_ms, 0.0, 1.0, UNMEASURED
        tokens = max(self.mean_tokens(job, model), 1.0)
        return prompt_ms, rates.output_ms, tokens, self._shapes.get((job.task_type, model), UNMEASURED)

    def learn_length(self, job: Job, model: str, tokens: int) -> None:
        """Take in how long an answer was; of an own task, its milliseconds."""
        kind = job.task_type, model
        if kind in self._of_all:
            # The first one says nothing of how others fall: nothing was foreseen of it.
            shape = self._shapes.get(kind)
            if shape is None:
                shape = self._shapes[kind] = Shape()
            shape.learn(tokens / max(self.mean_tokens(job, model), 1.0))
        key = _length_key(job, model)
        mine = self._of_user.get(key)
        if mine is None:
            if len(self._of_user) >= HISTORIES:
                # The one learnt first goes: the dict keeps the order, and who comes back is learnt anew.
                del self._of_user[next(iter(self._of_user))]
            mine = self._of_user[key] = Length(float(tokens))
        mine.learn(tokens)
        whole = self._of_all.get((job.task_type, model))
        if whole is None:
            whole = self._of_all[job.task_type, model] = Length(float(tokens))
        whole.learn(tokens)

    def learn_rate(
        self, model: str, endpoint: str, prompt: int, output: int, engine_ms: float, now_ms: int
    ) -> None:
        """Take in what a job took of an engine; the card follows at most once an hour, median over endpoints."""
        fit = self._fits.get((model, endpoint))
        if fit is None:
            fit = self._fits[model, endpoint] = Fit()
        fit.learn(prompt, output, engine_ms)
        known = self._cards.get(model)
        if fit.samples < CARD_SAMPLES * 0.9 or (known is not None and now_ms < known[1]):
            return
        cards = [card for (name, _), each in self._fits.items() if name == model and (card := each.rates())]
        if cards:
            prompts, outputs = sorted(c.prompt_ms for c in cards), sorted(c.output_ms for c in cards)
            middle = (len(cards) - 1) // 2
            self._cards[model] = Rates(prompts[middle], outputs[middle]), now_ms + CARD_EVERY_MS


class Quantiles:
    """A decayed histogram with buckets that grow by a fifth each: quantiles to a fifth, in constant memory."""

    __slots__ = ("_counts", "_found", "_learnt", "_total")

    def __init__(self) -> None:
        self._counts: dict[int, float] = {}
        self._total = 0.0
        self._learnt = 0
        self._found: dict[float, float] = {}
        """Answers of late, given again until some more values are known."""

    def learn(self, value: float) -> None:
        """Take in one value above 0."""
        bucket = bisect_right(_EDGES, value)
        self._counts[bucket] = self._counts.get(bucket, 0.0) + 1.0
        self._total += 1.0
        self._learnt += 1
        if self._learnt <= _FEW or self._learnt % _FEW == 0:
            self._found.clear()
        if self._total > 2000:
            self._counts = {each: count / 2 for each, count in self._counts.items() if count > 0.25}
            self._total = sum(self._counts.values())

    def at(self, ratio: float, otherwise: float) -> float:
        """Return the upper edge of the bucket in which this share of all values is reached."""
        found = self._found.get(ratio)
        if found is not None:
            return found
        left = self._total * ratio
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                found = self._found[ratio] = _EDGES[min(bucket, len(_EDGES) - 1)]
                return found
        return otherwise


def prompt_tokens(job: Job) -> int:
    """Return the tokens of a prompt, as its submitter counted them or by its size."""
    return job.prompt_tokens or job.payload_bytes // BYTES_PER_TOKEN


def prompt_cost(tokens: int, rates: Rates) -> float:
    """Return what a prompt costs, and any job at least."""
    return FIXED_MS + tokens * rates.prompt_ms


def _length_key(job: Job, model: str) -> tuple[str, str, str, int]:
    return job.user, job.task_type, model, job.output_tokens.bit_length()
