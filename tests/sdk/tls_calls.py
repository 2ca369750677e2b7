"""Calls a gateway over HTTPS with both SDKs, and prints what they made of it as one JSON object: the answers, plain and streamed, and what
an SDK says that does not know who signed the gateway's certificate.

The settings come in the environment: BASE_URL, KEY, and SSL_CERT_FILE, which the SDKs believe.
"""

import json
import os

import anthropic
import openai

BASE_URL = os.environ["BASE_URL"]
KEY = os.environ["KEY"]
MODEL = "qwen-tiny"
QUESTION = [{"role": "user", "content": "What is an LLM gateway?"}]


def of_openai():
    return openai.OpenAI(base_url=BASE_URL + "/v1", api_key=KEY, max_retries=0)


def recorded(name):
    return {"x-fixture": name}


def main():
    sdk = of_openai()
    plain = sdk.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, extra_headers=recorded("chat-en"))
    stream = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, extra_headers=recorded("chat-en-stream-usage")
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    message = anthropic.Anthropic(base_url=BASE_URL, api_key=KEY, max_retries=0).messages.with_raw_response.create(
        model=MODEL, max_tokens=100, messages=QUESTION, extra_headers=recorded("messages-stop-sequence")
    )
    del os.environ["SSL_CERT_FILE"]
    try:
        of_openai().models.list()
        stranger = None
    except openai.APIConnectionError as error:
        stranger = str(error.__cause__)
    print(
        json.dumps(
            {
                "plain": {
                    "request_id": plain.headers["x-kong-request-id"],
                    "content": plain.parse().choices[0].message.content,
                },
                "streamed": {"request_id": stream.response.headers["x-kong-request-id"], "content": streamed},
                "anthropic": {
                    "request_id": message.headers["x-kong-request-id"],
                    "content": message.parse().content[0].text,
                },
                "stranger": stranger,
            }
        )
    )


main()
