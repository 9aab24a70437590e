"""pydantic: models validated, rejected, and written as JSON."""

import sys

sys.path.append('/usr/lib/python3/dist-packages')

import datetime

from pydantic import BaseModel, Field, ValidationError, field_validator


class Item(BaseModel):
    name: str = Field(min_length=2)
    day: datetime.date
    tags: dict[str, list[int]] = {}

    @field_validator('name')
    @classmethod
    def upper(cls, value):
        return value.upper()


class Basket(BaseModel):
    items: list[Item]
    total: float | None = None


def main(n):
    kept, messages = [], []
    for i in range(30 * n):
        kept.append(Basket.model_validate({'total': str(i), 'items': [
            {'name': f'name {k}', 'day': '2024-02-03',
             'tags': {str(k): ['1', 2]}} for k in range(5)]}))
        try:
            Item(name=i, day='never')
        except ValidationError as error:
            messages.append(error.errors(include_url=False))
    texts = [one.model_dump_json() for one in kept]
    again = [Basket.model_validate_json(text) for text in texts]
    return kept, messages, texts, again, Basket.model_json_schema()
