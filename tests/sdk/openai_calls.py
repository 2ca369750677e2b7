"""Calls a gateway with OpenAI's SDK as a user would, and prints what the SDK made of the answers, as one JSON object.

The settings come in the environment: BASE_URL, KEY, WRONG_KEY, KEY_OVER_THE_LIMIT, MARK.
"""

import json
import os

import openai

BASE_URL = os.environ["BASE_URL"] + "/v1"
MODEL = "qwen-tiny"
QUESTION = [{"role": "user", "content": "What is an LLM gateway?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


def client(key):
    # A gateway that refuses must be seen to refuse, not to be asked again.
    return openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=0)


def recorded(name):
    return {"x-fixture": name}


def hanging():
    return {"x-sim-delay-ms": "20000", "x-e2e-raw": os.environ["MARK"]}


def kong_id(headers):
    return headers.get("x-kong-request-id")


def tools():
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return [{"type": "function", "function": {"name": "get_weather", "parameters": city}}]


def plain(sdk):
    raw = sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, temperature=0, extra_headers=recorded("chat-en")
    )
    answer = raw.parse()
    return {
        "request_id": kong_id(raw.headers),
        "content": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "completion_tokens": answer.usage.completion_tokens,
    }


def streamed(sdk, fixture, **options):
    stream = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, extra_headers=recorded(fixture), **options
    )
    seen = {"request_id": kong_id(stream.response.headers), "content": "", "usages": [], "without_choices": 0}
    for chunk in stream:
        if chunk.usage:
            seen["usages"].append(chunk.usage.completion_tokens)
        if not chunk.choices:
            seen["without_choices"] += 1
        for choice in chunk.choices:
            seen["content"] += choice.delta.content or ""
            seen["finish_reason"] = choice.finish_reason or seen.get("finish_reason")
    return seen


def streamed_tools(sdk):
    stream = sdk.chat.completions.create(
        model=MODEL,
        messages=WEATHER,
        temperature=0,
        stream=True,
        tools=tools(),
        extra_headers=recorded("tools-auto-stream-usage"),
    )
    seen = {"request_id": kong_id(stream.response.headers), "name": None, "arguments": ""}
    for chunk in stream:
        for choice in chunk.choices:
            seen["finish_reason"] = choice.finish_reason or seen.get("finish_reason")
            for call in choice.delta.tool_calls or []:
                seen["name"] = call.function.name or seen["name"]
                seen["arguments"] += call.function.arguments or ""
    return seen


def stream_helper(sdk):
    """The SDK's own accumulation of a stream."""
    with sdk.chat.completions.stream(
        model=MODEL, messages=QUESTION, temperature=0, extra_headers=recorded("chat-en-stream")
    ) as stream:
        final = stream.get_final_completion()
    return {"content": final.choices[0].message.content, "has_usage": final.usage is not None}


def responses(sdk):
    stream = sdk.responses.create(
        model=MODEL, input="Hello!", temperature=0, stream=True, extra_headers=recorded("responses-stream")
    )
    seen = {"request_id": kong_id(stream.response.headers), "content": "", "last": None}
    for event in stream:
        seen["last"] = event.type
        if event.type == "response.output_text.delta":
            seen["content"] += event.delta
    return seen


def models(sdk):
    return {"ids": [model.id for model in sdk.models.list()]}


def embeddings(sdk):
    answer = sdk.embeddings.create(model="emb", input="x", extra_headers=recorded("emb-sdk-default-base64"))
    return {"dimensions": len(answer.data[0].embedding)}


def error(call):
    """The exception that a call ends in, as a program that catches it sees it."""
    try:
        call()
    except openai.APIStatusError as caught:
        return {
            "class": type(caught).__name__,
            "status": caught.status_code,
            "code": caught.code,
            "type": caught.type,
            "param": caught.param,
            "message": str(caught),
            "request_id": kong_id(caught.response.headers),
            "retry_after": caught.response.headers.get("retry-after"),
            "content_type": caught.response.headers.get("content-type"),
        }
    return {"class": None}


def ask(sdk, **options):
    return lambda: sdk.chat.completions.create(model=MODEL, messages=QUESTION, **options)


def main():
    sdk = client(os.environ["KEY"])
    results = {
        "plain": plain(sdk),
        "streamed": streamed(sdk, "chat-en-stream"),
        "streamed_with_usage": streamed(sdk, "chat-en-stream-usage", stream_options={"include_usage": True}),
        "streamed_tools": streamed_tools(sdk),
        "stream_helper": stream_helper(sdk),
        "responses": responses(sdk),
        "models": models(sdk),
        "embeddings": embeddings(sdk),
        "wrong_key": error(ask(client(os.environ["WRONG_KEY"]))),
        "over_the_limit": error(ask(client(os.environ["KEY_OVER_THE_LIMIT"]))),
        "over_the_limit_streamed": error(ask(client(os.environ["KEY_OVER_THE_LIMIT"]), stream=True)),
        "no_such_path": error(lambda: sdk.fine_tuning.jobs.list()),
        "wrong_base_url": error(ask(sdk.with_options(base_url=os.environ["BASE_URL"]))),
        "vllm_bad_model": error(ask(sdk, extra_headers=recorded("err-bad-model"))),
        "vllm_too_long": error(ask(sdk, extra_headers=recorded("err-context-too-long"))),
        "vllm_dead": error(ask(sdk, extra_headers=recorded("engine-dead-next-request"))),
        "vllm_gone": error(ask(sdk, extra_headers={"x-sim-break": "rst:0"})),
        # With the tries that the SDK makes by itself: it is to be told not to.
        "vllm_hangs": error(ask(sdk.with_options(max_retries=2), extra_headers=hanging())),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
