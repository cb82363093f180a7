"""The endpoints that trainers know already, on the same scorer. Only translates.

Their clients send no header and give a lost sample no second chance, so these wait where `/score`
refuses: 503 comes only when the deadline has passed or the replica leaves.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from service.address import Options
from service.config import ServiceConfig
from service.pooling import Classify, ClassifyAnswer, Embeddings, EmbeddingsAnswer
from service.request import check_count, invalid
from service.scorer import Scorer
from service.wire import (
    AlignAnything,
    AlignAnythingAnswer,
    Answer,
    GetReward,
    GetRewardAnswer,
    ScoreEvaluation,
    ScoreEvaluationAnswer,
    Shape,
    Slime,
)

SHAPES: dict[str, tuple[type[BaseModel], Any]] = {
    "/get_reward": (GetReward, GetRewardAnswer),
    "/slime": (Slime, float),
    "/v1/score/evaluation": (ScoreEvaluation, ScoreEvaluationAnswer),
    "/align_anything": (AlignAnything, AlignAnythingAnswer),
    "/classify": (Classify, ClassifyAnswer),
    "/v1/classify": (Classify, ClassifyAnswer),
    "/v1/embeddings": (Embeddings, EmbeddingsAnswer),
}
QUERY = [
    {
        "name": name,
        "in": "query",
        "description": field.description or "",
        "schema": Options.model_json_schema()["properties"][name],
    }
    for name, field in Options.model_fields.items()
]
"as OpenAPI has them; the same may stand in the path, before the endpoint: /reward=raw/get_reward"


def add_trainer_routes(
    api: FastAPI, scorer: Scorer, config: ServiceConfig, responses: dict[int | str, dict[str, Any]]
) -> None:
    """Every shape as a POST route of `api`."""
    for path, (shape, answer) in SHAPES.items():
        reference = {"$ref": f"#/components/schemas/{shape.__name__}"}
        api.add_api_route(
            path,
            _endpoint(shape, scorer, config),
            methods=["POST"],
            name=path,
            description=shape.__doc__,
            response_model=answer,
            responses=responses,
            tags=["trainers"],
            openapi_extra={
                "parameters": QUERY,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": reference}},
                },
            },
        )


def _endpoint(
    shape: type[BaseModel], scorer: Scorer, config: ServiceConfig
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        options = Options.parse(request.state.options)
        asked = _parse(shape, await request.body())
        pairs = asked.asked(options.template)
        check_count(len(pairs), config.max_pairs, asked.name)
        scores = await scorer.score(
            pairs, "prompt", config.deadline_s, patient=True, name=asked.name
        )
        entry = request.state.entry
        entry.scores = scores
        rewards = [
            result.raw_reward if options.reward == "raw" else result.reward
            for result in scores.results
        ]
        answer = asked.answer(
            Answer(
                rewards=rewards,
                results=scores.results,
                model=scorer.bundle.manifest.name,
                request_id=entry.request_id,
            )
        )
        truncated = sum(result.truncated for result in scores.results)
        return Response(
            to_json(answer),
            media_type="application/json",
            headers={"x-reward-truncated": str(truncated)},
        )

    return endpoint


def _parse(shape: type[BaseModel], body: bytes) -> Shape:
    try:
        parsed: Any = shape.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    return parsed  # type: ignore[no-any-return]
