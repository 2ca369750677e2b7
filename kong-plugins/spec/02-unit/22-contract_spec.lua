local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local CONTRACT = here .. "/../../../docs/contract.md"

local CHAT = '{"model":"m","messages":[{"role":"user","content":"hi"}]}'
local JSON = { ["Content-Type"] = "application/json" }

-- What other plugins put there, and what log_queue does.
local NOT_HERE = { shed = true, backend = true, refused_by = true,
                   queue_ms = true }


local function documented()
  local file = assert(io.open(CONTRACT))
  local names = {}
  for line in file:lines() do
    if line:find("^| `") then
      for name in line:match("^|([^|]*)|"):gmatch("`llm%.([%w_]+)`") do
        names[name] = true
      end
    end
  end
  file:close()

  return names
end


-- Calls with which every member of `llm` is there at least once.
local function calls()
  local queued = fixtures.response("../vllm-0.33/v33-responses-background-"
                                   .. "queued")

  return {
    { request = { body = CHAT },
      response = { headers = JSON,
                   chunks = { fixtures.response("chat-en") } } },
    { request = { body = CHAT }, response = { headers = JSON,
                                              chunks = { "{}" } } },
    { request = { path = "/v1/responses", body = '{"input":"x"}' },
      response = { headers = JSON, chunks = { queued } } },
    { request = { body = "no JSON" }, response = { headers = JSON,
                                                   chunks = { "{}" } } },
    { request = { body = CHAT },
      response = { headers = { ["Content-Type"] = "text/event-stream" },
                   chunks = { fixtures.response("chat-logprobs-zh-stream") } },
      changes = { max_response_body_size = 3000 } },
    { request = { body = CHAT }, changes = { capture = "metadata" },
      response = { headers = JSON,
                   chunks = { fixtures.response("chat-en") } } },
  }
end


describe("the contract", function()
  it("lists what an entry has, and nothing else", function()
    local names, seen = documented(), {}
    for _, exchange in ipairs(calls()) do
      local llm = gateway.new(exchange.changes):call(exchange).llm
      -- as http-log writes it
      for name in pairs(cjson.decode(cjson.encode(llm))) do
        assert.is_true(names[name], "not in docs/contract.md: " .. name)
        seen[name] = true
      end
    end

    for name in pairs(names) do
      assert.is_true(seen[name] or NOT_HERE[name],
                     "in docs/contract.md, and never sent: " .. name)
    end
  end)
end)
