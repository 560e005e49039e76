"""instructor: pydantic objects out of the real model, in the modes that hold it to a schema.

In `Mode.JSON` the schema stands in the prompt only, and a model of 135M parameters repeats the schema itself.
"""

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.acceptance.conftest import LiveServer
from tests.clients.conftest import NAME

pytest.importorskip("instructor", reason="needs the `clients` extra")

import instructor

pytestmark = pytest.mark.slow


class Person(BaseModel):
    """A person, and nothing more about them."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA], ids=lambda mode: mode.name)
def test_an_object_comes_back_at_the_first_try(live: LiveServer, mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{live.url}/v1", api_key="none"), mode=mode)
    person = client.chat.completions.create(
        model=NAME,
        response_model=Person,
        messages=[{"role": "user", "content": "Jason is 25 years old. Extract the person."}],
        temperature=0,
        max_tokens=120,
        max_retries=0,
    )
    assert isinstance(person, Person)
    assert person.name


def test_a_stream_of_partial_objects_ends_with_the_whole(live: LiveServer) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none"), mode=instructor.Mode.TOOLS
    )
    seen = list(
        client.chat.completions.create_partial(
            model=NAME,
            response_model=Person,
            messages=[{"role": "user", "content": "Jason is 25 years old. Extract the person."}],
            temperature=0,
            max_tokens=120,
        )
    )
    assert len(seen) > 1
    Person.model_validate(seen[-1].model_dump())
