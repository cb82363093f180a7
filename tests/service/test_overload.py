"""More work than there is time: what cannot be done is refused at once, the rest is done."""

import asyncio

import pytest

from service.config import ServiceConfig
from service.errors import DeadlineExceeded, Overloaded
from service.pairs import Pair
from service.scorer import Scorer
from training.demo.data import generate


def test_what_cannot_be_answered_in_time_is_refused_before_any_work(config: ServiceConfig) -> None:
    records = list(generate(1200, seed=7))
    pairs = [Pair(r["prompt"], response) for r in records for response in r["responses"]]
    scorer = Scorer.open(config)

    async def go() -> None:
        work = asyncio.create_task(scorer.score(pairs))
        while not scorer.scheduler.backlog_s() > 0.3:
            assert not work.done(), "the work was too little to be a backlog"
            await asyncio.sleep(0.005)
        with pytest.raises(Overloaded, match="s of work are waiting") as caught:
            scorer.refuse_hopeless(0.2)
        assert not isinstance(caught.value, DeadlineExceeded) and caught.value.retry_after_s >= 1
        scorer.refuse_hopeless(60)
        in_time = await scorer.score(pairs[:3], deadline_s=60)
        scores = await work
        assert in_time.results == scores.results[:3]

    asyncio.run(go())
    scorer.close()
