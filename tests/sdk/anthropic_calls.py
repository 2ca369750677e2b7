"""Calls a gateway with Anthropic's SDK as a user would, and prints what the SDK made of the answers, as one JSON object.

The settings come in the environment: BASE_URL, KEY, WRONG_KEY, KEY_OVER_THE_LIMIT, MARK.
"""

import json
import os

import anthropic

MODEL = "qwen-tiny"
QUESTION = [{"role": "user", "content": "What is an LLM gateway?"}]


def client(**key):
    return anthropic.Anthropic(base_url=os.environ["BASE_URL"], max_retries=0, **key)


def call(fixture=None, **options):
    headers = {"x-fixture": fixture} if fixture else {}
    return dict(model=MODEL, max_tokens=120, messages=QUESTION, extra_headers=headers, **options)


def kong_id(headers):
    return headers.get("x-kong-request-id")


def plain(sdk):
    raw = sdk.messages.with_raw_response.create(**call("messages-stop-sequence"))
    answer = raw.parse()
    return {
        "request_id": kong_id(raw.headers),
        "content": "".join(block.text for block in answer.content if block.type == "text"),
        "stop_reason": answer.stop_reason,
        "output_tokens": answer.usage.output_tokens,
    }


def streamed(sdk, fixture):
    with sdk.messages.stream(**call(fixture)) as stream:
        for _ in stream:
            pass
        final = stream.get_final_message()
        headers = stream.response.headers
    return {
        "request_id": kong_id(headers),
        "content": "".join(block.text for block in final.content if block.type == "text"),
        "tools": [{"name": block.name, "input": block.input} for block in final.content if block.type == "tool_use"],
        "stop_reason": final.stop_reason,
        "output_tokens": final.usage.output_tokens,
    }


def error(ask):
    try:
        ask()
    except anthropic.APIStatusError as caught:
        return {
            "class": type(caught).__name__,
            "status": caught.status_code,
            "type": caught.body["error"]["type"] if isinstance(caught.body, dict) else None,
            "message": str(caught),
            "request_id": kong_id(caught.response.headers),
            "retry_after": caught.response.headers.get("retry-after"),
        }
    return {"class": None}


def main():
    key = os.environ["KEY"]
    # api_key goes out as X-Api-Key, auth_token as Authorization: Bearer.
    sdk = client(api_key=key)
    limited = client(api_key=os.environ["KEY_OVER_THE_LIMIT"])
    results = {
        "plain": plain(sdk),
        "plain_with_bearer": plain(client(api_key=None, auth_token=key)),
        "streamed": streamed(sdk, "messages-stream"),
        "streamed_tools": streamed(sdk, "messages-tools-stream"),
        "wrong_key": error(lambda: client(api_key=os.environ["WRONG_KEY"]).messages.create(**call())),
        "over_the_limit": error(lambda: limited.messages.create(**call())),
        "over_the_limit_streamed": error(lambda: limited.messages.create(**call(stream=True))),
        "no_such_path": error(lambda: sdk.messages.batches.list()),
        "vllm_bad_model": error(lambda: sdk.messages.create(**call("messages-bad-model-error"))),
        "vllm_gone": error(
            lambda: sdk.messages.create(model=MODEL, max_tokens=9, messages=QUESTION, extra_headers={"x-sim-break": "rst:0"})
        ),
        # With the tries that the SDK makes by itself: it is to be told not to.
        "vllm_hangs": error(
            lambda: sdk.with_options(max_retries=2).messages.create(
                model=MODEL,
                max_tokens=9,
                messages=QUESTION,
                extra_headers={"x-sim-delay-ms": "20000", "x-e2e-raw": os.environ["MARK"]},
            )
        ),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
