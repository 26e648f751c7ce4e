"""The fields of requests and answers. Unknown fields are refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from antpipe.runtime.conditions import LONGEST
from antpipe.serving.similar import FUSED, ID
from antpipe.settings.model import MODALITIES
from antpipe.settings.serving import WHERE, RecommendConfig

ID_LENGTH = 1000  # characters
TEXT_LENGTH = 100_000
SEARCH_LENGTH = 200
MOST_NEW = 100
MOST_FOUND = 50  # items of a search
By = Literal["fused", "text", "image", "price", "id"]
assert set(By.__args__) == {FUSED, ID, *MODALITIES}  # type: ignore[attr-defined]
ItemId = Annotated[str, Field(max_length=ID_LENGTH)]
Level = Annotated[str, Field(max_length=ID_LENGTH)]  # of a category


class Asked(BaseModel):
    """Fields that requests share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    k: int = Field(RecommendConfig.k, ge=1, description="number of items")
    where: str | None = Field(None, max_length=LONGEST, description=WHERE)


class NewItem(BaseModel):
    """A product that the catalogue does not have. The encoders of the domain describe it; its text is made of the same
    parts as that of the items there. Pictures are not read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    item_id: str = Field(min_length=1, max_length=ID_LENGTH)
    title: str | None = Field(None, max_length=TEXT_LENGTH)
    description: str | None = Field(None, max_length=TEXT_LENGTH)
    features: str | None = Field(None, max_length=TEXT_LENGTH)
    brand: str | None = Field(None, max_length=ID_LENGTH)
    category: list[Level] | None = Field(None, max_length=20, description="from the widest to the narrowest")
    price: float | None = Field(None, ge=0, allow_inf_nan=False, strict=False)


class RecommendRequest(Asked):
    """For whom, and which items may be recommended. Give either `user` or `items`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user": "U42", "k": 5},
                {"items": ["B01", "B07"], "k": 5, "where": "price < 50", "explain": True},
                {"items": [], "unknown": "popularity"},
                {"user": "U42", "new_items": [{"item_id": "N1", "title": "Copper kettle", "price": 24.5}]},
            ]
        }
    )
    user: str | None = Field(None, max_length=ID_LENGTH, description="a user of the domain (original id)")
    items: list[ItemId] | None = Field(None, description="item ids of a history, oldest first")
    new_items: list[NewItem] = Field(
        [], max_length=MOST_NEW, description="products to rank among those of the catalogue; `items` may name them too"
    )
    exclude: list[ItemId] = Field([], description="item ids that are not recommended")
    only: list[ItemId] | None = Field(None, description="item ids: only these are recommended")
    include_seen: bool = Field(RecommendConfig.include_seen, description="items of the history may be recommended")
    diversify: float = Field(
        RecommendConfig.diversify, ge=0, le=1, allow_inf_nan=False, description="penalty for resembling those above"
    )
    explain: bool = Field(RecommendConfig.explain, description="say what contributes most to each score")
    unknown: Literal["error", "popularity"] = Field(
        RecommendConfig.unknown,  # type: ignore[arg-type]
        description="what to do with unknown users and items; popularity: skip them, and recommend the most popular "
        "items if there is no history",
    )


class SimilarRequest(Asked):
    """Which items to compare with one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item": "B01", "by": "text", "k": 5}]})
    item: str = Field(max_length=ID_LENGTH, description="an item of the domain (original id)")
    by: By = Field(FUSED, description="the run's item vectors (fused), the features of one modality, or learned ids")  # type: ignore[arg-type]


class Worth(BaseModel):
    """What a modality adds to a score."""

    modality: str
    worth: float


class Because(BaseModel):
    """What an item of the history adds to a score."""

    item_id: str
    worth: float


class Why(BaseModel):
    """What contributes most to a score (docs/recommend.md)."""

    modality: str
    modalities: list[Worth]
    because: list[Because]
    method: str


class Card(BaseModel):
    """An item as it is listed. picture: a URL, or a path of this service."""

    item_id: str
    title: str
    price: float | None
    currency: str | None
    picture: str | None


class Ranked(Card):
    """An item of an answer, best first from rank 1."""

    rank: int
    score: float
    why: Why | None = Field(None, description="only with `explain`")


class RankedAnswer(BaseModel):
    """The best items. run: the fingerprint of the run that found them. note: why there are fewer than k, or that these
    are the most popular items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "item_id": "B01",
                            "title": "Steel kettle",
                            "price": 19.9,
                            "currency": "EUR",
                            "picture": None,
                            "rank": 1,
                            "score": 0.31,
                        }
                    ],
                    "run": "0c4f…",
                    "note": None,
                }
            ]
        }
    )
    items: list[Ranked]
    run: str
    note: str | None


class FoundAnswer(BaseModel):
    """Items whose titles contain all words of a search; those with the most interactions come first."""

    items: list[Card]


class Refusal(BaseModel):
    """Why a request was refused, and what to do next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"what": "no user 'U43'", "next": 'ask with a known user, or "unknown": "popularity"'}]
        }
    )
    what: str
    next: str


Details = dict[str, Any]
