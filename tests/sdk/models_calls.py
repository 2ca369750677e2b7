"""Asks a gateway for its models with both SDKs, and for one that is not there; prints what the SDKs made of it as one JSON object.

The settings come in the environment: BASE_URL, KEY, MODELS (names to look up, blank between them).
"""

import json
import os

import anthropic
import openai

BASE_URL = os.environ["BASE_URL"]
KEY = os.environ["KEY"]
QUESTION = [{"role": "user", "content": "?"}]


def outcome(call):
    try:
        return call().id
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        body = error.body if isinstance(error.body, dict) else {}
        return {
            "class": type(error).__name__,
            "code": body.get("code"),
            "type": body.get("error", body).get("type"),
            "message": body.get("error", body).get("message"),
        }


def main():
    of_openai = openai.OpenAI(base_url=BASE_URL + "/v1", api_key=KEY, max_retries=0)
    of_anthropic = anthropic.Anthropic(base_url=BASE_URL, api_key=KEY, max_retries=0)
    names = os.environ["MODELS"].split()
    print(
        json.dumps(
            {
                "openai": {
                    "list": [model.id for model in of_openai.models.list()],
                    "retrieve": {name: outcome(lambda: of_openai.models.retrieve(name)) for name in names},
                    "chat": outcome(lambda: of_openai.chat.completions.create(model="no-such", messages=QUESTION)),
                },
                "anthropic": {
                    "list": [model.id for model in of_anthropic.models.list()],
                    "retrieve": {name: outcome(lambda: of_anthropic.models.retrieve(name)) for name in names},
                    "chat": outcome(
                        lambda: of_anthropic.messages.create(model="no-such", max_tokens=1, messages=QUESTION)
                    ),
                },
            }
        )
    )


main()
