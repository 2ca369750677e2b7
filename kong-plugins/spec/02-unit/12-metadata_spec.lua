local around = require "spec.helpers.around"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"
local kong_error = require "spec.helpers.kong_error"

local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }
local JSON = { ["Content-Type"] = "application/json" }


describe("llm-audit", function()
  local running

  around(function(gateway_of_test)
    running = gateway_of_test
  end)

  describe("capture = none", function()
    before_each(function()
      running = gateway.new({ capture = "none" })
    end)

    it("keeps out a call that is answered, and reads nothing of it", function()
      local result = running:call({
        request = { path = "/usage", body = "key=sk-1" },
        response = { headers = JSON, chunks = { "{}" } },
      })
      assert.same({ kept_out = true }, kong.ctx.shared.llm_audit_entry)
      assert.same({ request = {}, response = {} }, result.entry)
      assert.is_false(result.was_read)
      assert.equal("{}", result.client.body)
      assert.equal("key=sk-1", result.service.body)
    end)

    it("lets in a call that is refused", function()
      running.consumer = nil
      local result = running:call({
        request = { path = "/v1/usage", method = "GET" },
        refused = true,
        response = kong_error(401, "Unauthorized"),
      })
      assert.is_nil(kong.ctx.shared.llm_audit_entry.kept_out)
      assert.equal(1, result.llm.v)
      assert.is_nil(result.entry.response.body)
      assert.is_truthy(result.client.body:find('"error"', 1, true))
    end)
  end)

  it("keeps out refused calls that are only counted", function()
    running = gateway.new({ capture = "full" })
    local found = "user"
    package.loaded["kong.plugins.llm-audit.refused"].look = function()
      return found
    end
    local function refuse()
      return running:call({ request = { headers = {
                              ["X-Padding"] = ("p"):rep(257),
                              ["X-Program"] = "nightly",
                              ["Authorization"] = "Basic c2VjcmV0",
                            } },
                            refused = true, asked = { refused_by = "quota" },
                            response = kong_error(429, "slow down") })
    end

    local small = refuse()
    assert.equal("quota", small.llm.refused_by)
    assert.same({ ["x-program"] = "nightly" }, small.entry.request.headers)
    assert.is_false(kong.ctx.shared.llm_audit_entry.refused)
    found = "counted"
    assert.same({ request = {}, response = {} }, refuse().entry)
    assert.same({ kept_out = true }, kong.ctx.shared.llm_audit_entry)
  end)

  describe("capture = metadata", function()
    before_each(function()
      running = gateway.new({ capture = "metadata", include_usage = false })
    end)

    it("has sizes and times but no bodies", function()
      local result = running:call({
        request = { body = '{"a":1}' },
        response = { headers = JSON, chunks = { "abc", "de" } },
        ttfb = 0.1,
      })
      assert.same({ request = {}, response = {}, llm = result.llm },
                  result.entry)
      assert.equal(7, result.llm.request_bytes)
      assert.equal(5, result.llm.response_bytes)
      assert.equal(100, result.llm.ttft_ms)
      assert.is_false(result.llm.request_truncated)
      assert.is_false(result.llm.response_truncated)
      -- what it asks for is of interest all the same
      assert.is_true(result.was_read)
      assert.is_false(running:call({ request = { path = "/v1/models",
                                                 method = "GET" } }).was_read)
    end)

    it("counts a chunked request", function()
      for _, in_file in ipairs({ true, false }) do
        local result = running:call({
          request = { body = '{"a":1}', chunked = true, in_file = in_file },
        })
        assert.equal(7, result.llm.request_bytes)
        assert.is_nil(result.entry.request.body)
      end
    end)

    it("still asks for usage and hides it", function()
      running = gateway.new({ capture = "metadata" })
      local stream = fixtures.chunks("chat-en-stream-usage")
      local result = running:call({
        request = { body = fixtures.request("chat-en-stream") },
        response = { headers = SSE, chunks = stream },
      })
      assert.is_true(result.service.edited)
      assert.is_nil(result.client.body:find('"usage"', 1, true))
      assert.is_nil(result.entry.request.body)
      assert.is_nil(result.entry.response.body)
      assert.equal(#fixtures.request("chat-en-stream"),
                   result.llm.request_bytes)
      assert.same({ prompt_tokens = 20, completion_tokens = 65,
                    total_tokens = 85 }, result.llm.usage)
    end)

    it("has the model and the usage of an answer, and no word of it", function()
      for name, headers in pairs({ ["chat-en"] = JSON, ["responses"] = JSON,
                                   ["messages-stream"] = SSE,
                                   ["chat-en-stream-usage"] = SSE }) do
        local answer = fixtures.response(name)
        local result = running:call({
          request = { body = fixtures.request(name) },
          response = { headers = headers, chunks = { answer } },
        })
        assert.equal(answer, result.client.body)
        assert.equal("qwen-tiny", result.llm.model)
        local usage = result.llm.usage
        assert.is_true((usage.prompt_tokens or usage.input_tokens) > 10)
        assert.is_true((usage.completion_tokens or usage.output_tokens) > 0)

        result.llm.model, result.llm.usage = nil, nil
        assert.same({ request = {}, response = {}, llm = {
          v = 1,
          stream = headers == SSE,
          ttft_ms = 0,
          request_bytes = #fixtures.request(name),
          response_bytes = #answer,
          request_truncated = false,
          response_truncated = false,
          aborted = false,
          seq = result.llm.seq,
          worker = result.llm.worker,
          api = "chat",
          model_asked = "qwen-tiny",
          stream_asked = headers == SSE,
        } }, result.entry)
      end
    end)

    it("has neither of calls that failed or that cannot be read", function()
      local answer = fixtures.response("chat-en")
      for _, response in ipairs({
        { status = 500, headers = JSON, chunks = { answer } },
        { headers = { ["Content-Type"] = "application/json",
                      ["Content-Encoding"] = "gzip" }, chunks = { answer } },
        { headers = { ["Content-Type"] = "text/plain" }, chunks = { answer } },
        { headers = JSON, chunks = { fixtures.response("err-bad-model") } },
        { headers = JSON },
        kong_error(401, "x"),
      }) do
        local result = running:call({ response = response })
        assert.is_nil(result.llm.model)
        assert.is_nil(result.llm.usage)
      end

      local llm = running:call({ no_answer = true }).llm
      assert.is_nil(llm.model)
      assert.is_true(llm.aborted)
    end)

    it("knows by its last event whether a stream was aborted", function()
      local stream = fixtures.response("chat-en-stream-usage")
      local messages = fixtures.response("messages-stream")
      for _, eof in ipairs({ true, false }) do
        for body, aborted in pairs({
          [stream] = false,
          [messages] = false,
          -- every choice said why it ended
          [stream:sub(1, -50)] = not eof,
          [(messages:gsub("event: message_stop.*", ""))] = not eof,
          [stream:sub(1, -50) .. '\n\ndata: {"error":{"code":1}}'] = true,
          [(stream:gsub('"finish_reason":"length"', '"finish_reason":""')
                  :gsub('"finish_reason":"stop"', '"finish_reason":""')
                  :sub(1, -50))] = true,
          [stream:sub(1, -50) .. '\n\ndata: {"choices":[{"index":1}]}'] = true,
          [stream:sub(1, 900)] = true,
          [": keep-alive\n\n"] = true,
          [""] = not eof,
        }) do
          local result = running:call({
            response = { headers = SSE, chunks = { body }, eof = eof },
          })
          assert.equal(aborted, result.llm.aborted, body:sub(-200))
        end
      end
    end)

    it("has an entry even if the answer cannot be read", function()
      package.loaded["kong.plugins.llm-audit.reported"].read = function()
        error("broken")
      end
      local result = running:call({
        response = { headers = JSON, chunks = { "{}" } },
      })
      assert.equal(1, result.llm.seq)
      assert.is_nil(result.llm.model)
      assert.equal(1, #running.errors)
      assert.matches("log failed.*broken", running.errors[1])
      running.errors = {}
    end)

    it("lets go of what was kept", function()
      local answer = fixtures.response("chat-en")
      local result = running:call({
        response = { headers = JSON, chunks = { answer } },
      })
      for _, value in pairs(result.context) do
        assert.is_true(type(value) ~= "table")
      end
    end)

    it("is what model and usage are for: with bodies they are not", function()
      running = gateway.new()
      local answer = fixtures.response("chat-en")
      local llm = running:call({
        response = { headers = JSON, chunks = { answer } },
      }).llm
      assert.is_nil(llm.model)
      assert.is_nil(llm.usage)
    end)
  end)
end)
