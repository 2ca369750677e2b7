"""Makes one call over a quota with an SDK as it comes, and prints what became of it, and after how many tries.

    quota_calls.py openai|anthropic [FILE]    asks once FILE is there

The settings come in the environment: BASE_URL, KEY.
"""

import os
import sys
import time

TRIES = []
HOOKS = {"request": [TRIES.append]}
KEY = {"X-API-Key": os.environ["KEY"]}
QUESTION = [{"role": "user", "content": "What is an LLM gateway?"}]

if sys.argv[1] == "openai":
    import openai as sdk

    client = sdk.OpenAI(
        base_url=os.environ["BASE_URL"] + "/v1",
        api_key="x",
        default_headers=KEY,
        http_client=sdk.DefaultHttpxClient(event_hooks=HOOKS),
    )

    def ask():
        return client.chat.completions.create(model="m", messages=QUESTION, max_tokens=5)
else:
    import anthropic as sdk

    client = sdk.Anthropic(
        base_url=os.environ["BASE_URL"],
        api_key="x",
        default_headers=KEY,
        http_client=sdk.DefaultHttpxClient(event_hooks=HOOKS),
    )

    def ask():
        return client.messages.create(model="m", messages=QUESTION, max_tokens=5)

while sys.argv[2:] and not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
try:
    ask()
    print("answered after", len(TRIES), "tries")
except sdk.APIStatusError as error:
    print("refused", type(error).__name__, error.status_code, "after", len(TRIES), "tries")
