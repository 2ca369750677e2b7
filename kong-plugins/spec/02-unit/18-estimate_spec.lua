local chunking = require "spec.helpers.chunking"
local estimate = require "kong.plugins.llm-audit.estimate"
local fixtures = require "spec.helpers.fixtures"

-- Of a chat: the role, two pieces of text, the end.
local CHAT = 'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
             .. 'data: {"choices":[{"delta":{"content":"\\ndata: a"}}]}\n\n'
             .. 'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
             .. 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
local DONE = "data: [DONE]\n\n"
local USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":7,'
              .. '"completion_tokens":2}}\n\n'


local function of(api, is_stream, text, size)
  local meter = estimate.new(api, is_stream)
  for _, chunk in ipairs(chunking.split_every(text, size or #text + 1)) do
    meter:put(chunk)
  end

  return estimate.of(api, 401, meter)
end


describe("estimate", function()
  it("goes by the bytes asked and the events answered", function()
    assert.same({ prompt_tokens = 101, completion_tokens = 3 },
                of("chat", true, CHAT .. DONE))
    assert.same({ prompt_tokens = 101, completion_tokens = 3 },
                of("chat", true, ": ping\n\n" .. CHAT))
    assert.same({ prompt_tokens = 101, completion_tokens = 0 },
                of("completions", true, ""))
    assert.same({ prompt_tokens = 101, completion_tokens = 25 },
                of("chat", false, ("x"):rep(99)))
    assert.same({ prompt_tokens = 101, completion_tokens = 0 },
                of("embeddings", false, ("x"):rep(99)))
  end)

  it("does not depend on how a stream is cut between events", function()
    for _, event in ipairs({ 1, 2, 3 }) do
      local pieces = {}
      for piece in CHAT:gmatch(".-\n\n") do
        pieces[#pieces + 1] = piece
      end
      local meter = estimate.new("chat", true)
      meter:put(table.concat(pieces, "", 1, event))
      meter:put(table.concat(pieces, "", event + 1))
      assert.equal(3, estimate.of("chat", 0, meter).completion_tokens)
    end
  end)

  it("counts the deltas of typed events", function()
    assert.equal(2, of("responses", true,
      'event: response.created\ndata: {"type":"response.created"}\n\n'
      .. 'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
      .. 'event: response.reasoning_text.delta\ndata: {"delta":"b"}\n\n')
      .completion_tokens)
    assert.equal(1, of("messages", true,
      'event: ping\ndata: {"type":"ping"}\n\nevent: content_block_delta\n'
      .. 'data: {"type":"content_block_delta"}\n\n').completion_tokens)
  end)

  it("says nothing where the server reported counts", function()
    for _, usage in ipairs({
      USAGE,
      'data: {"usage": { "details" : null, "input_tokens" : "7" } }\n\n',
      'data: {"usage":{},"x":{"usage":{"prompt_tokens":1}}}\n\n',
    }) do
      for size = 1, #usage do
        assert.is_nil(of("chat", true, CHAT .. usage .. DONE, size))
      end
    end
    for _, name in ipairs({ "chat-en-stream-usage", "chat-en", "completions",
                            "messages-stream", "responses-stream" }) do
      local api = name:match("^%a+")
      local body = fixtures.response(name)
      assert.is_nil(of(api, body:sub(1, 1) ~= "{", body), name)
    end
  end)

  it("finds counts wherever long chunks meet", function()
    local usage = '"usage" : { "details" : null, "input_tokens" : 7 }'
    local before = '{"choices":[{"text":"' .. ("word "):rep(400) .. '"}],'
    local body = before .. usage .. ',"more":"' .. ("word "):rep(400) .. '"}'

    for is_stream in pairs({ [true] = 1, [false] = 1 }) do
      for cut = #before - 8, #before + #usage + 8 do
        local meter = estimate.new("chat", is_stream)
        meter:put(body:sub(1, cut))
        meter:put(body:sub(cut + 1))
        assert.is_true(meter.has_usage, "cut at " .. cut)
      end
    end
  end)

  it("takes nothing else for counts", function()
    for _, other in ipairs({
      'data: {"usage":null}\n\n', 'data: {"usage":{}}\n\n',
      'data: {"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n',
      'data: {"a":"\\"usage\\":{\\"prompt_tokens\\":7}"}\n\n',
    }) do
      assert.is_table(of("chat", true, CHAT .. other .. DONE), other)
    end
  end)

  it("is near what vLLM counted", function()
    for _, name in ipairs({ "chat-en", "chat-zh", "chat-multiline-zh" }) do
      local body = fixtures.response(name .. "-stream-usage")
      local counted = tonumber(body:match('"completion_tokens":(%d+)'))
      body = body:gsub('data: {[^\n]*"usage":{[^\n]*\n\n', "")
      local tokens = of("chat", true, body).completion_tokens
      assert.is_true(tokens <= counted and tokens >= counted / 2,
                     name .. ": " .. tokens .. " of " .. counted)
    end
  end)

  it("leaves alone what takes no tokens, or reports them later", function()
    assert.is_nil(estimate.new("models", false))
    assert.is_nil(estimate.of("tokenize", 100, nil))
    assert.is_nil(of("responses", false, '{"status":"queued"}'))
    assert.same({ prompt_tokens = 25, completion_tokens = 0 },
                estimate.of("responses", 100, nil))
  end)
end)
